"""docs/faults.md: every fault names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/faults.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")


def rows() -> list[list[str]]:
    """Return the cells of every row of every table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not set(line) <= set("|-: ")]


def definitions(path: Path) -> set[str]:
    """Return the functions of a test file, those in classes as ``Class::function``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + item.name for item in inner if isinstance(item, ast.FunctionDef)}
    return found


def test_both_parts_have_the_same_columns():
    heads = [row for row in rows() if row[0] == "fault"]
    assert heads == [["fault", "what happens", "exit code", "test"]] * 2


@pytest.mark.parametrize("row", [row for row in rows() if row[0] != "fault"], ids=lambda row: row[0][:60])
def test_every_fault_names_tests_that_exist(row):
    assert len(row) == 4, row
    named = NAMED.findall(row[3])
    assert named, row[3]
    for file, test in named:
        assert test.removeprefix("::") in definitions(ROOT / file), f"{file}{test}"
