"""The reasons for widths and the curve, against hand loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fairquant.allocate.info import ModelInfo
from fairquant.assign.explain import Measured, curve, layer_rows
from fairquant.assign.run import assign
from fairquant.config import Config
from tests.assign.small import GROUPS, importance_maps, loss_table, model_info, spending, weights

SHAPES = {"conv": (6, 3, 3, 3), "mid": (8, 6, 1, 1), "fc": (3, 8)}
BITS = (0, 1, 2, 4, 8)


def solved(reducer="max", *, metric="fisher", groups=GROUPS, protect=(), granularity="per_channel", **budget):
    config = Config(
        allocator="optimal",
        reducer=reducer,
        granularity=granularity,
        budget={"avg_bits": 2.5} | budget,
        assign={"optimal": {"bits": list(BITS)}, "protect": {"layers": list(protect), "bits": 8}},
        quantize={"scale": "mse"},
    )
    info, maps = model_info(SHAPES), importance_maps(SHAPES, groups, metric=metric)
    return config, info, maps, assign(maps, info, config, lambda: weights(SHAPES))


def rows_of(info, maps, found):
    return layer_rows(maps, ModelInfo.from_json(info), found)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("reducer", ["mean", "max", "cvar", "balanced"])
def test_layer_rows_by_hand(reducer, granularity):
    config, info, maps, found = solved(reducer, granularity=granularity)
    rows = rows_of(info, maps, found)
    assert [row["layer"] for row in rows] == list(SHAPES)
    everything = [sum(float(layer[g].sum(dtype=np.float64)) for layer in maps.layers.values()) for g in range(3)]
    for row, (name, shape) in zip(rows, SHAPES.items(), strict=True):
        assert list(row) == [
            "layer", "kind", "parameters", "bits", *(f"importance_share:{g}" for g in GROUPS),
            *(f"loss_at_{b}bit" for b in BITS), *(f"loss:{g}" for g in GROUPS),
        ]  # fmt: skip
        assert (row["kind"], row["parameters"]) == ("linear" if name == "fc" else "conv2d", np.prod(shape))
        widths = found.bits.layers[name].reshape(-1)
        assert row["bits"] == widths.mean()
        table = loss_table(weights(SHAPES)[name], maps.layers[name], config, BITS, "fisher")
        for index, group in enumerate(GROUPS):
            share = float(maps.layers[name][index].sum(dtype=np.float64)) / everything[index]
            assert row[f"importance_share:{group}"] == pytest.approx(share, rel=1e-6)
            own = sum(table[index, unit, BITS.index(int(width))] for unit, width in enumerate(widths))
            assert row[f"loss:{group}"] == pytest.approx(own, rel=1e-4)
        for index, width in enumerate(BITS):
            expected = sum(found.spent.group_weights[g] * table[g, :, index].sum() for g in range(3))
            assert row[f"loss_at_{width}bit"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", ["fisher", "gradient", "grape", "hawq"])
def test_layers_add_up_to_what_is_predicted(metric):
    _, info, maps, found = solved(metric=metric)
    rows = rows_of(info, maps, found)
    for group, total in zip(GROUPS, found.spent.totals, strict=True):
        assert sum(row[f"loss:{group}"] for row in rows) == pytest.approx(total, rel=1e-12)
        assert sum(row[f"importance_share:{group}"] for row in rows) == pytest.approx(1)


def test_a_protected_layer_has_empty_cells():
    _, info, maps, found = solved(protect=["conv"], avg_bits=6.0)
    first, *others = rows_of(info, maps, found)
    assert first["bits"] == 8.0 and 0 < first["importance_share:a"] < 1
    assert {first[key] for key in first if key.startswith("loss")} == {""}
    assert all(list(row) == list(first) and row["loss:a"] != "" for row in others)


@pytest.mark.parametrize("allocator, granularity", [("levels", "per_channel"), ("optimal", "per_param")])
def test_without_a_table_of_losses_the_columns_are_not_there(allocator, granularity):
    info, maps = model_info(SHAPES), importance_maps(SHAPES)
    found = assign(
        maps, info, Config(allocator=allocator, granularity=granularity, reducer="max"), lambda: weights(SHAPES)
    )
    assert all(list(row)[-1] == "importance_share:c" for row in rows_of(info, maps, found))


def test_maps_without_importance_have_no_shares():
    info, maps = model_info(SHAPES), importance_maps(SHAPES)
    for layer in maps.layers.values():
        layer[1] = 0
    found = assign(maps, info, Config(), None)
    assert {row["importance_share:b"] for row in rows_of(info, maps, found)} == {0.0}


class TestCurve:
    BUDGETS = (8, 0.5, 2.0, 1.0, 4.0, 3.0)

    @pytest.mark.parametrize("reducer", ["mean", "max", "cvar", "balanced"])
    def test_the_predicted_objective_never_rises_with_the_budget(self, reducer):
        _, info, maps, found = solved(reducer)
        rows = list(curve(found, self.BUDGETS, maps.groups, None))
        assert [row["budget"] for row in rows] == [b for b in ["chosen", *sorted(self.BUDGETS)] for _ in GROUPS]
        assert [row["group"] for row in rows] == list(GROUPS) * 7
        values = [
            found.problem.objective.value([row["predicted"] for row in rows if row["budget"] == budget])
            for budget in sorted(self.BUDGETS)
        ]
        assert all(low <= high * 1.01 for high, low in zip(values, values[1:], strict=False))  # to within its gap
        assert all(row["avg_bits"] <= row["budget"] for row in rows if row["budget"] != "chosen")
        assert set(rows[0]) == {"budget", "avg_bits", "packed_mb", "group", "predicted"}

    def test_the_chosen_point_is_the_allocation(self):
        _, info, maps, found = solved()
        rows = list(curve(found, [], maps.groups, None))
        real = spending(found.bits, info)
        assert [row["predicted"] for row in rows] == found.spent.totals.tolist()
        assert {(row["avg_bits"], row["packed_mb"]) for row in rows} == {(real["avg_bits"], real["size_mb"])}

    def test_unreachable_budgets_are_left_out(self):
        _, _, maps, found = solved(protect=["conv"], avg_bits=6.0)  # 162 of 234 weights at 8 bits are 5.54
        rows = list(curve(found, [1, 5.5, 5.6, 7], maps.groups, None))
        assert [row["budget"] for row in rows[::3]] == ["chosen", 5.6, 7]

    def test_measured_where_asked(self):
        _, _, maps, found = solved()
        seen = []

        def measure(bits):
            seen.append(bits)
            return Measured(np.array([1.0, 2.0, 3.0]) * len(seen), np.array([0.5, 0.25, 0.125]))

        rows = list(curve(found, [1.0], maps.groups, measure))
        assert [(row["measured"], row["accuracy"]) for row in rows] == [
            (1.0, 0.5), (2.0, 0.25), (3.0, 0.125), (2.0, 0.5), (4.0, 0.25), (6.0, 0.125),
        ]  # fmt: skip
        assert [bits.average(SHAPES) for bits in seen] == [rows[0]["avg_bits"], rows[3]["avg_bits"]]

    def test_points_have_the_step_sizes_they_would_be_quantized_with(self):
        config, info, maps, _ = solved()
        section = config.quantize.model_copy(update={"scale": "weighted"})
        found = assign(maps, info, config.model_copy(update={"quantize": section}), lambda: weights(SHAPES))
        seen = []
        list(curve(found, [1.0], maps.groups, lambda bits: seen.append(bits) or Measured(np.zeros(3), np.zeros(3))))
        for bits in seen:
            assert {name: table.shape for name, table in bits.steps.items()} == {
                n: (s[0], 1) for n, s in SHAPES.items()
            }

    def test_needs_a_budget(self):
        _, _, maps, found = solved()
        line = "^assignment: got one without a budget; allowed: that of an allocator that spends one$"
        for without in ({"problem": None}, {"spent": None}):
            with pytest.raises(ValueError, match=line):
                next(curve(dataclasses.replace(found, **without), [1.0], maps.groups, None))
