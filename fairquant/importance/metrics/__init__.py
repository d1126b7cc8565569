"""Importance metrics, one per file; the file's name is the metric's name.

A metric defines ``score(gradient, weight)``: tensors of the weight's shape → the importance of each weight to the
samples behind the gradient, ≥ 0, same shape. It may define ``predicted_increase(importance, delta, weight)``: what its
averaged map says a perturbation ``delta`` of the weights costs, per weight, in numpy; groups may lead the map's shape.
"""
