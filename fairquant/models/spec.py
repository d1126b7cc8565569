"""What is needed to rebuild a classifier and feed it: a name, its classes, its input. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairquant.errors import ArtifactError, UserError

_KEYS = ("name", "classes", "image_size", "mean", "std", "in_channels")


@dataclass(frozen=True)
class ModelSpec:
    """A classifier without its weights.

    Attributes:
        name: a torchvision or timm model name, or one of this project's (``models/families``).
        classes: class names, in the order of the logits; two at least.
        image_size: height and width of the input, pixels.
        mean: per input channel, of images in [0, 1]; kept to six digits, as the JSON files keep it.
        std: per input channel, positive; kept to six digits.
        in_channels: 3.

    Raises ``UserError`` for a value out of range.

    >>> ModelSpec("resnet18", ("benign", "malignant"), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).n_classes
    2
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int = 3

    def __post_init__(self) -> None:
        """Round the normalisation and check every value."""
        object.__setattr__(self, "classes", tuple(self.classes))
        for field in ("mean", "std"):
            object.__setattr__(self, field, tuple(round(float(value), 6) for value in getattr(self, field)))
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UserError(f"model: got the classes {list(self.classes)}; allowed: two or more different names")
        if self.image_size < 1:
            raise UserError(f"model: got image_size {self.image_size}; allowed: 1 or more pixels")
        if self.in_channels != 3:
            raise UserError(f"model: got {self.in_channels} input channels; allowed: 3")
        if len(self.mean) != self.in_channels or len(self.std) != self.in_channels or min(self.std) <= 0:
            raise UserError(
                f"model: got mean {self.mean} and std {self.std}; allowed: {self.in_channels} values each, std above 0"
            )

    @property
    def n_classes(self) -> int:
        """Number of logits."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = {key: getattr(self, key) for key in _KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, source: str = "model spec") -> ModelSpec:
        """Rebuild the spec from ``to_dict``'s value; ``source`` names the file in the ``ArtifactError``."""
        if sorted(value) != sorted(_KEYS):
            raise ArtifactError(f"{source}: got the spec keys {sorted(value)}; allowed: {sorted(_KEYS)}")
        try:
            fields: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in value.items()}
            return cls(**fields)
        except (TypeError, ValueError, UserError) as error:
            raise ArtifactError(f"{source}: got a spec that describes no model ({error})") from None
