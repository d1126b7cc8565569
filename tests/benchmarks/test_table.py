import doctest
import importlib
import itertools
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import bench_repro, machine, results, table
from benchmarks.table import Pairs, Row, alternate, as_json, exact

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"cpu": "a", "instructions": "AVX2", "cores": 2}


def row(id="demo/a", ratio=1.0, **fields):
    return Row(id, "a demonstration", ratio, 1.0, ratio, ratio, ratio, 5, **fields)


@pytest.mark.parametrize("module", [table, results, bench_repro], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


class TestAlternate:
    def test_order_swaps_and_warm_up_does_not_count(self):
        ran, now = [], [0.0]

        def work(name, seconds):
            ran.append(name)
            now[0] += seconds

        lasts = {"baseline": itertools.count(2), "ours": itertools.count(10)}
        ways = [lambda name=name: work(name, next(lasts[name])) for name in ("baseline", "ours")]
        pairs = alternate(*ways, rounds=3, clock=lambda: now[0], warm_up=1)
        assert ran == ["ours", "baseline", "baseline", "ours"] * 2
        assert pairs == Pairs((3, 4, 5), (11, 12, 13))
        assert pairs.ratio == 12 / 4

    def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians(self):
        assert Pairs((1.0, 2.0, 10.0), (4.0, 2.0, 30.0)).row("x", "").ratio == 3.0

    def test_counted_rows_have_one_round(self):
        counted = exact("x", "", 3, 2, wanted=None, unit="bytes")
        assert (counted.ratio, counted.low, counted.high, counted.rounds) == (1.5, 1.5, 1.5, 1)


class TestWorse:
    @pytest.mark.parametrize(
        ("fields", "before", "same", "expected"),
        [
            ({"ratio": 1.15}, 1.0, True, None),
            ({"ratio": 1.16}, 1.0, True, "ratio 1.16 is worse than the committed 1.00 by 16 %; allowed: 15 %"),
            ({"ratio": 0.5}, 1.0, True, None),
            ({"ratio": 1.16}, 1.0, False, None),
            ({"ratio": 1.6}, 1.0, False, "ratio 1.60 is worse than the committed 1.00 by 60 %; allowed: 50 %"),
            ({"ratio": 1.01, "unit": "bytes"}, 1.0, True, "by 1 %; allowed: 0.1 %"),
            ({"ratio": 1.01, "unit": "bytes"}, 1.0, False, "by 1 %; allowed: 0.1 %"),
            ({"ratio": 1.26, "wanted": 1.2}, 1.26, True, None),
            ({"ratio": 1.27, "wanted": 1.2}, 1.26, True, "ratio 1.27 is beyond what is wanted, ≤ 1.2"),
            ({"ratio": 1.2, "wanted": 1.2, "unit": "bytes"}, 1.2, True, None),
            ({"ratio": 1.21, "wanted": 1.2, "unit": "bytes"}, 1.21, True, "ratio 1.21 is beyond what is wanted, ≤ 1.2"),
            ({"ratio": 1.5, "wanted": 1.2}, 1.5, True, "ratio 1.50 is beyond what is wanted, ≤ 1.2"),
            ({"ratio": 1.5, "wanted": 1.2}, None, True, "ratio 1.50 is beyond what is wanted, ≤ 1.2"),
            ({"ratio": 9.0}, None, True, None),
        ],
    )
    def test_a_ratio_beside_the_committed_one(self, fields, before, same, expected):
        reason = results.worse(row(**fields), None if before is None else row(ratio=before), same_machine=same)
        assert reason is None if expected is None else reason.endswith(expected)

    def test_both_reasons_are_told(self):
        reason = results.worse(row(ratio=2.0, wanted=1.2), row(ratio=1.0), same_machine=True)
        assert reason.count("; ") == 2 and "wanted" in reason and "committed" in reason


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path):
        rows = [row(wanted=1.2, note="a note"), row("demo/b", 0.123456)]
        results.write_results(rows, MACHINE, tmp_path)
        found, machine = results.read_results(tmp_path / "results.json")
        assert list(found) == ["demo/a", "demo/b"] and machine == MACHINE
        assert found["demo/a"] == rows[0] and found["demo/b"].ratio == 0.1235
        text = (tmp_path / "results.md").read_text()
        assert "- cpu: a" in text and "| demo/a | a demonstration | 1 s | 1 s | 1.00 | 1.00–1.00 | 5 | ≤ 1.2 |" in text

    def test_empty_notes_are_left_out(self):
        assert "note" not in as_json(row()) and as_json(row())["wanted"] is None

    def test_the_committed_table_is_whole(self):
        found, machine = results.read_results()
        assert {id.split("/")[0] for id in found} == {name.removeprefix("bench_") for name in command.NAMES}
        assert results.MARKDOWN.read_text(encoding="utf-8") == results.as_markdown(found.values(), machine)
        assert {"cpu", "cores", "threads", "memory_gb", "gpu", "python", "torch", "onnxruntime", "clock"} <= set(
            machine
        )


class TestCommand:
    @pytest.fixture
    def benches(self, monkeypatch, tmp_path):
        """Two benchmarks with made-up rows, the second of which fails after its first."""
        made = {"bench_one": ([row("one/a", 1.0), row("one/b", 2.0)], True), "bench_two": ([row("two/a", 1.0)], False)}
        asked = []

        def measured(name, **options):
            asked.append((name, options))
            return made[name]

        monkeypatch.setattr(command, "NAMES", tuple(made))
        monkeypatch.setattr(command, "measured", measured)
        monkeypatch.setattr(command, "describe_machine", lambda threads: MACHINE)
        monkeypatch.setattr(results, "FOLDER", tmp_path)
        return made, asked

    def against(self, tmp_path, rows, machine=MACHINE):
        results.write_results(rows, machine, tmp_path)
        return ["--check", "--against", str(tmp_path / "results.json")]

    def test_the_whole_table_is_written(self, benches, tmp_path):
        made, _ = benches
        made["bench_two"] = (made["bench_two"][0], True)
        assert command.main([]) == 0
        assert list(results.read_results(tmp_path / "results.json")[0]) == ["one/a", "one/b", "two/a"]

    def test_a_failure_is_named_and_the_others_run(self, benches, tmp_path, capsys):
        assert command.main([]) == 1
        assert [name for name, _ in benches[1]] == ["bench_one", "bench_two"]
        assert capsys.readouterr().err == "bench_two: failed (see above)\n"
        assert not (tmp_path / "results.json").exists()

    @pytest.mark.parametrize("arguments", [["bench_one"], ["bench_one", "--quick"]])
    def test_a_part_does_not_replace_the_whole(self, benches, tmp_path, arguments):
        assert command.main(arguments) == 0
        assert benches[1] == [("bench_one", {"quick": "--quick" in arguments, "threads": 1})]
        assert not (tmp_path / "results.json").exists()
        (tmp_path / "there").mkdir()
        assert command.main([*arguments, "--to", str(tmp_path / "there")]) == 0
        assert (tmp_path / "there/results.md").exists()

    def test_an_unknown_name(self, benches, capsys):
        assert command.main(["bench_three"]) == 2
        assert capsys.readouterr().err == "benchmarks: got bench_three; allowed: bench_one | bench_two\n"

    def test_nothing_to_compare_with(self, benches, tmp_path, capsys):
        assert command.main(["bench_one", "--check", "--against", str(tmp_path / "none.json")]) == 2
        assert capsys.readouterr().err.startswith(f"--against: got {tmp_path}/none.json; allowed: a results.json")

    def test_the_check_passes_and_leaves_the_table(self, benches, tmp_path, capsys):
        arguments = self.against(tmp_path, [row("one/a", 0.95), row("two/a", 0.1)])
        before = (tmp_path / "results.json").read_bytes()
        assert command.main(["bench_one", *arguments]) == 0
        assert capsys.readouterr().out.splitlines()[-2:] == ["ok   one/a", "new  one/b"]
        assert (tmp_path / "results.json").read_bytes() == before

    def test_the_check_fails(self, benches, tmp_path, capsys):
        arguments = self.against(tmp_path, [row("one/a", 0.5), row("one/b", 2.0)])
        assert command.main(["bench_one", *arguments]) == 1
        told = "FAIL one/a: ratio 1.00 is worse than the committed 0.5 by 100 %; allowed: 15 %"
        assert told in capsys.readouterr().out.splitlines()

    @pytest.mark.parametrize(("quick", "code"), [([], 1), (["--quick"], 0)])
    def test_a_row_that_is_gone(self, benches, tmp_path, capsys, quick, code):
        arguments = self.against(tmp_path, [row("one/a"), row("one/b", 2.0), row("one/c")])
        assert command.main(["bench_one", *arguments, *quick]) == code
        assert ("FAIL one/c: in the committed table, not measured" in capsys.readouterr().out) is bool(code)

    def test_another_machine_is_said(self, benches, tmp_path, capsys):
        arguments = self.against(tmp_path, [row("one/a", 0.8), row("one/b", 2.0)], {**MACHINE, "cpu": "b"})
        assert command.main(["bench_one", *arguments]) == 0
        assert "another processor than the committed table's (b)" in capsys.readouterr().out


class TestMeasured:
    """The process of its own, with a benchmark that measures nothing."""

    @pytest.fixture
    def bench(self, tmp_path, monkeypatch):
        def write(text):
            (tmp_path / "benchmarks").mkdir()
            for name in ("__init__", "measure", "table", "results"):
                (tmp_path / f"benchmarks/{name}.py").write_text((ROOT / f"benchmarks/{name}.py").read_text())
            body = "from benchmarks.table import exact\ndef rows(quick):\n"
            body += "    yield exact('demo/a', 'x', 1 + quick, 2, wanted=None, unit='bytes')\n"
            (tmp_path / "benchmarks/bench_demo.py").write_text(body + text)
            monkeypatch.setattr(results, "FOLDER", tmp_path / "benchmarks")

        return write

    def test_rows_arrive(self, bench):
        bench("")
        rows, well = command.measured("bench_demo", quick=True, threads=1)
        assert well and rows == [exact("demo/a", "x", 2, 2, wanted=None, unit="bytes")]

    def test_rows_before_a_failure_arrive(self, bench, capfd):
        bench("    raise RuntimeError('broken')\n")
        rows, well = command.measured("bench_demo", quick=False, threads=1)
        assert not well and [row.ratio for row in rows] == [0.5]
        assert "RuntimeError: broken" in capfd.readouterr().err

    def test_a_row_of_another_name_is_refused(self, bench, capfd):
        bench("    yield exact('other/a', 'x', 1, 2, wanted=None, unit='bytes')\n")
        assert command.measured("bench_demo", quick=False, threads=1)[1] is False
        assert "bench_demo: got a row 'other/a'; allowed: names that begin with 'demo/'" in capfd.readouterr().err


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_has_rows(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").rows)


def test_the_processor_is_told_apart(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n")
    assert machine.cpu_model(info) == "AMD EPYC (cpu family 25, model 17)"
    info.write_text("processor\t: 0\n")
    assert machine.cpu_model(info)
    assert machine.cpu_model(tmp_path / "none")


def test_a_shell_command_for_every_out(tmp_path):
    """The made-up stages write what dvc.yaml declares."""
    import subprocess

    import yaml

    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in pipeline.values():
        for path in bench_repro.out_paths(stage):
            subprocess.run(bench_repro.writing(path, ()), shell=True, cwd=tmp_path, check=True)  # noqa: S602
            assert (tmp_path / path).exists()
