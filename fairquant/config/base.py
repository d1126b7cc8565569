"""Field types shared by every section: each carries its constraint and says in words what it allows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fairquant import plugins


class Section(BaseModel):
    """One frozen section of params.yaml, or the options of one plug-in. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _not_bool(value: object) -> object:
    """YAML's true is not the number 1."""
    if isinstance(value, bool):
        raise ValueError("a number, not true/false")
    return value


def _countable(value: int) -> int:
    """A count that a machine's integers hold."""
    if abs(value) >= 2**63:
        raise ValueError("a whole number of at most 18 digits")
    return value


Int = Annotated[int, BeforeValidator(_not_bool), AfterValidator(_countable)]
Real = Annotated[float, BeforeValidator(_not_bool)]


def number(
    default: Any = ...,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Return a pydantic field with bounds whose description names the allowed interval."""
    low = f"[{ge:.12g}" if ge is not None else f"({gt:.12g}" if gt is not None else "(-inf"
    high = f"{le:.12g}]" if le is not None else f"{lt:.12g})" if lt is not None else "inf)"
    return Field(default, ge=ge, gt=gt, le=le, lt=lt, description=f"a number in {low}, {high}")


def plugin_name(kind: str) -> BeforeValidator:
    """Return the validator of a plug-in name: a string that must be a file of that kind."""

    def check(value: object) -> object:
        if value not in plugins.names(kind):
            raise ValueError(" | ".join(plugins.names(kind)))
        return value

    return BeforeValidator(check)


def text_list(value: object) -> object:
    """Let a single name stand for a list of one: ``group: sex`` means ``group: [sex]``."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(text_list)]


def subset(value: object) -> object:
    """Validate a subset: a number in (0, 1] is a fraction (1 is everything), a whole number above 1 is a count."""
    _not_bool(value)
    try:
        amount = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        amount = -1.0
    if 0 < amount <= 1:
        return amount
    if amount > 1 and amount.is_integer():
        return int(amount)
    raise ValueError("a fraction in (0, 1] or a whole number above 1")


Subset = Annotated[int | float, BeforeValidator(subset)]
