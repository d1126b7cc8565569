"""Classifiers: how they are described, built, imported and saved, and what a quantizable layer is."""
