"""hybrid: a backbone of few bits under a classifier of its own, wider width; nothing is trained.

The last layer turns features into logits, holds few weights, and has nothing behind it that could make up for its
rounding: in full precision above an INT4 backbone it costs little. The simplest mixed scheme, with nothing measured;
compare HAWQ (Dong et al. 2019, arXiv 1905.03696), which finds the layers to spare by their sensitivity.
"""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._widths import whole_layers


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize the classifier at ``quantize.hybrid.classifier_bits`` and all else at ``backbone_bits``.

    Protected and sensitive layers keep their width, the classifier among them if it is one. Step sizes are one per
    layer where the assigned widths are per_tensor, else one per out channel. Raises ``ConfigError`` for a protection
    that matches no layer.
    """
    section, classifier = job.section.hybrid, job.roles["classifier"]
    widths = whole_layers(job, lambda name: section.classifier_bits if name == classifier else section.backbone_bits)
    return attach(job, widths)
