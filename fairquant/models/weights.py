"""Import of weights: a safetensors or torch file → a plain state dict → a model, with mistakes named by key.

Torch files are read with ``weights_only=True``: nothing in them is executed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fairquant.errors import UserError

log = logging.getLogger(__name__)

_WRAPPINGS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 8


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from ``path``, on the CPU.

    ``state_dict``/``model``/``model_state_dict``/``net`` wrappings and ``module.``/``_orig_mod.`` prefixes are removed.
    Raises ``UserError`` for a file that is missing, unreadable or holds anything but plain tensors of finite numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"model.weights: got {str(path)!r}, which is no file; allowed: none | imagenet | a path")
    state = _unwrap(_read(file))
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: got {type(state).__name__}; allowed: a state dict (tensors by name)")
    strange = sorted(str(k) for k, value in state.items() if not (isinstance(k, str) and isinstance(value, Tensor)))
    if strange:
        raise UserError(f"{path}: got keys that hold no tensor ({_some(strange)}); allowed: a state dict of tensors")
    _check_numbers(state, str(path))
    return _strip(dict(state))


def _check_numbers(state: Mapping[str, Tensor], path: str) -> None:
    """Refuse tensors whose numbers cannot be those of a model: of other kinds than plain real ones, or not finite."""
    other = [key for key, value in state.items() if not _is_plain(value)]
    if other:
        raise UserError(f"{path}: got tensors that are quantized, sparse or complex ({_some(other)}); allowed: plain")
    wild = [key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if wild:
        raise UserError(f"{path}: got weights that are NaN or infinite ({_some(wild)}); allowed: finite ones")


def _is_plain(value: Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_quantized or value.is_meta or value.is_complex())


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(str(file))
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the readers raise almost anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file}: not readable as weights ({reason}); allowed: a safetensors file, or a torch file that holds "
            "tensors only"
        ) from None


def _unwrap(value: Any) -> Any:
    while isinstance(value, Mapping):
        inner = next((value[key] for key in _WRAPPINGS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            return value
        value = inner
    return value


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool, source: str) -> None:
    """Copy ``state`` into ``model``; ``source`` names the file in messages.

    With ``strict`` any missing, unexpected or mis-shaped key raises ``UserError``; without, those keys are left out
    and one warning names them, and only a file that fits nowhere raises. A missing ``num_batches_tracked``
    (unused in evaluation, absent from old files) is no mistake.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [key for key in state if key in own and own[key].shape != state[key].shape]
    shapes = [f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in misshaped]
    parts = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    text = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in parts.items() if keys)
    fitting = {key: value for key, value in state.items() if key in own and key not in set(misshaped)}
    if text and strict:
        raise UserError(
            f"{source}: weights do not fit the model ({text}); allowed: its own keys and shapes, or strict: false"
        )
    if not fitting:
        raise UserError(f"{source}: none of its {len(state)} keys fits the model ({text}); allowed: its own weights")
    if text:
        log.warning("%s: left out of the import (strict: false): %s", source, text)
    model.load_state_dict(fitting, strict=False)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
