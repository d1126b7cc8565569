"""Everything wrong with a data set, told at once: one line for people, the full list as csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fairquant import artifacts
from fairquant.data.raw import Problem
from fairquant.data.table import printable

SHOWN = 3
"""How many rows of each kind the one-line summary names."""


def summarise(problems: Sequence[Problem], *, full_list: Path) -> str:
    """Return one line: kinds with counts and the first rows of each, and where the full list is."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    parts = "; ".join(_describe(kind, found) for kind, found in kinds.items())
    noun = "problem" if len(problems) == 1 else "problems"
    drop = "" if any(problem.fatal for problem in problems) else ", or set data.bad_rows: drop"
    return f"{len(problems)} {noun} in the data: {parts}; full list: {full_list}; mend them{drop}"


def _describe(kind: str, found: Sequence[Problem]) -> str:
    if len(found) == 1:
        return f"1 {kind} ({_place(found[0])}{found[0].message})"
    shown = ", ".join(_brief(problem) for problem in found[:SHOWN])
    return f"{len(found)} {kind} ({shown}{', …' if len(found) > SHOWN else ''})"


def _brief(problem: Problem) -> str:
    if problem.row == 0:
        return problem.message.split("; allowed:")[0]
    return _place(problem) + _short(problem.value)


def _place(problem: Problem) -> str:
    if problem.row == 0:
        return ""
    return f"{problem.table} row {problem.row} ".lstrip() if problem.table else f"row {problem.row} "


def _short(value: str) -> str:
    shown = printable(value)
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write the full list as csv with the columns row, kind, value, message; atomically."""
    with artifacts.atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = artifacts.CsvWriter(file)
        writer.writerow(["row", "kind", "value", "message"])
        for problem in problems:
            place = f"{problem.table}: " if problem.table else ""
            writer.writerow([problem.row, problem.kind, printable(problem.value), printable(place + problem.message)])
