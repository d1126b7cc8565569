"""Calibration: which images, all of them, and the ranges they give."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairquant.allocate.bitmap import BitMap
from fairquant.config.quantization import CalibrationSection
from fairquant.errors import UserError
from fairquant.quantize.activate import activation_quantizers, attach_activations
from fairquant.quantize.attach import quantize_model
from fairquant.train.calibrate import calibrate
from fairquant.train.calibration_images import calibration_rows

CPU = torch.device("cpu")
HOW = {"bits": 8, "scheme": "asymmetric", "observer": "minmax"}


@pytest.fixture
def unequal(make_store, tmp_path):
    """Three groups with 48, 36 and 24 training images."""
    store = make_store(tmp_path / "unequal", n_per_group=80, groups=("many", "several", "few"), size=8)
    train = store.indices("train")
    store.groups[train] = np.repeat([0, 1, 2], [96, 24, 24])
    store.groups[train[:48]] = 1
    store.splits[train[12:48]] = "val"
    return store


def section(**changes: object) -> CalibrationSection:
    return CalibrationSection(**({"batches": 4, "batch_size": 6} | changes))


def counts(store, rows) -> list[int]:
    return np.bincount(store.groups[rows], minlength=len(store.group_names)).tolist()


class TestRows:
    @pytest.mark.parametrize("sampling", ["random", "balanced", "worst_group"])
    def test_train_images_by_seed(self, sampling, unequal):
        first, second, other = (
            calibration_rows(unequal, section(sampling=sampling), seed=seed, groups_accuracy=[0.9, 0.8, 0.7])
            for seed in (0, 0, 1)
        )
        assert np.array_equal(first, second) and not np.array_equal(first, other)
        assert len(first) == 24 and set(first) <= set(unequal.indices("train").tolist())

    def test_random_takes_each_image_once_and_no_more_than_there_are(self, unequal, caplog):
        with caplog.at_level(logging.INFO):
            rows = calibration_rows(unequal, section(batches=100), seed=0)
        assert sorted(rows) == unequal.indices("train").tolist()
        assert caplog.messages == [f"calibration: got {len(rows)} images for 100 batches of 6"]

    def test_balanced_in_every_batch(self, unequal, caplog):
        with caplog.at_level(logging.INFO):
            rows = calibration_rows(unequal, section(sampling="balanced"), seed=0)
        assert [counts(unequal, batch) for batch in rows.reshape(4, 6)] == [[2, 2, 2]] * 4
        assert len(set(rows.tolist())) == 24 and not caplog.messages

    def test_a_small_group_is_gone_through_again(self, unequal, caplog):
        sizes = counts(unequal, unequal.indices("train"))
        few = int(np.argmin(sizes))
        with caplog.at_level(logging.INFO):
            rows = calibration_rows(unequal, section(sampling="balanced", batches=10, batch_size=9), seed=0)
        assert counts(unequal, rows) == [30, 30, 30]
        drawn = rows[unequal.groups[rows] == few]
        assert sorted(drawn[: sizes[few]]) == sorted(set(drawn.tolist())) and len(set(drawn.tolist())) == sizes[few]
        name = unequal.group_names[few]
        assert f"calibration: 30 images of {name}, which has {sizes[few]}; some are used again" in caplog.messages

    def test_no_more_than_once_through_the_largest_group(self, unequal):
        sizes = counts(unequal, unequal.indices("train"))
        rows = calibration_rows(unequal, section(sampling="balanced", batches=1000), seed=0)
        assert counts(unequal, rows)[int(np.argmax(sizes))] == max(sizes)
        assert set(rows.tolist()) == set(unequal.indices("train").tolist())

    @pytest.mark.parametrize(("share", "of_six"), [(0.5, 3), (1.0, 6), (1 / 3, 2)])
    def test_the_worst_group_has_its_share_of_every_batch(self, share, of_six, unequal):
        rows = calibration_rows(
            unequal, section(sampling="worst_group", worst_share=share), seed=0, groups_accuracy=[0.9, 0.8, 0.7]
        )
        assert [counts(unequal, batch)[2] for batch in rows.reshape(4, 6)] == [of_six] * 4
        if share < 1:
            assert counts(unequal, rows)[0] > 0

    def test_the_worst_group_is_the_first_of_the_lowest(self, unequal):
        for accuracy, worst in (([0.5, 0.5, 0.9], 0), ([np.nan, 0.5, 0.9], 1)):
            rows = calibration_rows(
                unequal, section(sampling="worst_group", worst_share=1.0, batches=1), seed=0, groups_accuracy=accuracy
            )
            assert counts(unequal, rows)[worst] == 6

    @pytest.mark.parametrize("accuracy", [None, [np.nan] * 3])
    def test_without_accuracy_there_is_no_worst_group(self, accuracy, unequal):
        with pytest.raises(UserError) as caught:
            calibration_rows(unequal, section(sampling="worst_group"), seed=0, groups_accuracy=accuracy)
        assert str(caught.value) == (
            "quantize.calibration.sampling: got 'worst_group' without the accuracy of any group; allowed: random | "
            "balanced, or a validation split with images of a group"
        )


class Probe(nn.Module):
    """A residual network with a layer that no image passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc((self.norm(self.conv(x)) + x).mean((2, 3)))
        return output


@pytest.fixture
def probe() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Probe()


def images_of(store, rows) -> Tensor:
    mean, std = (torch.tensor(store.meta[key], dtype=torch.float64).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (torch.from_numpy(store.images[rows]).permute(0, 3, 1, 2) / 255 - mean) / std


def prepared(model: nn.Module, place: str = "all", **changes: object) -> nn.Module:
    quantize_model(model, BitMap.filled(dict.fromkeys(("conv", "fc", "spare"), ()), 2))
    return attach_activations(model, **(HOW | changes), points=place)


def test_ranges_are_those_of_all_images_with_rounded_weights_and_full_precision_activations(probe, store):
    """Brute force in float64: every tensor's min and max, none of the tensors before it rounded."""
    model = prepared(probe)
    rows = calibrate(model, store, section(), device=CPU, precision="fp32", seed=0)
    assert len(rows) == 24
    plain = Probe().eval().double()
    plain.load_state_dict({name: value.double() for name, value in _rounded(probe).items()})
    with torch.no_grad():
        image = images_of(store, rows)
        norm = plain.norm(plain.conv(image))
        expected = {"conv.input": image, "add.0": norm, "mean.input": norm + image,
                    "fc.input": (norm + image).mean((2, 3))}  # fmt: skip
    assert list(activation_quantizers(model)) == list(expected)
    for name, quantizer in activation_quantizers(model).items():
        low, high = min(0.0, expected[name].min().item()), max(0.0, expected[name].max().item())
        assert quantizer.scale.item() == pytest.approx((high - low) / 255, rel=1e-5)
        assert quantizer.quantizing and not quantizer.observing


def _rounded(model: nn.Module) -> dict[str, Tensor]:
    state = {n: v for n, v in model.state_dict().items() if "parametrizations" not in n}
    return state | {f"{name}.weight": getattr(model, name).weight.detach() for name in ("conv", "fc", "spare")}


def test_every_batch_is_shown(probe, store):
    model, sizes = prepared(probe), []
    activation_quantizers(model)["conv.input"].register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    calibrate(model, store, section(batches=5, batch_size=7), device=CPU, precision="fp32", seed=0)
    assert sizes == [7] * 5


def test_what_was_seen_before_is_forgotten_and_the_mode_stays(probe, store):
    model = prepared(probe.train(), observer="moving_average")
    found = []
    for _ in range(2):
        calibrate(model, store, section(), device=CPU, precision="fp32", seed=0)
        found.append([quantizer.scale.item() for quantizer in activation_quantizers(model).values()])
        assert all(module.training for module in model.modules())
    assert found[0] == found[1] and probe.norm.num_batches_tracked == 0


def test_a_layer_in_front_of_which_nothing_passes_is_left_floating(probe, store, caplog):
    model = prepared(probe, "layers")
    assert "spare.input" in activation_quantizers(model)
    calibrate(model, store, section(), device=CPU, precision="fp32", seed=0)
    assert list(activation_quantizers(model)) == ["conv.input", "fc.input"]
    assert caplog.messages == ["activations: no image passes through spare.input; left floating"]


def test_dynamic_ranges_need_one_batch_to_tell_which_points_are_used(probe, store):
    model = prepared(probe, "layers", dynamic=True)
    assert len(calibrate(model, store, section(), device=CPU, precision="fp32", seed=0)) == 6
    assert list(activation_quantizers(model)) == ["conv.input", "fc.input"]


@pytest.mark.parametrize("sampling", ["balanced", "worst_group"])
def test_dynamic_ranges_ask_for_no_group_s_accuracy(probe, store, sampling):
    model = prepared(probe, "layers", dynamic=True)
    calibrate(model, store, section(sampling=sampling), device=CPU, precision="fp32", seed=0)
    assert list(activation_quantizers(model)) == ["conv.input", "fc.input"]


def test_activations_that_are_not_finite_are_named(probe, store):
    with torch.no_grad():
        probe.norm.weight.fill_(torch.inf)
    model = prepared(probe)
    with pytest.raises(UserError, match=r"^add\.0: got activations that are NaN or infinite; allowed: finite numbers$"):
        calibrate(model, store, section(), device=CPU, precision="fp32", seed=0)


def test_in_bfloat16(probe, store):
    model = prepared(probe)
    calibrate(model, store, section(), device=CPU, precision="bf16", seed=0)
    assert all(quantizer.scale > 0 for quantizer in activation_quantizers(model).values())
