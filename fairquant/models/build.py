"""From a ``ModelSpec`` to a torch module with its starting weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn

from fairquant.errors import UserError
from fairquant.models import weights as importer
from fairquant.models.families import cifar, micronet, timm_models, torchvision_models
from fairquant.models.spec import ModelSpec

FAMILIES: tuple[ModuleType, ...] = (cifar, micronet, torchvision_models, timm_models)
"""In order of precedence: a name known to two (``resnet18``) is torchvision's; timm's goes by its tagged name. Those
two take seconds to import, so they are asked last: our own families' names are none of theirs."""


def build(spec: ModelSpec, *, weights: str = "none", strict: bool = True, seed: int) -> nn.Module:
    """Build the classifier on the CPU, in training mode, and check that it turns one image into one logit per class.

    Args:
        spec: what to build.
        weights: ``none`` (random, from ``seed``), ``imagenet`` (pretrained backbone, a new head from ``seed`` where
            the number of classes differs), or the path of a state dict.
        strict: whether a path's keys must all fit; else those that do not are left out with a warning.
        seed: of the initial weights; torch's global generator is not touched.

    Raises ``UserError`` for an unknown name, an image size the architecture cannot take, or weights that do not fit.
    """
    family = _family(spec.name)
    with _seeded(seed):
        model = _create(family, spec, pretrained=weights == "imagenet")
    if weights not in {"none", "imagenet"}:
        importer.load_into(model, importer.load_state_dict(weights), strict=strict, source=weights)
    return model.train()


def _family(name: str) -> ModuleType:
    for family in FAMILIES:
        if family.knows(name):
            return family
    known = sorted({candidate for family in FAMILIES for candidate in family.names()})
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f", such as {' | '.join(close)}" if close else ""
    own = " | ".join(sorted([*cifar.names(), *micronet.names()]))
    raise UserError(f"model.name: got {name!r}; allowed: a torchvision or timm model name{hint}; or {own}")


def _create(family: ModuleType, spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    """Create and try the model: architectures refuse image sizes in many ways, some only in the forward pass."""
    try:
        model: nn.Module = family.create(
            spec.name, num_classes=spec.n_classes, image_size=spec.image_size, pretrained=pretrained
        )
        shape = _output_shape(model, spec)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name: got {spec.name!r}, which cannot be built for data.image_size {spec.image_size} ({reason}); "
            "allowed: a size or a model that fit each other"
        ) from None
    if shape != (1, spec.n_classes):
        raise UserError(
            f"model.name: got {spec.name!r}, whose output for one image is {shape}; allowed: (1, {spec.n_classes}), "
            "one logit per class"
        )
    return model


def _output_shape(model: nn.Module, spec: ModelSpec) -> tuple[int, ...]:
    model.eval()
    with torch.no_grad():
        output = model(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size))
    return tuple(getattr(output, "shape", ()))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
