"""What a stage imports, found by reading the code: DVC does not look into imports, so dvc.yaml must list the files.

``python -m scripts.stage_deps assign`` prints the deps of a stage, ``--write`` brings dvc.yaml up to date (only lines
of ``deps`` blocks that name fairquant/ or stages/ change), ``--check`` exits 1 where they differ. Every import counts:
those inside functions, those for type checking, and the ``__init__`` of every package above a module. A plug-in kind
that a stage loads (``plugins.load("reducer", ...)``) is a templated dep, ``fairquant/reduce/${reducer}.py``, so that
only the chosen file counts (with ``TEMPLATED = False`` the folder is the dep, and all its files count); what any
plug-in of the kind imports counts too. Loading plug-ins to validate params.yaml (``fairquant.config``) counts for
nothing: the validated value is what a stage depends on.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARAMETER = {
    "dataset": "data.name",
    "importance": "importance_metric",
    "reducer": "reducer",
    "allocator": "allocator",
    "scale": "quantize.scale",
    "loss": "quantize.fairness_loss",
    "mode": "quant_mode",
    "postprocess": "evaluate.postprocess",
}
"""The parameter that chooses the plug-in of each kind."""

TEMPLATED = False

LOADERS = ("fairquant.plugins", "fairquant.config.load", "fairquant.config.schema", "fairquant.config.base")
"""Modules that name plug-ins without depending on them."""


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """Return the file of module ``name`` relative to ``root``, or None where it is not ours.

    >>> str(module_file("fairquant.errors"))
    'fairquant/errors.py'
    """
    if name.split(".")[0] not in ("fairquant", "stages"):
        return None
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / candidate).is_file():
            return candidate
    return None


@cache
def _tree(file: Path, root: Path) -> ast.Module:
    return ast.parse((root / file).read_text(encoding="utf-8"))


def _imported_names(file: Path, root: Path) -> Iterator[str]:
    """Yield every dotted name that ``file`` imports, or writes as a string that names one of our modules."""
    package = list(file.parent.parts)
    for node in ast.walk(_tree(file, root)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("fairquant."):
            yield node.value


@cache
def imports(file: Path, root: Path = ROOT) -> frozenset[Path]:
    """Return our files that ``file`` imports directly, packages above them included."""
    if str(file.with_suffix("")).replace("/", ".") in LOADERS[:1]:
        return frozenset({Path("fairquant/__init__.py"), Path("fairquant/errors.py")})
    found = set()
    for name in _imported_names(file, root):
        if module_file(name, root) is None:
            continue
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            target = module_file(".".join(parts[:depth]), root)
            if target is not None:
                found.add(target)
    return frozenset(found)


def closure(start: Path, root: Path = ROOT) -> set[Path]:
    """Return ``start`` and every file of ours that importing it can reach."""
    reached, todo = set(), [start]
    while todo:
        file = todo.pop()
        if file not in reached:
            reached.add(file)
            todo += imports(file, root)
    return reached


def kinds_loaded(files: set[Path], root: Path = ROOT) -> set[str]:
    """Return the plug-in kinds that ``files`` load by ``plugins.load("<kind>", ...)``."""
    return {kind for file in files for kind in _kinds_of(file, root)}


@cache
def _kinds_of(file: Path, root: Path) -> frozenset[str]:
    if str(file.with_suffix("")).replace("/", ".") in LOADERS:
        return frozenset()
    kinds = set()
    for node in ast.walk(_tree(file, root)):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("load", "load_plugin") and node.args[0].value in PARAMETER:
            kinds.add(str(node.args[0].value))
    return frozenset(kinds)


def stage_deps(stage: str, root: Path = ROOT) -> list[str]:
    """Return the sorted code deps of ``stage``: files, and one templated path per plug-in kind it loads."""
    from fairquant import plugins

    files = closure(Path("stages", f"{stage}.py"), root)
    kinds: set[str] = set()
    chosen: set[Path] = set()
    while new := kinds_loaded(files | chosen, root) - kinds:
        for kind in sorted(new):
            kinds.add(kind)
            folder = plugins.KINDS[kind].folder.relative_to(plugins.ROOT.parent)
            for name in plugins.names(kind):
                plugin = folder / f"{name}.py"
                chosen.add(plugin)
                files |= closure(plugin, root) - {plugin}
            files.add(folder / "__init__.py")
    folders = {kind: plugins.KINDS[kind].folder.relative_to(plugins.ROOT.parent) for kind in kinds}
    if TEMPLATED:
        return sorted([*map(str, files), *(f"{folder}/${{{PARAMETER[kind]}}}.py" for kind, folder in folders.items())])
    outside = (file for file in files if file.parent not in folders.values())
    return sorted([*map(str, outside), *map(str, folders.values())])


def rewrite(text: str, root: Path = ROOT) -> str:
    """Return dvc.yaml's ``text`` with the code deps of every stage brought up to date; other lines stay as they are."""
    lines, stage, inside, done = text.splitlines(), "", False, []
    for line in lines:
        if line.startswith("  ") and line[2:3].isalpha() and line.rstrip().endswith(":"):
            stage = line.strip().rstrip(":")
        if inside and line.strip().startswith("- "):
            if not line.strip().removeprefix("- ").startswith(("fairquant/", "stages/")):
                done.append(line)
            continue
        if inside:
            done += [f"    - {dep}" for dep in stage_deps(stage, root)]
        inside = line.strip() in ("deps:", "deps: []")
        done.append("    deps:" if inside else line)
    if inside:
        done += [f"    - {dep}" for dep in stage_deps(stage, root)]
    return "\n".join(done) + "\n"


def main() -> int:
    """Print, write or check the deps."""
    parser = argparse.ArgumentParser(description="the files each stage of dvc.yaml depends on")
    parser.add_argument("stage", nargs="*", help="print the deps of these stages")
    parser.add_argument("--write", action="store_true", help="bring dvc.yaml up to date")
    parser.add_argument("--check", action="store_true", help="exit 1 where dvc.yaml is not up to date")
    options = parser.parse_args()
    for stage in options.stage:
        print(*(f"    - {dep}" for dep in stage_deps(stage)), sep="\n")
    pipeline = ROOT / "dvc.yaml"
    text = pipeline.read_text(encoding="utf-8")
    if options.write:
        pipeline.write_text(rewrite(text), encoding="utf-8")
    if options.check and rewrite(text) != text:
        print("dvc.yaml: code deps are not up to date; run: python -m scripts.stage_deps --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
