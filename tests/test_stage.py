"""What every stage does first and last."""

from __future__ import annotations

import logging

import pytest

from fairquant import stage
from fairquant.config import Config
from fairquant.errors import ConfigError, DataError, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    return tmp_path


def test_main_gets_what_it_declares(folder):
    seen = []
    stage.run(lambda config: seen.append((config.seed, config.data.name)), reads=("seed", "data"))
    assert seen == [(3, Config().data.name)]


def test_main_does_not_get_what_it_does_not_declare(folder):
    with pytest.raises(AttributeError, match="reads 'reducer' without declaring it; declared: seed"):
        stage.run(lambda config: print(config.reducer), reads=("seed",))


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError])
def test_a_user_s_mistake_is_one_line_and_exit_code_2(folder, capsys, kind):
    def main(config):
        raise kind("several\n  lines")

    with pytest.raises(SystemExit) as stop:
        stage.run(main, reads=())
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: several lines\n"


def test_bad_params_stop_before_main(folder, capsys):
    (folder / "params.yaml").write_text("seed: x\n")
    with pytest.raises(SystemExit) as stop:
        stage.run(lambda _: pytest.fail("main ran"), reads=())
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: params.yaml: seed: got 'x'; allowed: ")


def test_an_interrupt_is_not_a_traceback(folder):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        stage.run(main, reads=())
    assert stop.value.code == 130


def test_a_bug_keeps_its_traceback(folder):
    with pytest.raises(ZeroDivisionError):
        stage.run(lambda _: logging.info("%s", 1 / 0), reads=())
