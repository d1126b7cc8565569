"""quant_mode: one way of turning the full-precision model into the quantized one per file.

Contract: a file ``<name>.py`` defines ``quantize(job: QuantizeJob) -> QuantizeResult``; the job's model may be changed
in place. Modules import torch inside functions only.
"""

from fairquant.modes._history import with_start
from fairquant.modes._job import QuantizeJob, QuantizeResult

__all__ = ["QuantizeJob", "QuantizeResult", "with_start"]
