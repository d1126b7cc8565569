"""Fairness losses added to the cross-entropy: one file each, ``loss(logits, labels, groups, n_groups) -> scalar``."""
