"""The report of a finished pipeline: tables for people, plots, and the files published code writes. No torch.

Everything is read from metrics/, plots/ and params.yaml; equal inputs give equal bytes.
"""
