"""What a budget means to each method, which points there are, and the csv they go to."""

from __future__ import annotations

import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml

from fairquant import plugins, presets
from fairquant.allocate.bitmap import BitMap
from fairquant.allocate.info import ModelInfo
from fairquant.config.schema import AssignSection
from fairquant.cost.size import size_report
from fairquant.errors import ArtifactError, ConfigError, UserError
from fairquant.report.curves import header_line, read_rows, row_line
from scripts.curves import budgets, methods
from scripts.curves.points import Request, parse_setting, plan, with_settings
from scripts.curves.sheet import Sheet, merge, missing, shard_path
from scripts.suite.plan import apply
from tests.report.curve_rows import row

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
PARAMS = yaml.safe_load(TEXT)
INFO = ModelInfo(
    shapes={"conv": (7, 3, 3, 3), "deep": (5, 7, 1, 1), "fc": (3, 5)},
    kinds={"conv": "conv2d", "deep": "conv2d", "fc": "linear"},
    roles={"first": "conv", "last": "fc", "classifier": "fc"},
    rest=31,
    macs={"conv": 100, "deep": 50, "fc": 15},
)
KNOWN = tuple(name for name in methods.METHODS if not name.startswith("ours"))


def points(method="uniform", *, bits=(2.0,), tunes=("none",), settings=()):
    request = Request((method,), bits, tunes, settings)
    request.check()
    return plan(request, task="faces", params=PARAMS, info=INFO, groups=["a", "b"])


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "widths"),
        [
            (0.4, (0, 1, 2)), (1, (0, 1, 2)), (1.5, (0, 1, 4)), (1.99, (0, 1, 4)), (2, (1, 2, 4)), (2.5, (1, 2, 4)),
            (3, (2, 4, 8)), (4, (2, 4, 8)), (6, (2, 4, 8)), (6.4, (2, 4, 8)), (8, (4, 8, 16)), (12.8, (4, 8, 16)),
        ],
    )  # fmt: skip
    def test_the_ladder_s_average_is_the_budget(self, budget, widths):
        chosen, shares = budgets.ladder(budget)
        assert chosen == widths and shares[1] == 0.4
        assert min(shares) >= 0 and sum(shares) == pytest.approx(1, abs=1e-12)
        average = sum(width * Fraction(share) for width, share in zip(chosen, shares, strict=True))
        assert float(average) == pytest.approx(budget, abs=1e-12)
        AssignSection(bits=chosen, levels=shares)

    def test_the_published_shares(self):
        assert budgets.ladder(4) == ((2, 4, 8), (0.4, 0.4, 0.2))
        assert budgets.ladder(5.2) == ((2, 4, 8), (0.2, 0.4, 0.4))

    @pytest.mark.parametrize("budget", [0.39, 12.81, 0, -1, float("nan"), float("inf")])
    def test_budgets_out_of_reach(self, budget):
        with pytest.raises(UserError, match=r"^--budgets: got .*; allowed: bits per weight from 0\.4 to 12\.8$"):
            budgets.exact(budget)

    @pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 12])
    def test_the_limit_is_the_size_of_uniform_quantization(self, bits):
        widths = {name: np.full(shape[0], bits, np.uint8) for name, shape in INFO.shapes.items()}
        report = size_report(BitMap("per_channel", widths), INFO.shapes, rest=INFO.rest)
        assert budgets.byte_limit(INFO, bits) == report.packed
        assert budgets.packed(INFO, bits)["budget.size_mb"] * 1e6 == pytest.approx(report.packed, abs=1e-6)

    def test_the_limit_between_whole_widths_by_hand(self):
        # 189, 35 and 15 weights at 1.5 bits are 35.4, 6.6 and 2.8 bytes; 15 channels, table, 31 floats
        assert budgets.byte_limit(INFO, 1.5) == 36 + 7 + 3 + 4 * 15 + 2 + 4 * 31

    def test_uniform_is_there_at_whole_budgets_alone(self):
        assert [point.key[4] for point in points(bits=(1.0, 1.5, 2.0, 2.5, 3.0))] == [1.0, 2.0, 3.0]
        assert points(bits=(3.0,))[0].config.assign.uniform_bits == 3


class TestPoints:
    @pytest.mark.parametrize("method", methods.METHODS)
    def test_settings_are_what_dvc_makes_of_them(self, method):
        """The oracle is DVC's own reader of -S: the point's params.yaml is the one `dvc exp run` would use."""
        request = Request((method,), (1.0, 2.0), ("none", "equal"), ("quantize.epochs=3", "pretrain.lr=1e-5"))
        for point in plan(request, task="faces", params=PARAMS, info=INFO, groups=["a", "b"]):
            own = dict(map(parse_setting, shlex.split(point.settings)))
            theirs = apply(TEXT, shlex.split(point.settings))
            ours = with_settings(PARAMS, own)
            theirs["pretrain"]["lr"] = float(theirs["pretrain"]["lr"])
            ours["pretrain"]["lr"] = float(ours["pretrain"]["lr"])
            assert ours == theirs

    @pytest.mark.parametrize("method", KNOWN)
    def test_fine_tuned_points_differ_in_the_mode_alone(self, method):
        [plain, tuned] = points(method, tunes=("none", "equal"))
        assert (plain.config.quant_mode, tuned.config.quant_mode) == ("fair_static", "fair_static_qat")
        assert tuned.config.quantize.fairness_weight == tuned.config.quantize.distill.weight == 0
        assert (plain.config.assign, plain.config.budget) == (tuned.config.assign, tuned.config.budget)
        assert tuned.config.quantize.epochs == PARAMS["quantize"]["epochs"]

    def test_every_reducer_that_takes_any_groups_is_compared(self):
        assert set(methods.REDUCERS) == set(plugins.names("reducer")) - {"subtractive"}
        [point] = points("levels_cvar_mse")
        config = point.config
        assert (config.reducer, config.importance_metric, config.quantize.scale) == ("cvar", "grape", "mse")
        [point] = points("optimal_balanced", bits=(1.5,))
        config = point.config
        assert (config.reducer, config.importance_metric, config.quantize.scale) == ("balanced", "fisher", "mse")
        assert config.budget.avg_bits is None
        assert config.budget.size_mb == budgets.byte_limit(INFO, 1.5) / 1e6

    def test_a_method_s_own_settings_win_over_those_of_all(self):
        [point] = points("levels_max", settings=("reducer=mean", "data.group=[sex,age]"))
        assert point.config.reducer == "max" and point.config.data.group == ("sex", "age")

    def test_ours_is_the_preset_within_the_bytes(self):
        settings = presets.get("ours").settings
        limit = {"budget.avg_bits": None, "budget.size_mb": budgets.byte_limit(INFO, 2) / 1e6, "budget.gbops": None}
        assert methods.settings_of("ours", INFO, 2, tuned=True) == {**settings, **limit}
        assert methods.settings_of("ours", INFO, 2, tuned=False) == {**settings, "quant_mode": "fair_static", **limit}

    def test_variants_of_ours_differ_in_what_fine_tuning_minimises(self):
        whole = dict(methods.settings_of("ours", INFO, 2, tuned=True) or {})
        changed = {
            "ours_plain": methods.TUNED,
            "ours_distilled": {"quantize.fairness_weight": 0},
            "ours_drop": {"quantize.distill.weight": 0},
            "ours_dro": {"quantize.fairness_loss": "group_dro"},
        }
        assert set(changed) == {name for name in methods.METHODS if name.startswith("ours_")}
        for name, own in changed.items():
            assert methods.settings_of(name, INFO, 2, tuned=True) == whole | dict(own) != whole
            assert methods.settings_of(name, INFO, 2, tuned=False) is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "best"}, r"^--methods: got 'best'; allowed: uniform \| uniform_mse \| levels_max"),
            ({"bits": (2.0, 2.0)}, "^--budgets: got 2 2; allowed: each value once$"),
            ({"tunes": ()}, "^--tune: got none; allowed: each value once$"),
            ({"bits": (99.0,)}, "^--budgets: got 99; allowed: bits per weight from"),
            ({"settings": ("epochs",)}, "^--set: got 'epochs'; allowed: KEY=VALUE with a key of params.yaml$"),
            ({"settings": ("seed=1",)}, "^--set: got 'seed=1'; allowed: a workspace of that seed"),
            ({"settings": ("a=[1",)}, "^--set: got 'a=\\[1'; allowed: KEY=VALUE with a value of YAML$"),
            ({"settings": ("quantize.epoch=1",)}, "^faces, uniform: params.yaml: quantize.epoch: unknown key"),
            ({"settings": ("seed.x=1",)}, "^faces, uniform: seed.x: seed is no section; allowed: keys of params"),
        ],
    )  # fmt: skip
    def test_mistakes(self, changes, message):
        with pytest.raises(UserError, match=message):
            points(**changes)

    def test_a_reducer_that_refuses_the_groups_is_named_with_its_method(self):
        settings = {"reducer": "subtractive"}
        other = {"levels_sub": methods.Method({**methods.METHODS["levels_max"].settings, **settings}, budgets.levels)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(methods, "METHODS", other)
            with pytest.raises(ConfigError, match="^faces, levels_sub: .*subtractive"):
                points("levels_sub")


class TestSheet:
    def test_rows_are_there_at_once_and_again(self, tmp_path):
        path = tmp_path / "new/curves.csv"
        Sheet(path).append(row())
        sheet = Sheet(path)
        sheet.append(row(seed=1))
        assert path.read_text(encoding="utf-8") == header_line() + row_line(row()) + row_line(row(seed=1))
        assert sheet.rows == read_rows(path) == [row(), row(seed=1)]

    @pytest.mark.parametrize("cut", [1, 40, 3])
    def test_a_torn_line_is_cut_off(self, tmp_path, cut):
        path = tmp_path / "curves.csv"
        path.write_bytes((header_line() + row_line(row()) + row_line(row(seed=1))).encode()[:-cut])
        assert Sheet(path).rows == [row()]
        assert path.read_text(encoding="utf-8") == header_line() + row_line(row())

    def test_a_torn_header_begins_anew(self, tmp_path):
        path = tmp_path / "curves.csv"
        path.write_text(header_line()[:20])
        assert Sheet(path).rows == []
        assert path.read_text() == header_line()

    def test_other_files_are_refused_and_left_alone(self, tmp_path):
        path = tmp_path / "notes.txt"
        for text in ("hello", "hello\nworld\n"):
            path.write_text(text)
            with pytest.raises(ArtifactError, match="notes.txt: got the columns hello; allowed: a file that"):
                Sheet(path)
            assert path.read_text() == text

    def test_missing_are_those_without_a_row_of_the_same_settings(self):
        [two, three] = points(bits=(2.0, 3.0))
        done = row(task="faces", settings=two.settings, classifier="abc")
        assert missing([two, three], [done], "abc", source=Path("c.csv")) == [three]
        with pytest.raises(UserError, match="^c.csv: got faces seed 0 uniform 2 bits untuned of another classifier; "):
            missing([two], [done], "xyz", source=Path("c.csv"))
        other = row(task="faces", settings="reducer=mean", classifier="abc")
        with pytest.raises(UserError, match=r"with other settings \(reducer=mean\); allowed: --redo uniform to"):
            missing([two], [other], "abc", source=Path("c.csv"))

    def test_merging_sorts_and_refuses_two_results(self, tmp_path):
        paths = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
        for path, found in zip(
            paths, ([row(seed=1)], [row(), row(seed=1, seconds=9.0)], [row(worst=0.1)]), strict=True
        ):
            for item in found:
                Sheet(path).append(item)
        assert merge(paths[:2], tmp_path / "all.csv") == 2
        assert read_rows(tmp_path / "all.csv") == [row(), row(seed=1)]
        with pytest.raises(UserError, match="c.csv: got faces by tone, .* uniform 2 bits untuned with two results"):
            merge(paths, tmp_path / "all.csv")

    def test_shards_have_files_of_their_own(self):
        assert shard_path(Path("c.csv"), 1, 1) == Path("c.csv")
        assert {shard_path(Path("c.csv"), n, 2).name for n in (1, 2)} == {"c-1of2.csv", "c-2of2.csv"}
