"""Whether the last run passed its gates, for people and for CI: ``python -m fairquant.check``.

Prints the gates and the group tables of metrics/evaluate.json and of the exported files (metrics/export.json). Exit
code 0: every gate passed, or none is set; 1: a gate failed; 2: a mistake, such as a record of other limits than those
in params.yaml, which would prove nothing, or of a run that exported nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairquant.artifacts import read_json
from fairquant.config import load_config
from fairquant.config.base import Section
from fairquant.errors import ArtifactError
from fairquant.evaluate.gates import limits
from fairquant.report.cells import as_lines, as_text
from fairquant.report.details import gate_table, harmed_line
from fairquant.report.export_tables import accuracy_cells, agreement_line
from fairquant.report.tables import group_table
from fairquant.terminal import failed, show

METRICS, EXPORT, PARAMS = "metrics/evaluate.json", "metrics/export.json", "params.yaml"


@dataclass(frozen=True)
class Record:
    """What one stage wrote of its gates.

    Attributes:
        metrics: the parsed file.
        name: of the file, for errors.
        section: the limits now in force.
        key: where these stand in params.yaml.
        stage: who writes the file.
    """

    metrics: Mapping[str, Any]
    name: str
    section: Section
    key: str = "gates"
    stage: str = "evaluate"

    @property
    def gates(self) -> Mapping[str, Mapping[str, Any]]:
        """The gates as recorded."""
        recorded: Mapping[str, Mapping[str, Any]] = self.metrics.get("gates", {}).get("gate", {})
        return recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the gates and the group table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fairquant.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metrics", default=METRICS, help=f"what the evaluate stage wrote, default {METRICS}")
    parser.add_argument("--export", default=EXPORT, help=f"what the export stage wrote, default {EXPORT}")
    parser.add_argument("--params", default=PARAMS, help=f"where the limits stand, default {PARAMS}")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.params, meta=None)
        evaluate = Record(read_json(options.metrics), options.metrics, config.gates)
        export = Record(read_json(options.export), options.export, config.export.gates, "export.gates", "export")
        text, passed = verdict(evaluate, export, params=options.params)
        show(text)
    except Exception as error:
        return failed(error)
    return 0 if passed else 1


def verdict(evaluate: Record, export: Record, *, params: str = PARAMS) -> tuple[str, bool]:
    """Return the group tables and the gates as text, and whether every gate passed.

    Args:
        evaluate: what the evaluate stage wrote.
        export: what the export stage wrote.
        params: name of the file the limits were read from, for errors.

    Raises:
        ArtifactError: a record is of other limits, or not what its stage writes.
    """
    parts = [*_checked(evaluate, _groups, params), *_checked(export, _exported, params)]
    failed = [*_failed(evaluate), *(f"export.{name}" for name in _failed(export))]
    sentence = _sentence(len(evaluate.gates) + len(export.gates), failed, params)
    return "\n\n".join(part for part in [*parts, sentence] if part), not failed


def _groups(metrics: Mapping[str, Any]) -> list[str]:
    return [as_text(group_table(metrics)), harmed_line(metrics)]


def _exported(metrics: Mapping[str, Any]) -> list[str]:
    cells = accuracy_cells(metrics)
    return [*(["Exported files, test accuracy:", as_text(cells)] if cells else []), as_lines([agreement_line(metrics)])]


def _checked(record: Record, tables: Callable[[Mapping[str, Any]], list[str]], params: str) -> list[str]:
    """Return the tables of a record and its gates; raise ``ArtifactError`` where it is not to be trusted."""
    try:
        _require_same_limits(record, params)
        _require_true_verdicts(record)
        return [*tables(record.metrics), as_text(gate_table(record.metrics)) if record.gates else ""]
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        reason = f"a record that does not fit ({type(error).__name__}: {error})"
        raise ArtifactError(
            f"{record.name}: got {reason}; allowed: what the {record.stage} stage writes (dvc repro)"
        ) from None


def _require_same_limits(record: Record, params: str) -> None:
    """Raise ``ArtifactError`` unless the record is of the limits now in force."""
    recorded, now = {name: gate["limit"] for name, gate in record.gates.items()}, limits(record.section)
    for name in sorted(recorded.keys() | now.keys()):
        old, new = recorded.get(name), now.get(name)
        if old != new:
            texts = ["no limit" if limit is None else f"limit {limit}" for limit in (old, new)]
            raise ArtifactError(
                f"{record.name}: {record.key}.{name}: got a record of {texts[0]}; allowed: {texts[1]}, as in {params} "
                "(dvc repro)"
            )


def _require_true_verdicts(record: Record) -> None:
    """Raise ``ArtifactError`` where a recorded verdict is not what value and limit say: somebody wrote it by hand."""
    for name, gate in record.gates.items():
        value, limit, passed = gate["value"], gate["limit"], gate["passed"]
        if passed is not (value is not None and value <= limit):
            raise ArtifactError(
                f"{record.name}: {record.key}.{name}: got passed {passed!r} for value {value} and limit {limit}; "
                f"allowed: what the {record.stage} stage writes (dvc repro)"
            )


def _failed(record: Record) -> list[str]:
    return [name for name, gate in record.gates.items() if not gate["passed"]]


def _sentence(number: int, failed: Sequence[str], params: str) -> str:
    if not number:
        return f"No gates are set ({params}, sections gates and export.gates)."
    if not failed:
        return f"Passed: {number} of {number} gates."
    return f"FAILED: {len(failed)} of {number} gates ({', '.join(failed)})."


if __name__ == "__main__":
    raise SystemExit(main())
