"""What every stage does first and last."""

from __future__ import annotations

import logging
from contextlib import contextmanager

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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "models/x"), "models/x: No space left on device; free some and run"),
        (PermissionError(13, "Permission denied", "report"), "report: Permission denied; allow this user to read and"),
        (MemoryError(), "out of memory; lower batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory (asked for 2.00 GiB); lower"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_exit_code_2(folder, capsys, error, line):
    def main(config):
        raise error

    with pytest.raises(SystemExit) as stop:
        stage.run(main, reads=())
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}") and told.count("\n") == 1


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


def test_main_runs_in_the_context_that_start_returns(folder):
    order = []

    @contextmanager
    def start(config):
        order.append(config.parallel.devices)
        yield
        order.append("ended")

    stage.run(lambda config: order.append(config.seed), reads=("seed",), start=start)
    assert order == [1, 3, "ended"]


@pytest.mark.parametrize(
    ("environ", "speaks"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, True),
    ],
)
def test_the_first_process_of_a_machine_tells_of_params(folder, monkeypatch, capsys, environ, speaks):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (folder / "params.yaml").write_text("seed: x\n")
    with pytest.raises(SystemExit) as stop:
        stage.run(lambda _: None, reads=())
    assert stop.value.code == 2
    assert (capsys.readouterr().err != "") == speaks
