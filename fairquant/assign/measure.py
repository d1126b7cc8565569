"""What widths really do: the loss and the accuracy of each group on the validation split, against full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairquant.allocate.bitmap import BitMap
    from fairquant.assign.explain import Measured
    from fairquant.config import Config
    from fairquant.data.store import Store
    from fairquant.predictions import SplitPredictions


BATCH = 256


class Validation:
    """Quantizes copies of a model and measures them on the validation split; nothing is trained."""

    def __init__(
        self, model: nn.Module, store: Store, config: Config, device: torch.device, *, by: str = "group"
    ) -> None:
        """Measure the full-precision ``model`` first; it is left as it was, on ``device``. ``by``: group | class."""
        import torch

        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.store, self.config, self.device = store, config, device
        self.by, self.n_groups = by, len(store.group_names if by == "group" else store.classes)
        self.reference = self._losses(self._predict(self.model))

    def __call__(self, bits: BitMap) -> Measured:
        """Return what ``bits`` cost every group, rounded as the quantize stage does before any fine-tuning."""
        import copy

        from fairquant.assign.explain import Measured
        from fairquant.train.rounding import round_model

        model, config = copy.deepcopy(self.model), self.config
        round_model(
            model,
            bits,
            store=self.store,
            section=config.quantize,
            device=self.device,
            precision=config.precision,
            seed=config.seed,
        )
        part = self._predict(model)
        right = part.logits.argmax(axis=1) == part.labels
        marks = self._marks(part)
        return Measured(self._losses(part) - self.reference, self._means(right.astype(np.float64), marks))

    def _marks(self, part: SplitPredictions) -> npt.NDArray[np.int64]:
        return part.groups if self.by == "group" else part.labels

    def _losses(self, part: SplitPredictions) -> npt.NDArray[np.float64]:
        """Return each group's mean cross-entropy (G,)."""
        import torch
        from torch.nn.functional import cross_entropy

        logits, labels = torch.from_numpy(part.logits).double(), torch.from_numpy(part.labels)
        each, marks = cross_entropy(logits, labels, reduction="none").numpy(), self._marks(part)
        return self._means(each, marks)

    def _means(self, values: npt.NDArray[np.float64], marks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the mean of each group's values (G,), NaN for a group without samples."""
        groups = [values[marks == group] for group in range(self.n_groups)]
        return np.array([group.mean() if group.size else np.nan for group in groups])

    def _predict(self, model: nn.Module) -> SplitPredictions:
        from fairquant.train.predict import predict

        return predict(model, self.store, "val", batch_size=BATCH, device=self.device, precision=self.config.precision)
