"""Importance metrics, one per file; the file's name is the metric's name.

A metric defines ``score(derivative, weight)``: tensors of the weight's shape → the importance of each weight to the
samples behind the derivative, ≥ 0, same shape. It may define

- ``derivative(loss, weights, options, seeds)``: what ``score`` is given, one tensor per weight, None where the loss
  does not depend on it; ``seeds`` are the seed and the batch's number in its group. Without it: the gradient.
- ``forward(device, precision)``: the context of the forward pass. Without it: ``fairquant.devices.autocast``.
- ``AVERAGED = "derivative"``: with ``normalize: sample`` the derivative is averaged over a group's batches and scored
  once. Without it each batch is scored and the scores are averaged.
- ``sample_scores(layers)``: what scores the gradient of every single sample, in place of ``derivative``, which looks
  at a batch's mean loss (``fairquant.importance.metric.SampleScores``). Scores are then averaged over samples.
- ``predicted_increase(importance, delta, weight)``: what its averaged map says a perturbation ``delta`` of the weights
  costs, per weight, in numpy; groups may lead the map's shape.

Source of what a metric promises: ``fairquant.importance.metric.Metric``, which fills in what it leaves out.
"""
