"""Fairness losses added to the cross-entropy, one file each; settings stand in params.yaml under quantize.losses.

Contract: a file ``<name>.py`` defines a frozen ``Options`` and ``loss(batch, options, state) -> scalar``
(``fairquant.train.terms`` says what a batch and a state are). A loss that remembers something also defines
``start(n_groups, options, device) -> dict[str, Tensor]``; ``loss`` updates these tensors in place and without a graph,
and they are saved with a run's checkpoint. ``TEACHER = True`` asks for the full-precision model's logits. No step
waits for the accelerator: no ``.item()``, no branch on a tensor. Modules import torch inside functions only.
"""
