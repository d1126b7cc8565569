"""FairQuant: fairness-aware compression of image classifiers."""

__version__ = "0.1.0"
