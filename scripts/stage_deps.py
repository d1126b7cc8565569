"""What a stage imports, found by reading the code: DVC does not look into imports, so dvc.yaml must list the files.

``python -m scripts.stage_deps assign`` prints the deps of a stage, ``--write`` brings dvc.yaml up to date (only lines
of ``deps`` blocks that name fairquant/ or stages/ change), ``--check`` exits 1 where they differ. Every import counts:
those inside functions, those for type checking, and the ``__init__`` of every package above a module. Of a plug-in kind
that a stage loads (``plugins.load("reducer", ...)``) every file counts, and what any of them imports. Loading plug-ins
to validate params.yaml (``fairquant.config``) counts for nothing: the validated value is what a stage depends on. A
package of which every module counts is one dep, its folder: DVC compares the same files in less time
(docs/decisions/014).
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fairquant import plugins

ROOT = Path(__file__).resolve().parents[1]
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
        if name in ("load", "load_plugin") and node.args[0].value in plugins.KINDS:
            kinds.add(str(node.args[0].value))
    return frozenset(kinds)


def with_plugins(files: set[Path], root: Path = ROOT) -> set[Path]:
    """Return ``files``, every file of the plug-in kinds they load, and all that those reach."""
    while True:
        folders = [Path(*plugins.KINDS[kind].package.split(".")) for kind in kinds_loaded(files, root)]
        found = {path.relative_to(root) for folder in folders for path in (root / folder).glob("**/*.py")}
        if found <= files:
            return files
        files = files.union(*(closure(file, root) for file in found))


def whole_packages(files: set[Path], root: Path = ROOT) -> set[Path]:
    """Return ``files``, with the folder in place of a package's modules where all of them are there.

    The top package stays apart, and so does a package of one module: a second would count before anything imports it.
    """
    packages: dict[Path, set[Path]] = {}
    for module in (path.relative_to(root) for path in root.glob("fairquant/*/**/*.py")):
        for folder in module.parents[:-2]:
            packages.setdefault(folder, set()).add(module)
    whole = {folder for folder, modules in packages.items() if len(modules) > 1 and modules <= files}
    return {next((folder for folder in reversed(file.parents) if folder in whole), file) for file in files}


def stage_deps(stage: str, root: Path = ROOT) -> list[str]:
    """Return the sorted code deps of ``stage``: modules, and the folders of packages that count as a whole."""
    files = with_plugins(closure(Path("stages", f"{stage}.py"), root), root)
    return sorted(map(str, whole_packages(files, root)))


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
