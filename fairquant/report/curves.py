"""The csv behind budget curves: one row per (task, seed, method, tuned or not, budget), read back with its types.

Group names differ from task to task, so values by group are JSON objects in one cell; all other cells are plain. Shares
are in [0, 1], losses in nats per sample, sizes in megabytes (10⁶ bytes); ``before`` is the full-precision classifier,
``after`` the quantized one on the same samples. An empty cell is a value that is undefined or was not computed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fairquant.artifacts import CsvWriter
from fairquant.errors import ArtifactError

Key = tuple[str, int, str, bool, float]
ByGroup = dict[str, float | None]


@dataclass(frozen=True)
class CurveRow:
    """One measured point.

    Attributes:
        task: data set, label, groups and model, in words.
        seed: of the classifier and everything after it.
        method: a name of ``scripts.curves.methods``.
        tuned: whether the quantized weights were fine-tuned.
        budget: bits per weight asked for.
        settings: what ``dvc exp run -S`` gets, separated by spaces, quoted for a shell where needed.
        classifier: the start of the full-precision weights' checksum.
        packed_mb: real packed size; ``fp32_mb`` that of the full-precision model.
        avg_bits: bits per quantizable weight in the finished model.
        test_worst_group: name of the worst group after; ``test_worst_group_before`` before.
        test_loss_change: rise of each group's mean cross-entropy; ``val_loss_change`` on the validation split.
        harmed: groups whose accuracy on the test split fell significantly (Holm-corrected).
        worst_change_low: bootstrap interval of the worst group's change of test accuracy, to ``worst_change_high``.
        predicted: rise of each group's cross-entropy that the allocation predicted; empty where it predicted none.
        seconds: wall time of allocation, quantization, fine-tuning and evaluation.
    """

    task: str
    seed: int
    method: str
    tuned: bool
    budget: float
    settings: str
    classifier: str
    packed_mb: float
    fp32_mb: float
    avg_bits: float
    test_overall_before: float | None
    test_overall_after: float | None
    test_worst_before: float | None
    test_worst_after: float | None
    test_worst_group_before: str
    test_worst_group: str
    test_gap_before: float | None
    test_gap_after: float | None
    test_eodd_before: float | None
    test_eodd_after: float | None
    val_overall_before: float | None
    val_overall_after: float | None
    val_worst_before: float | None
    val_worst_after: float | None
    test_group_before: ByGroup
    test_group_after: ByGroup
    val_group_before: ByGroup
    val_group_after: ByGroup
    test_loss_change: ByGroup
    val_loss_change: ByGroup
    harmed: tuple[str, ...]
    overall_change_low: float | None
    overall_change_high: float | None
    worst_change_low: float | None
    worst_change_high: float | None
    seconds: float
    predicted: ByGroup = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What a file holds once."""
        return self.task, self.seed, self.method, self.tuned, self.budget

    @property
    def overall_change(self) -> float | None:
        """Change of the overall test accuracy."""
        return difference(self.test_overall_before, self.test_overall_after)

    @property
    def worst_change(self) -> float | None:
        """Change from the accuracy of the worst group before to that of the worst group after, on the test split."""
        return difference(self.test_worst_before, self.test_worst_after)

    @property
    def gap_change(self) -> float | None:
        """Change of the gap between the best and the worst group's test accuracy."""
        return difference(self.test_gap_before, self.test_gap_after)


def difference(before: float | None, after: float | None) -> float | None:
    """Return after − before; None where one is undefined."""
    return None if before is None or after is None else after - before


COLUMNS = tuple(item.name for item in fields(CurveRow))


def header_line() -> str:
    """Return the csv's first line, with its end."""
    return _line(COLUMNS)


def row_line(row: CurveRow) -> str:
    """Return ``row`` as one csv line, with its end; texts may hold any sign but a line's end."""
    return _line([_written(getattr(row, name)) for name in COLUMNS])


def read_rows(*paths: str | Path) -> list[CurveRow]:
    """Read the rows of one or several files, in order.

    Raises ``ArtifactError``: a missing file, other columns, a cell that cannot be read, or a point that is there twice.
    """
    rows = [row for path in paths for row in _read(Path(path))]
    seen: set[Key] = set()
    for row in rows:
        if row.key in seen:
            raise ArtifactError(f"{', '.join(map(str, paths))}: got {describe_key(row.key)} twice; allowed: each once")
        seen.add(row.key)
    return rows


def describe_key(key: Key) -> str:
    """Write a point for people.

    >>> describe_key(("faces", 0, "uniform", False, 2.0))
    'faces seed 0 uniform 2 bits untuned'
    """
    task, seed, method, tuned, budget = key
    return f"{task} seed {seed} {method} {bits_text(budget)} {'tuned' if tuned else 'untuned'}"


def bits_text(budget: float) -> str:
    """Write a budget with its unit.

    >>> bits_text(1.0), bits_text(2.5)
    ('1 bit', '2.5 bits')
    """
    return f"{budget:g} bit{'' if budget == 1 else 's'}"


def parse_rows(text: str, *, source: str) -> list[CurveRow]:
    """Read a csv's whole text; ``source`` names it in errors."""
    lines = list(csv.reader(io.StringIO(text), strict=False))
    if not lines or tuple(lines[0]) != COLUMNS:
        got = "an empty file" if not lines else f"the columns {','.join(lines[0])[:60]}"
        raise ArtifactError(f"{source}: got {got}; allowed: a file that `python -m scripts.curves measure` writes")
    return [_row(cells, f"{source}, line {number}") for number, cells in enumerate(lines[1:], start=2)]


def _read(path: Path) -> list[CurveRow]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: not found; allowed: a file that `python -m scripts.curves measure` wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); allowed: a csv file of curves") from None
    return parse_rows(text, source=str(path))


def _row(cells: Sequence[str], where: str) -> CurveRow:
    if len(cells) != len(COLUMNS):
        raise ArtifactError(f"{where}: got {len(cells)} cells; allowed: {len(COLUMNS)}")
    values: dict[str, Any] = {}
    for item, text in zip(fields(CurveRow), cells, strict=True):
        try:
            values[item.name] = _READERS[str(item.type)](text)
        except ValueError:
            raise ArtifactError(f"{where}, {item.name}: got {text[:60]!r}; allowed: {_WORDS[str(item.type)]}") from None
    return CurveRow(**values)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _by_group(text: str) -> ByGroup:
    value = json.loads(text) if text else {}
    if not isinstance(value, dict):
        raise ValueError
    return {str(name): None if number is None else float(number) for name, number in value.items()}


def _names(text: str) -> tuple[str, ...]:
    value = json.loads(text) if text else []
    if not isinstance(value, list):
        raise ValueError
    return tuple(map(str, value))


_READERS: Mapping[str, Any] = {
    "str": str,
    "int": int,
    "bool": _boolean,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
    "ByGroup": _by_group,
    "tuple[str, ...]": _names,
}
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "bool": "true | false",
    "float": "a number",
    "float | None": "a number, or nothing",
    "ByGroup": "a JSON object of numbers",
    "tuple[str, ...]": "a JSON list of names",
}


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False) if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else repr(float(value)) if isinstance(value, float) else str(value)


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    CsvWriter(out).writerow(cells)
    return out.getvalue()
