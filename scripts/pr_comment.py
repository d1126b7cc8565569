"""What a pull request does to each group: metrics/evaluate.json at the base and in the workspace, as markdown.

Sizes of the exported files stand beside it, and how far they are from the evaluated model (metrics/export.json).

    python -m scripts.pr_comment BASE            # BASE: a commit, branch or tag

All accuracies are those of the quantized model on its test split. Two different things are marked, in words:

- ``harmed``: compression itself costs the group accuracy, in the workspace (a paired test on the same samples,
  Holm-corrected; ``harm`` in metrics/evaluate.json).
- ``worse`` / ``better``: the group's accuracy in the workspace lies below / above the whole interval that it had at the
  base (for a gap: ``worse`` is above). The two runs are not paired: their samples may differ, the workspace's own
  uncertainty is not added, and nothing is corrected for the number of groups. It is a hint where to look, not a test.
  A group with another number of test samples gets no verdict but ``other test set``.

A base without the file, with a broken one or with other groups is stated, not an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairquant.artifacts import read_json
from fairquant.errors import ArtifactError, UserError
from fairquant.report.cells import as_markdown, escape, percent, points, with_interval
from fairquant.report.details import harmed_line
from fairquant.report.export_tables import FILES, agreement_line, all_gates
from fairquant.report.tables import gap_label
from fairquant.terminal import failed, show

PATH, EXPORT = "metrics/evaluate.json", "metrics/export.json"
HEADER = ("quantized model", "n", "base %", "this change %", "difference", "note")

Interval = Mapping[str, float | None]


@dataclass(frozen=True)
class Measured:
    """A share in [0, 1] of the quantized model, its interval {low, high} where known, and its test samples ``n``."""

    value: float | None
    interval: Interval | None = None
    n: int | None = None
    harmed: bool = False


@dataclass(frozen=True)
class Results:
    """What one metrics/evaluate.json says of the quantized model, by name; ``whole`` is the file."""

    groups: Mapping[str, Measured]
    totals: Mapping[str, Measured]
    gaps: Mapping[str, Measured]
    cost: Mapping[str, float]
    whole: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, metrics: Mapping[str, Any], *, name: str) -> Results:
        """Read the parsed file ``name``; a key it lacks, or one of another kind, raises ``ArtifactError``."""
        try:
            interval, harm = metrics.get("interval", {}), metrics.get("harm", {})
            groups = {
                group: Measured(
                    _number(values["after"]),
                    _after(interval.get("group", {}), group),
                    int(values["n"]),
                    harmed=bool(harm.get(group, {}).get("harmed")),
                )
                for group, values in metrics["group"].items()
            }
            total = sum(int(values["n"]) for values in metrics["group"].values())
            totals = {
                "overall": Measured(_number(metrics["overall"]["after"]), _after(interval, "overall"), total),
                "worst group": Measured(_number(metrics["worst_group"]["after"]), _after(interval, "worst_group")),
            }
            gaps = {
                gap_label(key): Measured(_number(value), _after(interval.get("gap", {}), key))
                for key, value in metrics.get("gap", {}).get("after", {}).items()
            }
            cost = metrics["cost"]
            costs = {"packed MB": float(cost["packed_mb"]), "bits per weight": float(cost["avg_bits"]["by_parameter"])}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{name}: got a file without a usable {error.args[0]!r}; allowed: what the evaluate stage writes"
            ) from None
        return cls(groups, totals, gaps, costs, metrics)

    def with_files(self, export: Mapping[str, Any], *, name: str) -> Results:
        """Add the sizes of the exported files from the parsed file ``name``; errors as those of ``of``."""
        try:
            sizes = {f"{FILES[key]}, MB": float(size) for key, size in export["size"].items() if key in FILES}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{name}: got a file without a usable {error.args[0]!r}; allowed: what the export stage writes"
            ) from None
        return replace(self, cost={**self.cost, **sizes})


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _after(intervals: Mapping[str, Any], key: str) -> Interval | None:
    """Return the interval {low, high} of the quantized model's value ``key``, None where there is none."""
    if key not in intervals:
        return None
    ends = intervals[key]["after"]
    return {"low": _number(ends["low"]), "high": _number(ends["high"])}


def read_base(base: str, folder: Path) -> tuple[Results | None, str]:
    """Return what stands at commit ``base`` of the repository in ``folder``, or None and why there is nothing.

    A name that is no commit raises ``UserError``.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
    if commit is None:
        raise UserError(f"base: got {base!r}; allowed: a commit of this repository (fetch it first: git fetch)")
    text, files = (_git(folder, "show", f"{commit.strip()}:./{path}") for path in (PATH, EXPORT))
    if text is None:
        return None, f"The base has no {PATH}: there is nothing to compare with."
    try:
        metrics = json.loads(text)
        found = Results.of(metrics, name=PATH)
        return (found if files is None else found.with_files(json.loads(files), name=EXPORT)), ""
    except json.JSONDecodeError as error:
        return None, f"The base's metrics are not valid JSON ({error}): there is nothing to compare with."
    except ArtifactError as error:
        return None, f"The base cannot be compared with. {error}"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def verdict(base: Measured, head: Measured, *, smaller_is_better: bool = False) -> str:
    """Return how ``head`` stands to the interval of ``base``: worse | better | other test set | nothing.

    >>> base = Measured(0.8, {"low": 0.75, "high": 0.85}, n=100)
    >>> [verdict(base, Measured(value, n=100)) for value in (0.7, 0.76, 0.9)]
    ['worse', '', 'better']
    >>> verdict(base, Measured(0.7, n=120))
    'other test set'
    """
    if base.n != head.n:
        return "other test set"
    low, high = (None, None) if base.interval is None else (base.interval["low"], base.interval["high"])
    if head.value is None or low is None or high is None:
        return ""
    below, above = ("better", "worse") if smaller_is_better else ("worse", "better")
    return below if head.value < low else above if head.value > high else ""


def comparison(base: Results | None, head: Results) -> list[tuple[str, ...]]:
    """Return the cells of the table: groups, overall, worst group, gaps, size; groups only the base has come last."""
    cells: list[tuple[str, ...]] = [HEADER]
    for name, now in head.groups.items():
        before = None if base is None else base.groups.get(name)
        note = _group_note(before, now, compared=base is not None)
        cells.append(_row(name, before, now, note))
    for name, was in ({} if base is None else base.groups).items():
        if name not in head.groups:
            cells.append((name, str(was.n), percent(was.value), "–", "–", "only at the base"))
    same = base is not None and {k: v.n for k, v in base.groups.items()} == {k: v.n for k, v in head.groups.items()}
    for part, smaller in (("totals", False), ("gaps", True)):
        for name, now in getattr(head, part).items():
            before = None if base is None else getattr(base, part).get(name)
            note = "" if before is None else "other test set"
            if before is not None and same:
                note = verdict(before, now, smaller_is_better=smaller)
            cells.append(_row(name, before, now, note))
    for name, amount in head.cost.items():
        previous = None if base is None else base.cost.get(name)
        change = "–" if previous is None else f"{round(amount - previous, 3) + 0.0:+.3f}"
        cells.append((name, "", "–" if previous is None else f"{previous:.3f}", f"{amount:.3f}", change, ""))
    return cells


def _group_note(before: Measured | None, now: Measured, *, compared: bool) -> str:
    unknown = "only in this change" if compared else ""
    standing = unknown if before is None else verdict(before, now)
    return ", ".join(word for word in ("harmed" if now.harmed else "", standing) if word)


def _row(name: str, before: Measured | None, now: Measured, note: str) -> tuple[str, ...]:
    old = None if before is None else before.value
    change = None if old is None or now.value is None else now.value - old
    n = "" if now.n is None else str(now.n)
    if before is not None and before.n != now.n:
        n = f"{before.n} → {n}"
    return name, n, percent(old), with_interval(now.value, now.interval, percent), points(change), note


def headline(base: Results | None, head: Results) -> list[str]:
    """Return the sentences above the table, most important first."""
    harmed = harmed_line(head.whole) or "Harm per group was not tested in this change."
    if base is None:
        return [harmed]
    worse = [
        name for name, now in head.groups.items() if name in base.groups and verdict(base.groups[name], now) == "worse"
    ]
    if base.whole == head.whole:
        change = "The committed results are those of the base."
    elif worse:
        change = f"Worse than at the base, beyond the base's interval ({len(worse)}): {', '.join(worse)}."
    elif not any(name in base.groups and base.groups[name].interval for name in head.groups):
        change = "The base has no intervals of these groups: no group is called worse or better."
    else:
        change = "No group is worse than at the base beyond the base's interval."
    return [harmed, change]


NOTES = (
    "Committed metrics of the full run, test split. Brackets: bootstrap interval of this change. harmed: compression "
    "costs the group accuracy (paired test on the same samples, Holm-corrected). worse / better: this change lies "
    "outside the base's interval; the two runs are not paired, their test samples may differ even where n is equal, "
    "and nothing is corrected for the number of groups, so read it as a hint, not as a test."
)


def comment(base: Results | None, head: Results, export: Mapping[str, Any], *, reason: str = "") -> str:
    """Return the markdown; ``export`` is this change's metrics/export.json, ``reason`` says why there is no base."""
    gates = all_gates(head.whole, export)
    parts = [
        "### Quantized model per group: base against this change",
        escape(reason),
        *(escape(sentence) for sentence in headline(base, head)),
        as_markdown(comparison(base, head)),
        escape(f"Exported files. {agreement_line(export)}"),
        as_markdown(gates) if gates else "",
        f"<sub>{escape(NOTES)}</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the comment; a user's mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    options = parser.parse_args(arguments)
    try:
        export = read_json(options.root / EXPORT)
        head = Results.of(read_json(options.root / PATH), name=PATH).with_files(export, name=EXPORT)
        base, reason = read_base(options.base, options.root)
        show(comment(base, head, export, reason=reason).removesuffix("\n"))
    except Exception as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
