"""Fairness metrics of predictions: numpy only; metrics take labels, predictions and groups, never a model.

``groups`` counts once per split, ``gaps`` derives every gap from the counts, ``summary`` is one split's nested
dict, ``change`` compares two models on the same samples, ``report`` is what the evaluate stage writes.
"""
