"""The shape of the code base: who imports whom, what a stage depends on, what stays out of stages and plug-ins."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest
import yaml

from fairquant import plugins
from scripts import stage_deps

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    "errors", "terminal", "plugins", "config", "presets", "artifacts", "devices", "parallel", "predictions", "data",
    "models", "importance", "reduce", "allocate", "cost", "quantize", "train", "postprocess", "evaluate", "assign",
    "modes", "export", "report", "stage", "check", "predict",
)  # fmt: skip
STAGES = ("prepare", "pretrain", "baseline", "importance", "assign", "quantize", "evaluate", "export", "report")
TORCH_FREE = (
    "fairquant", "fairquant.config", "fairquant.plugins", "fairquant.artifacts", "fairquant.predictions",
    "fairquant.reduce", "fairquant.assign.run", "fairquant.evaluate.summary", "fairquant.report.write",
    "fairquant.evaluate.report", "fairquant.stage", "fairquant.check", "fairquant.predict",
    *(f"stages.{name}" for name in STAGES),
)  # fmt: skip
CODE = sorted([*ROOT.glob("fairquant/**/*.py"), *ROOT.glob("stages/*.py")])


@cache
def loaded_by(*modules: str) -> tuple[str, ...]:
    """Return the names in sys.modules of a fresh process that imported ``modules``."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def layer(file: Path) -> str:
    """The package, or top-level module, of a file below fairquant/."""
    return file.parts[1].removesuffix(".py")


@pytest.mark.parametrize("file", [path.relative_to(ROOT) for path in CODE if path.parts[-2] != "stages"], ids=str)
def test_packages_import_only_those_above(file):
    if file == Path("fairquant/__init__.py"):
        return
    for imported in stage_deps.imports(file):
        if imported != Path("fairquant/__init__.py"):
            assert imported.parts[0] == "fairquant", f"{file} imports {imported}"
            assert LAYERS.index(layer(imported)) <= LAYERS.index(layer(file)), f"{file} imports {imported}"


def test_every_stage_is_in_the_pipeline():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert tuple(pipeline) == STAGES
    assert {path.stem for path in ROOT.glob("stages/*.py")} == set(STAGES)
    for name, stage in pipeline.items():
        assert stage["cmd"] == f"python -m stages.{name}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_deps_are_its_import_closure(stage):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = [dep for dep in declared if dep.startswith(("fairquant/", "stages/"))]
    assert code == stage_deps.stage_deps(stage), "run: python -m scripts.stage_deps --write"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_deps_hold_what_importing_the_stage_loads(stage):
    """An oracle that does not read the code: every module of ours that the stage's import really loads is a dep."""
    names = [name for name in loaded_by(f"stages.{stage}") if name.split(".")[0] in ("fairquant", "stages")]
    files = [str(file) for name in names if (file := stage_deps.module_file(name)) is not None]
    assert f"stages/{stage}.py" in files
    deps = set(stage_deps.stage_deps(stage))
    assert [file for file in files if not deps & {file, *map(str, Path(file).parents)}] == []


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_kind_of_plugin_is_a_dep(kind):
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    folder = Path(*plugins.KINDS[kind].package.split("."))
    assert any({str(folder), str(folder.parent)} & set(stage["deps"]) for stage in pipeline.values())


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_thin(stage):
    source = (ROOT / f"stages/{stage}.py").read_text()
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in kinds:
            lines.update(range(token.start[0], token.end[0] + 1))
    assert len(lines) <= 40


@pytest.mark.parametrize(
    "file",
    [path.relative_to(ROOT) for path in CODE if not {"config", "plugins.py"} & set(path.relative_to(ROOT).parts)],
    ids=str,
)
def test_no_branch_on_a_plugin_name(file):
    known = {name for kind in plugins.KINDS for name in plugins.names(kind)} - {"none"}
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Compare):
            constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            constants = [node.value.value]
        else:
            continue
        assert not known & {value for value in constants if isinstance(value, str)}, f"{file}:{node.lineno}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_does_not_load_torch(module):
    assert not {"torch", "torchvision", "timm"} & set(loaded_by(module))


PLUGINS = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]


def test_every_kind_has_plugins():
    assert {kind for kind, _ in PLUGINS} == set(plugins.KINDS)


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_plugin_has_its_function_and_docstrings(kind, name):
    module = plugins.load(kind, name)
    function = getattr(module, plugins.KINDS[kind].function)
    assert callable(function)
    assert function.__module__ == module.__name__
    assert module.__doc__
    assert function.__doc__


def test_importing_every_plugin_does_not_load_torch():
    """Options are validated before torch is imported, so plug-ins with options must load without it."""
    kinds = ("dataset", "reducer", "loss", "postprocess")
    modules = [f"{plugins.KINDS[kind].package}.{name}" for kind, name in PLUGINS if kind in kinds]
    assert "torch" not in loaded_by(*modules)


class TestClosure:
    """The reader of imports itself, on a small tree."""

    @pytest.fixture
    def tree(self, tmp_path):
        files = {
            "stages/demo.py": "from fairquant import stage\ndef main():\n    from fairquant.data.store import Store\n",
            "fairquant/__init__.py": "",
            "fairquant/stage.py": "import typing\nif typing.TYPE_CHECKING:\n    import fairquant.errors\n",
            "fairquant/errors.py": "",
            "fairquant/unused.py": "",
            "fairquant/data/__init__.py": "from . import raw\n",
            "fairquant/data/raw.py": "NAME = 'fairquant.data.named'\n",
            "fairquant/data/named.py": "",
            "fairquant/data/store.py": "from ..errors import UserError\nimport os\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path, set(files)

    def test_it_follows_every_import(self, tree):
        root, files = tree
        reached = {str(path) for path in stage_deps.closure(Path("stages/demo.py"), root)}
        assert reached == files - {"fairquant/unused.py"}

    def test_loaded_kinds_are_found(self, tree):
        root, _ = tree
        (root / "fairquant/data/raw.py").write_text(
            "from fairquant import plugins\nplugins.load('reducer', name)\nplugins.load(kind, name)\nopen('x')\n"
        )
        assert stage_deps.kinds_loaded({Path("fairquant/data/raw.py")}, root) == {"reducer"}

    def test_every_file_of_a_kind_counts_with_what_it_imports(self, tree):
        root, _ = tree
        (root / "fairquant/train/losses").mkdir(parents=True)
        for name in ("__init__", "demo", "_shared"):
            (root / f"fairquant/train/losses/{name}.py").write_text("from fairquant import unused\n")
        (root / "fairquant/stage.py").write_text("from fairquant import plugins\nplugins.load('loss', name)\n")
        files = stage_deps.with_plugins(stage_deps.closure(Path("stages/demo.py"), root), root)
        found = {str(file) for file in files}
        assert {f"fairquant/train/losses/{name}.py" for name in ("__init__", "demo", "_shared")} <= found
        assert "fairquant/unused.py" in found

    def test_a_package_is_one_dep_where_all_of_it_counts(self, tree):
        root, _ = tree
        names = ("fairquant/data/deep/one.py", "fairquant/data/deep/__init__.py", "fairquant/lonely/__init__.py")
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("")
        every = {path.relative_to(root) for path in root.glob("fairquant/**/*.py")}
        whole = {str(path) for path in stage_deps.whole_packages(every, root)}
        assert whole == {
            "fairquant/data", "fairquant/lonely/__init__.py",
            *(f"fairquant/{name}.py" for name in ("__init__", "errors", "stage", "unused")),
        }  # fmt: skip
        part = stage_deps.whole_packages(every - {Path("fairquant/data/raw.py")}, root)
        assert {"fairquant/data/store.py", "fairquant/data/deep"} <= {str(path) for path in part}
        assert Path("fairquant/data") not in part

    def test_rewriting_touches_code_deps_only(self, tree):
        root, files = tree
        before = (
            "# note\nstages:\n  demo:\n    cmd: x\n    deps:\n    - data/prepared\n    - fairquant/old.py\n"
            "    params:\n    - seed\n"
        )
        code = "".join(
            f"    - {name}\n"
            for name in ("fairquant/__init__.py", "fairquant/data", "fairquant/errors.py", "fairquant/stage.py")
        )
        code += "    - stages/demo.py\n"
        after = before.replace("    - fairquant/old.py\n", code)
        assert stage_deps.rewrite(before, root) == after
        assert stage_deps.rewrite(after, root) == after
        assert stage_deps.rewrite("stages:\n  demo:\n    deps: []\n", root) == "stages:\n  demo:\n    deps:\n" + code
