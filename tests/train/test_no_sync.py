"""No training step waits for the device: nothing on the way from batch to updated weights asks for a value.

On a GPU a value asked for (``item``, a boolean mask that selects, a count) stops the host until all work queued so far
is done. Which operations do so is known from their names, so a CPU can look for them.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fairquant import plugins
from fairquant.config.quantization import BaqSection
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activate import attach_activations
from fairquant.quantize.attach import attach_learned, quantize_model
from fairquant.quantize.folded import fold_in_training
from fairquant.quantize.frozen import attach_frozen, freeze
from fairquant.train import distill, loop
from fairquant.train.terms import LossTerm
from fairquant.train.width_control import PRICING_STEPS, WidthControl
from tests.train.widths import bits_of

WAITS = {
    "_local_scalar_dense": "asks for a value",
    "item": "asks for a value",
    "is_nonzero": "asks for a value",
    "equal": "asks for a value",
    "nonzero": "counts",
    "nonzero_numpy": "counts",
    "argwhere": "counts",
    "masked_select": "counts",
    "bincount": "asks for the largest value",
    "histc": "asks for the extremes",
    "unique": "counts",
    "_unique": "counts",
    "_unique2": "counts",
    "unique_dim": "counts",
    "unique_consecutive": "counts",
    "lift_fresh": "copies Python numbers to the device",
}
FETCHES = {"cpu", "numpy", "tolist", "__array__"}
"""What needs no operation on a CPU, and a copy to the host on a GPU."""
CPU = torch.device("cpu")


class NoFetching(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in FETCHES:
            raise AssertionError(f"{func.__name__}: copies to the host")
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Refuses operations that stop the host on a GPU."""

    def __enter__(self):
        self.functions = NoFetching().__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise AssertionError(f"{name}: {WAITS[name]}")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            raise AssertionError("repeat_interleave: counts")
        if name.startswith("index") and self._selects(args):
            raise AssertionError(f"{name}: counts a boolean mask")
        if name in {"_to_copy", "copy_"} and self._travels(name, args, kwargs):
            raise AssertionError(f"{name}: moves between devices")
        return func(*args, **kwargs)

    @staticmethod
    def _selects(args):
        masks = [entry for arg in args if isinstance(arg, (list, tuple)) for entry in arg]
        return any(isinstance(mask, torch.Tensor) and mask.dtype in (torch.bool, torch.uint8) for mask in masks)

    @staticmethod
    def _travels(name, args, kwargs):
        goal = kwargs.get("device") if name == "_to_copy" else args[0].device
        source = args[0] if name == "_to_copy" else args[1]
        return goal is not None and torch.device(goal).type != source.device.type


def test_the_guard_sees_what_it_is_for():
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for wait in (
        lambda: values.sum().item(),
        lambda: float(values[0]),
        lambda: bool(values.any()),
        lambda: values[mask],
        lambda: values.masked_select(mask),
        lambda: values.index_put_((mask,), torch.ones(2)),
        lambda: mask.nonzero(),
        lambda: values.long().bincount(),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: values.numpy(),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: values.unique(),
        lambda: values.to("meta"),
        lambda: values.repeat_interleave(values.long()),
    ):
        with pytest.raises(AssertionError), NoWaiting():
            wait()
    with NoWaiting():
        values[torch.where(mask, 1, 0)].masked_fill(mask, 0.0).index_add_(0, mask.long(), values)


def quantized(model, granularity="per_channel", scale="absmax", widths=(0, 1, 2, 4, 8, 32)):
    quantize_model(model, bits_of(model, granularity, widths), scale=scale)
    return model


@pytest.fixture
def train(store, section, network, monkeypatch):
    """Return a function that trains with every step but the first and the last watched; it returns how many were."""
    watched = []
    step = loop._Run._step

    def guarded(run, *given):
        total = run.section.epochs * run.steps
        watched.append(None)
        if len(watched) in (1, total):  # what is prepared once, and where widths land
            return step(run, *given)
        with NoWaiting():
            return step(run, *given)

    monkeypatch.setattr(loop._Run, "_step", guarded)

    def run(model=None, epochs=2, **given):
        watched.clear()
        model = network() if model is None else model
        settings = section(epochs=epochs, batch_size=16, class_weights="balanced")
        loop.fit(model, store, section=settings, seed=0, device=CPU, progress=False, **given)
        return len(watched) - 2

    return run


def test_a_plain_step_does_not_wait(train):
    assert train() == 10


def test_a_bf16_step_does_not_wait(train, network):
    assert train(quantized(network()), precision="bf16") > 0


@pytest.mark.parametrize("name", plugins.names("loss"))
def test_no_fairness_loss_waits(train, network, name):
    term = LossTerm.of(plugins.load("loss", name), weight=1.0)
    assert train(quantized(network()), terms=[term], teacher=network(1)) > 0


def test_distillation_does_not_wait(train, network):
    assert train(terms=[LossTerm.of(distill, weight=1.0)], teacher=network(1)) > 0


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
@pytest.mark.parametrize("scale", plugins.names("scale"))
def test_no_quantizer_waits(train, network, granularity, scale):
    assert train(quantized(network(), granularity, scale), epochs=1) > 0


@pytest.mark.parametrize("regularizer", ["budget", "pull"])
def test_learned_widths_do_not_wait_before_they_land(train, network, regularizer):
    model = network()
    sizes = {name: layer.weight[0].numel() for name, layer in quantizable_layers(model).items()}
    attach_learned(model, bits_of(model, "per_channel"), held=set(), bit_min=2, bit_max=8)
    control = WidthControl(model, sizes, BaqSection(regularizer=regularizer, learn_share=1.0))
    assert train(model, epochs=4, hooks=control, terms=[LossTerm(1.0, control.term)]) > 2 * PRICING_STEPS


@pytest.mark.parametrize("points", ["all", "layers"])
@pytest.mark.parametrize("how", ["moving_average", "minmax", "percentile", "dynamic"])
def test_activation_quantizers_do_not_wait(train, network, points, how):
    observer = "minmax" if how == "dynamic" else how
    model = attach_activations(
        quantized(network()), bits=8, scheme="asymmetric", observer=observer, points=points, dynamic=how == "dynamic"
    )
    if how == "percentile":  # calibrated before training, then fixed
        for module in model.modules():
            if hasattr(module, "load_grid"):
                module.load_grid(torch.tensor(0.1), torch.tensor(3))
    assert train(model) > 0


def test_frozen_units_do_not_wait(train, network):
    model = network()
    attach_frozen(model, "per_channel", scale="absmax", percentile=99.9)
    freeze(model, bits_of(model, "per_channel", (4, 32)).layers)
    assert train(model) > 0


def test_folding_does_not_wait(train, network):
    model = network()
    bits = bits_of(model, "per_channel")
    with fold_in_training(model, bits) as scaled:
        quantize_model(model, scaled)
    assert train(model) > 0
