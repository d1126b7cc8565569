"""The registry: a plug-in is a file."""

from __future__ import annotations

import pytest

from fairquant import plugins
from fairquant.errors import ConfigError


def test_names_are_the_public_files_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "ROOT", tmp_path / "fairquant")
    folder = tmp_path / "fairquant/reduce"
    folder.mkdir(parents=True)
    for name in ("b.py", "a.py", "_shared.py", "__init__.py", "notes.txt"):
        (folder / name).write_text("")
    plugins.names.cache_clear()
    try:
        assert plugins.names("reducer") == ("a", "b")
    finally:
        plugins.names.cache_clear()


def test_load_returns_the_module():
    assert plugins.load("reducer", "max").__name__ == "fairquant.reduce.max"


@pytest.mark.parametrize("name", ["no_such", "_arrays", "__init__", "", "../reduce/max", "max.py"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError) as error:
        plugins.load("reducer", name)
    assert str(error.value) == f"reducer: got {name!r}; allowed: {' | '.join(plugins.names('reducer'))}"


def test_folders_exist():
    for kind in plugins.KINDS.values():
        assert (kind.folder / "__init__.py").is_file()
