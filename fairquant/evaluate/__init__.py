"""Fairness metrics of predictions: numpy and scipy; metrics take labels, predictions and groups, never a model.

``groups`` counts once per split, ``gaps`` derives every gap from the counts, ``summary`` is one split's nested
dict, ``change`` compares two models on the same samples. ``bootstrap`` says how sure the numbers are, ``harm`` which
groups lost, ``loss`` and ``calibration`` look at probabilities, ``audit`` at further groupings, ``gates`` at limits.
``report`` is what the evaluate stage writes.
"""
