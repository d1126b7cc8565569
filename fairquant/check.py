"""Whether the last run passed its gates, for people and for CI: ``python -m fairquant.check``.

Prints the gates and the group table of metrics/evaluate.json. Exit code 0: every gate passed, or none is set; 1: a
gate failed; 2: a mistake, such as a record of other limits than those in params.yaml, which would prove nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fairquant.artifacts import read_json
from fairquant.config import load_config
from fairquant.config.schema import GatesSection
from fairquant.errors import ArtifactError, UserError
from fairquant.evaluate.gates import limits
from fairquant.report.cells import as_text
from fairquant.report.details import gate_table, harmed_line
from fairquant.report.tables import group_table

METRICS, PARAMS = "metrics/evaluate.json", "params.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the gates and the group table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fairquant.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metrics", default=METRICS, help=f"what the evaluate stage wrote, default {METRICS}")
    parser.add_argument("--params", default=PARAMS, help=f"where the limits stand, default {PARAMS}")
    options = parser.parse_args(arguments)
    try:
        section = load_config(options.params, meta=None).gates
        text, passed = verdict(read_json(options.metrics), section, metrics=options.metrics, params=options.params)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(text)
    return 0 if passed else 1


def verdict(
    evaluate: Mapping[str, Any], section: GatesSection, *, metrics: str = METRICS, params: str = PARAMS
) -> tuple[str, bool]:
    """Return the gates and the group table as text, and whether every gate passed.

    Args:
        evaluate: metrics/evaluate.json.
        section: the limits now in force.
        metrics: name of the file ``evaluate`` was read from, for errors.
        params: name of the file ``section`` was read from, for errors.

    Raises:
        ArtifactError: the record is of other limits, or not what the evaluate stage writes.
    """
    try:
        gates = evaluate.get("gates", {}).get("gate", {})
        _require_same_limits({name: gate["limit"] for name, gate in gates.items()}, limits(section), metrics, params)
        _require_true_verdicts(gates, metrics)
        failed = [name for name, gate in gates.items() if not gate["passed"]]
        parts = [as_text(group_table(evaluate)), harmed_line(evaluate), as_text(gate_table(evaluate)) if gates else ""]
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"a record that does not fit ({type(error).__name__}: {error})"
        raise ArtifactError(f"{metrics}: got {reason}; allowed: what the evaluate stage writes (dvc repro)") from None
    return "\n\n".join(part for part in [*parts, _sentence(gates, failed, params)] if part), not failed


def _require_same_limits(recorded: Mapping[str, float], now: Mapping[str, float], metrics: str, params: str) -> None:
    """Raise ``ArtifactError`` unless the record is of the limits now in force."""
    for name in sorted(recorded.keys() | now.keys()):
        old, new = recorded.get(name), now.get(name)
        if old != new:
            texts = ["no limit" if limit is None else f"limit {limit}" for limit in (old, new)]
            raise ArtifactError(
                f"{metrics}: gates.{name}: got a record of {texts[0]}; allowed: {texts[1]}, as in {params} (dvc repro)"
            )


def _require_true_verdicts(gates: Mapping[str, Any], metrics: str) -> None:
    """Raise ``ArtifactError`` where a recorded verdict is not what value and limit say: somebody wrote it by hand."""
    for name, gate in gates.items():
        value, limit, passed = gate["value"], gate["limit"], gate["passed"]
        if passed is not (value is not None and value <= limit):
            raise ArtifactError(
                f"{metrics}: gates.{name}: got passed {passed!r} for value {value} and limit {limit}; allowed: what "
                "the evaluate stage writes (dvc repro)"
            )


def _sentence(gates: Mapping[str, Any], failed: Sequence[str], params: str) -> str:
    if not gates:
        return f"No gates are set ({params}, section gates)."
    if not failed:
        return f"Passed: {len(gates)} of {len(gates)} gates."
    return f"FAILED: {len(failed)} of {len(gates)} gates ({', '.join(failed)})."


if __name__ == "__main__":
    raise SystemExit(main())
