"""What settings of different sections must satisfy together. Each rule raises ``ValueError`` with one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant import plugins

if TYPE_CHECKING:
    from fairquant.config.schema import Config

TRAINED = ("fair_static_qat", "iterative_qat", "baq_learnable")
POST_TRAINING = ("ptq_static", "ptq_dynamic")


def check(config: Config) -> None:
    """Hold ``config`` against every rule."""
    if config.quant_mode == "baq_learnable":
        _baq(config)
    if config.allocator == "optimal":
        _optimal(config)
    if config.quantize.scale == "weighted":
        _weighted(config)
    if not config.evaluate.parity:
        _gates_without_parity(config)
    if config.quant_mode == "iterative_qat":
        _iterative(config)
    _activations(config)
    _batch_norm(config)
    _weight_scheme(config)
    if config.quant_mode == "kmeans":
        _kmeans(config)
    _parallel(config)


def _iterative(config: Config) -> None:
    """Each round needs an epoch."""
    if config.quantize.iterative.rounds > config.quantize.epochs:
        raise ValueError(
            f"quantize.iterative.rounds: got {config.quantize.iterative.rounds} for {config.quantize.epochs} epochs; "
            "allowed: at most one round per epoch (quantize.epochs)"
        )


def _activations(config: Config) -> None:
    """Mode none changes nothing, and the post-training modes are there for activations."""
    bits = config.quantize.activations.bits
    if config.quant_mode == "none" and bits not in (None, 32):
        raise ValueError(
            f"quantize.activations.bits: got {bits} with quant_mode none, which quantizes nothing; allowed: null | 32"
        )
    if config.quant_mode in POST_TRAINING and bits == 32:
        raise ValueError(
            f"quantize.activations.bits: got 32 with quant_mode {config.quant_mode}; allowed: null (8), or 2 to 16"
        )


def _batch_norm(config: Config) -> None:
    """Batch statistics fold into the weights while they are trained, or not at all."""
    if config.quantize.batch_norm == "fold_train" and config.quant_mode != "fair_static_qat":
        raise ValueError(
            f"quantize.batch_norm: got 'fold_train' with quant_mode {config.quant_mode}; allowed: keep | fold"
        )
    if config.quantize.batch_norm == "fold_train" and config.quantize.correction_images:
        raise ValueError(
            f"quantize.correction_images: got {config.quantize.correction_images} with quantize.batch_norm fold_train, "
            "whose statistics follow the rounded weights; allowed: 0"
        )
    if config.quantize.correction_images == 1:
        raise ValueError("quantize.correction_images: got 1; allowed: 0 (off), or 2 and more (a variance needs two)")
    one_step = config.quantize.scale == "weighted" and config.granularity == "per_tensor"
    if one_step and config.quantize.batch_norm != "keep":
        raise ValueError(
            f"quantize.batch_norm: got {config.quantize.batch_norm!r} with quantize.scale weighted and granularity "
            "per_tensor, whose one step size for a layer does not fit folded weights; allowed: keep"
        )


def _weight_scheme(config: Config) -> None:
    """A zero point needs a range to lie in."""
    if config.quantize.weight_scheme == "symmetric":
        return
    scales = ("absmax", "mse", "percentile")
    if config.quantize.scale not in scales:
        raise ValueError(
            f"quantize.weight_scheme: got 'asymmetric' with quantize.scale {config.quantize.scale}; "
            f"allowed: symmetric, or quantize.scale {' | '.join(scales)}"
        )
    modes = ("baq_learnable", "iterative_qat", "kmeans")
    if config.quant_mode in modes:
        raise ValueError(
            f"quantize.weight_scheme: got 'asymmetric' with quant_mode {config.quant_mode}; allowed: symmetric"
        )


def _kmeans(config: Config) -> None:
    """A codebook serves a channel or a tensor, has 2^b entries, and no budget of bytes counts it."""
    if config.granularity == "per_param":
        raise ValueError(
            "granularity: got 'per_param' with quant_mode kmeans; allowed: per_tensor | per_channel (a codebook for "
            "every single weight is not a format)"
        )
    assign = config.assign
    given = [_assigned_widths(config)]
    given += [("assign.protect.bits", (assign.protect.bits,))] if assign.protect.layers else []
    given += [("assign.protect.sensitive_bits", (assign.protect.sensitive_bits,))] if assign.protect.sensitive else []
    for key, widths in given:
        wide = [width for width in widths if 8 < width < 32]
        if wide:
            raise ValueError(
                f"{key}: got {wide[0]} with quant_mode kmeans; allowed: 0 to 8, or 32 (a codebook of 8 bits has 256 "
                "entries)"
            )
    if config.allocator == "optimal" and config.budget.size_mb is not None:
        raise ValueError(
            f"budget.size_mb: got {config.budget.size_mb:g} with quant_mode kmeans, whose codebooks it does not count; "
            "allowed: null (avg_bits and gbops hold)"
        )


def _parallel(config: Config) -> None:
    """Several processes need a device on which they can talk, and rows for all of them."""
    parallel = config.parallel
    count = (1 if parallel.devices == "auto" else parallel.devices) * parallel.nodes
    if count == 1:
        return
    if config.device == "mps":
        raise ValueError(
            f"device: got 'mps' for {count} processes (parallel.devices x parallel.nodes), which cannot exchange "
            "numbers there; allowed: auto | cpu | cuda"
        )
    least = count if parallel.batch_norm == "global" else 2 * count
    for key, batch in (("pretrain", config.pretrain.batch_size), ("quantize", config.quantize.batch_size)):
        if batch < least:
            raise ValueError(
                f"{key}.batch_size: got {batch} for {count} processes (parallel.devices x parallel.nodes) with "
                f"parallel.batch_norm {parallel.batch_norm}; allowed: at least {least}, the rows of all together"
            )


def _assigned_widths(config: Config) -> tuple[str, tuple[int, ...]]:
    """Return the widths that assign chooses from, and the key that lists them."""
    candidates = {
        "uniform": ("assign.uniform_bits", (config.assign.uniform_bits,)),
        "optimal": ("assign.optimal.bits", config.assign.optimal.bits),
    }
    return candidates.get(config.allocator, ("assign.bits", config.assign.bits))


def _gates_without_parity(config: Config) -> None:
    """Refuse limits on what evaluate.parity false leaves uncomputed."""
    for name in ("gap", "gap_increase"):
        limit = getattr(config.gates, name)
        if limit is not None:
            raise ValueError(f"gates.{name}: got {limit:g} with evaluate.parity false; allowed: null")


def _optimal(config: Config) -> None:
    """Refuse a budget without a limit, and reducers that are no objective over groups."""
    if all(getattr(config.budget, key) is None for key in type(config.budget).model_fields):
        raise ValueError(
            f"budget: got null for {', '.join(type(config.budget).model_fields)} with allocator optimal; "
            "allowed: at least one limit"
        )
    with_objective = [n for n in plugins.names("reducer") if hasattr(plugins.load("reducer", n), "objective")]
    if config.reducer not in with_objective:
        raise ValueError(
            f"reducer: got {config.reducer!r} with allocator optimal; allowed: {' | '.join(with_objective)}"
        )


def _weighted(config: Config) -> None:
    """Step sizes weighed by importance are measured in assign, for the widths chosen there."""
    allowed = ("fair_static", "fair_static_qat", "none")
    if config.quant_mode not in allowed:
        raise ValueError(
            f"quantize.scale: got 'weighted' with quant_mode {config.quant_mode}, whose widths are not those of "
            "assign; allowed: absmax | lsq | mse | percentile"
        )


def _baq(config: Config) -> None:
    """Refuse what learnable widths cannot be combined with."""
    if config.granularity == "per_param":
        raise ValueError(
            "granularity: got 'per_param' with quant_mode baq_learnable; allowed: per_tensor | per_channel (a learned "
            "width for every single weight is not a format)"
        )
    if config.quantize.scale != "absmax":
        raise ValueError(
            f"quantize.scale: got {config.quantize.scale!r} with quant_mode baq_learnable, which sets its own step "
            "sizes; allowed: absmax"
        )
    key, assigned = _assigned_widths(config)
    low, high = config.quantize.baq.bit_min, config.quantize.baq.bit_max
    outside = [width for width in assigned if not low <= width <= high]
    if outside:
        raise ValueError(
            f"{key}: got {outside[0]} with quant_mode baq_learnable; allowed: from quantize.baq.bit_min {low} to "
            f"bit_max {high}"
        )
