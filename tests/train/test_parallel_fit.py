"""Training in two and in three processes: the losses, weights and metrics of one process, and one state for all.

What differs is the order in which float32 sums are taken. ``CLOSE`` bounds it for a network whose batch norm sees whole
batches; where weights are rounded, a code that flips at a rounding tie makes more of it, and ``ROUNDED`` bounds that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.load import parse_config
from fairquant.config.parallel import ParallelSection
from fairquant.config.schema import ProtectSection, QuantizeSection, TrainSection
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.errors import UserError
from fairquant.modes import QuantizeJob
from fairquant.modes._ranking import UnitRanking
from fairquant.parallel.collectives import rank
from fairquant.train import distill
from fairquant.train.history import History
from fairquant.train.hooks import Hooks
from fairquant.train.loop import fit
from fairquant.train.losses import compression_drop, gap, group_dro
from fairquant.train.processes import average_statistics
from fairquant.train.terms import LossTerm
from tests.conftest import write_store
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")

CPU = torch.device("cpu")
CLOSE = 1e-5
ROUNDED = 1e-3
TRAIN = 33
"""Training samples: at batch size 8 the last batch has 1 and is left out, at 31 it has 2, one for each of two."""


class Network(nn.Sequential):
    """Two convolutions with batch norm, the second 1 × 1, and a head.

    Without biases before batch norm: their gradients are 0 but for rounding, which Adam divides by its own size.
    """

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
                nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2),
            )  # fmt: skip


class TwoHeads(nn.Module):
    """A network with a head that gets no gradient, as a face model trained for one of its targets has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = Network(), Network(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits


class FreezeOnTheWay(Hooks):
    """Takes the first layer out of training after the third step, and notes what gradients there were."""

    def __init__(self, model: nn.Module) -> None:
        self.layer, self.seen = model[0], []  # type: ignore[index]

    def before_step(self, step: int) -> None:
        self.seen.append(self.layer.weight.grad is not None)

    def after_step(self, step: int) -> None:
        if step == 3:
            self.layer.requires_grad_(False)


def result(model: nn.Module, history: History, **more: Any) -> dict[str, Any]:
    """What two runs are compared by."""
    return {
        "rows": [row.to_dict() for row in history.rows],
        "best": history.best_epoch,
        "state": {name: value.float().numpy() for name, value in model.state_dict().items()},
        **more,
    }


def trained(store: Store, model: nn.Module | None = None, **changes: Any) -> dict[str, Any]:
    names = set(TrainSection.model_fields)
    section = {"epochs": 2, "batch_size": 10, "lr": 0.01, "augment": "light"}
    section |= {name: value for name, value in changes.items() if name in names}
    model = Network() if model is None else model
    others = {name: value for name, value in changes.items() if name not in names}
    history = fit(model, store, section=TrainSection(**section), seed=3, device=CPU, progress=False, **others)
    return result(model, history)


def remembering(store: Store) -> dict[str, Any]:
    """Terms with a state, and with a teacher."""
    terms = [
        LossTerm.of(group_dro, weight=1.0, options=group_dro.Options(step=0.5)),
        LossTerm.of(compression_drop, weight=1.0),
        LossTerm.of(distill, weight=0.5),
    ]
    found = trained(store, terms=terms, teacher=Network(7), class_weights="balanced")
    return found | {"terms": [{name: value.numpy() for name, value in term.state.items()} for term in terms]}


def frozen_on_the_way(store: Store) -> dict[str, Any]:
    model = Network()
    hooks = FreezeOnTheWay(model)
    return trained(store, model, hooks=hooks) | {"seen": hooks.seen}


def quantized(store: Store, mode: str, **changes: Any) -> dict[str, Any]:
    section = {"epochs": 2, "batch_size": 10, "lr": 0.01, "augment": "off", "fairness_weight": 0.5} | changes
    bits = BitMap(
        "per_channel",
        {"0": np.array([2, 4, 8, 2, 4, 8], np.uint8), "3": np.full(8, 4, np.uint8), "7": np.array([4, 8], np.uint8)},
    )
    settings = parse_config({"importance": {"batch_size": 8}})
    job = QuantizeJob(
        model=Network(), store=store, bits=bits, section=QuantizeSection(**section), seed=3, device=CPU,
        precision="fp32", protect=ProtectSection(), roles={"first": "0", "last": "7", "classifier": "7"},
        ranking=UnitRanking(settings, store, CPU),
    )  # fmt: skip
    done = plugins.load("mode", mode).quantize(job)
    return result(done.model, done.history)


CASES: Mapping[str, Callable[[Store], dict[str, Any]]] = {
    "plain": trained,
    "last batch left out": lambda store: trained(store, batch_size=8, epochs=1),
    "one sample each": lambda store: trained(store, batch_size=31, epochs=3),
    "gap": lambda store: trained(store, terms=[LossTerm.of(gap, weight=1.0)]),
    "terms that remember": remembering,
    "spare head": lambda store: trained(store, TwoHeads()),
    "frozen on the way": frozen_on_the_way,
}
QUANTIZED: Mapping[str, Callable[[Store], dict[str, Any]]] = {
    "fair_static_qat": lambda store: quantized(store, "fair_static_qat"),
    "lsq": lambda store: quantized(store, "fair_static_qat", scale="lsq"),
    "folded": lambda store: quantized(store, "fair_static_qat", batch_norm="fold_train"),
    "activations": lambda store: quantized(
        store, "fair_static_qat", activations={"bits": 8, "observer": "moving_average"}, batch_size=31, augment="light"
    ),
    "budget": lambda store: quantized(store, "baq_learnable", epochs=4, baq={"target_bits": 5.0}),
    "pull": lambda store: quantized(store, "baq_learnable", baq={"regularizer": "pull", "bits_weight": 2.0}),
    "iterative": lambda store: quantized(store, "iterative_qat", epochs=4, iterative={"rounds": 2}),
    "kmeans": lambda store: quantized(store, "kmeans", codebook={"tune": True}),
    "ptq_static": lambda store: quantized(store, "ptq_static", correction_images=16),
}


def local_statistics(store: Store) -> dict[str, Any]:
    return trained(store, parallel=ParallelSection(batch_norm="local"))


def in_bfloat16(store: Store) -> dict[str, Any]:
    return trained(store, parallel=ParallelSection(strategy="ddp_bf16"))


def averaged() -> dict[str, list[float]]:
    """Running statistics 1 and 3 of two processes, at the end of an epoch of local and of global batch norm."""
    found = {}
    for kind in ("local", "global"):
        norm = nn.BatchNorm2d(1)
        norm.running_mean.fill_(1.0 + 2 * rank())  # type: ignore[union-attr]
        average_statistics(nn.Sequential(norm), ParallelSection(batch_norm=kind))
        found[kind] = [norm.running_mean.item(), norm.running_var.item()]  # type: ignore[union-attr]
    return found


def told(store: Store) -> str:
    """What a user hears whose processes do not train the same."""
    try:
        trained(store, lr=0.01 * (1 + rank()))
    except UserError as error:
        return str(error)
    return ""


def parts(store: Store) -> list[tuple[Any, Any, Any]]:
    rows = store.indices("train")
    return [
        (batch.images.numpy(), batch.labels.numpy(), batch.indices)
        for batch in iterate(store, rows, batch_size=31, device=CPU, shuffle_seed=1, augment="paper", divided=True)
    ]


def attempt(function: Callable[[Store], Any], store: Store) -> Any:
    torch.set_num_threads(1)
    return copy.deepcopy(function(store))


def of_two(folder: str) -> dict[str, Any]:
    """All that a process of one or two computes."""
    store = Store.open(folder)
    found = {name: attempt(case, store) for name, case in (CASES | QUANTIZED).items()}
    found |= {"local": attempt(local_statistics, store), "bf16": attempt(in_bfloat16, store)}
    found |= {"told": attempt(told, store), "parts": parts(store), "averaged": averaged()}
    return found


def of_three(folder: str) -> dict[str, Any]:
    """The last of the batches of 31 has a sample for two of the three processes."""
    store = Store.open(folder)
    return {"activations": attempt(QUANTIZED["activations"], store), "parts": parts(store)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("parallel") / "prepared"
    store = write_store(path, n_per_group=15, groups=("one", "two", "three"), size=8)
    assert len(store.indices("train")) == TRAIN
    return str(path)


@pytest.fixture(scope="module")
def alone(folder: str) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    yield of_two(folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(folder: str) -> list[dict[str, Any]]:
    return in_processes(of_two, folder)


@pytest.fixture(scope="module")
def three(folder: str) -> list[dict[str, Any]]:
    return in_processes(of_three, folder, count=3)


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> None:
    """Losses relative, weights absolute, to ``tolerance``; whole-number metrics and the kept epoch exactly."""
    assert one["state"].keys() == other["state"].keys()
    assert one["best"] == other["best"] and len(one["rows"]) == len(other["rows"])
    for row, expected in zip(one["rows"], other["rows"], strict=True):
        for name in ("train_loss", "val_loss"):
            assert row[name] == pytest.approx(expected[name], rel=tolerance, abs=0)
        names = ("epoch", "lr", "val_accuracy", "val_worst_group_accuracy", "val_group_accuracy")
        assert [row[name] for name in names] == [expected[name] for name in names]
    for name, value in other["state"].items():
        np.testing.assert_allclose(one["state"][name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, two, alone):
    for one in two:
        assert_same(one[case], alone[case], CLOSE)


@pytest.mark.parametrize("case", QUANTIZED)
def test_two_processes_quantize_as_one(case, two, alone):
    for one in two:
        assert_same(one[case], alone[case], ROUNDED)


@pytest.mark.parametrize("case", [*CASES, *QUANTIZED, "local", "bf16"])
def test_processes_end_alike(case, two):
    first, second = two
    assert first[case]["rows"] == second[case]["rows"]
    for name, value in first[case]["state"].items():
        np.testing.assert_array_equal(value, second[case]["state"][name], err_msg=name)


def test_a_process_without_samples_takes_part(three, alone):
    assert [len(one["parts"][-1][2]) for one in three] == [0, 1, 1]
    for one in three:
        assert_same(one["activations"], alone["activations"], ROUNDED)


def test_parts_are_the_batch(two, three, alone):
    """Images, augmented, and their rows are dealt; labels are the whole batch's."""
    for together in (two, three):
        for number, (images, labels, rows) in enumerate(alone["parts"]):
            dealt = [one["parts"][number] for one in together]
            np.testing.assert_array_equal(np.concatenate([part[0] for part in dealt]), images)
            np.testing.assert_array_equal(np.concatenate([part[2] for part in dealt]), rows)
            for part in dealt:
                np.testing.assert_array_equal(part[1], labels)


def test_terms_remember_the_whole_batch(two, alone):
    for one in two:
        for state, expected in zip(
            one["terms that remember"]["terms"], alone["terms that remember"]["terms"], strict=True
        ):
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(state[name], value, rtol=CLOSE, atol=CLOSE)


def test_a_spare_head_stays_and_a_frozen_layer_stops(two, alone):
    untouched = TwoHeads().state_dict()
    for one in (*two, alone):
        for name in ("spare.0.weight", "spare.7.bias"):
            np.testing.assert_array_equal(one["spare head"]["state"][name], untouched[name].numpy())
        assert one["frozen on the way"]["seen"] == [True] * 3 + [False] * 5


def test_local_statistics_are_averaged_and_a_small_last_batch_is_left_out(two, alone):
    """Two processes of two samples each at least: the last batch of 3 goes, which one process trains on."""
    for one in two:
        assert all(np.isfinite(value).all() for value in one["local"]["state"].values())
        assert float(one["local"]["state"]["1.num_batches_tracked"]) == 3 * one["local"]["best"]
        means = one["local"]["state"]["1.running_mean"], one["plain"]["state"]["1.running_mean"]
        assert 0 < np.abs(means[0] - means[1]).max() < 0.5
    assert float(alone["local"]["state"]["1.num_batches_tracked"]) == 4 * alone["local"]["best"]


def test_running_statistics_are_averaged_where_they_differ(two, alone):
    assert alone["averaged"] == {"local": [1.0, 1.0], "global": [1.0, 1.0]}
    assert [one["averaged"]["local"] for one in two] == [[2.0, 1.0]] * 2
    assert [one["averaged"]["global"] for one in two] == [[1.0, 1.0], [3.0, 1.0]]


def test_bfloat16_on_the_wire_costs_digits(two, alone):
    for one in two:
        assert one["bf16"]["rows"][0]["train_loss"] == pytest.approx(alone["bf16"]["rows"][0]["train_loss"], rel=0.02)
        moved = np.abs(one["bf16"]["state"]["7.weight"] - alone["bf16"]["state"]["7.weight"]).max()
        assert 0 < moved < 0.02


def test_processes_that_do_not_train_the_same_are_told(two, alone):
    assert alone["told"] == ""
    for one in two:
        assert one["told"] == (
            "parallel: got processes with different settings, data, code or versions of torch; allowed: the same on "
            "every machine"
        )
