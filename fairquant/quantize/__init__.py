"""Fake quantization of weights: arithmetic, step sizes, attachment to a model, and the file it is kept in."""
