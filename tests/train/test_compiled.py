"""Compiled training steps are the plain ones, and where they cannot be, one line says so."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from fairquant.quantize.activate import activation_quantizers, attach_activations
from fairquant.quantize.attach import attach_learned, quantize_model, quantizers
from fairquant.quantize.frozen import attach_frozen, freeze
from fairquant.train.compiled import compiled, undone, weights_in_place
from tests.train.widths import bits_of

REAL = torch.compile


def small(dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(36, 2),
        )
    return model.to(memory_format=torch.channels_last).train()


def batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.randint(0, 2, (count,), generator=generator)


def step(model, forward, images, labels, optimizer=None):
    model.zero_grad(set_to_none=True)
    loss = cross_entropy(forward(images).float(), labels)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return loss.detach()


def assert_alike(one, two, tolerance):
    """Compare gradients and buffers, each with the size of its own largest value."""
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= tolerance * max(float(a.grad.abs().max()), 1e-3), name
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance), name


@pytest.mark.xdist_group("compile")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_is_plain_training():
    """Learned step sizes, activations that follow, then frozen ones: one graph, the same steps to rounding."""
    plain = small()
    quantize_model(plain, bits_of(plain), scale="lsq")
    attach_activations(plain, bits=8, scheme="asymmetric", observer="moving_average", points="layers")
    fast = copy.deepcopy(plain)
    forward = compiled(fast, True)
    torch._dynamo.utils.counters.clear()
    # plain gradient descent: Adam turns the rounding of a gradient that is zero into a full step
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (plain, fast)]
    for number, count in enumerate((6, 6, 4, 6)):  # 4: another size goes through plain torch
        if number == 3:
            for model in (plain, fast):
                for quantizer in quantizers(model).values():
                    quantizer.scale.requires_grad_(False)
        images, labels = batch(count, seed=number)
        one = step(plain, plain, images, labels, optimizers[0])
        two = step(fast, forward, images, labels, optimizers[1])
        assert float(one) == pytest.approx(float(two), rel=1e-4)
        assert_alike(plain, fast, 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, torch._dynamo.utils.counters["graph_break"]
    assert forward._graph is not None
    images, _ = batch(6, seed=9)
    with torch.no_grad():
        assert torch.allclose(fast.eval()(images), plain.eval()(images), atol=1e-4)
        assert torch.equal(forward(images), fast(images)), "evaluation is plain torch"
    assert sorted(fast.state_dict()) == sorted(plain.state_dict())


@pytest.fixture
def traced(monkeypatch):
    """Let torch.compile trace and cut graphs as ever, and run them as they are: no C++ compiler, seconds less."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda model, **how: REAL(model, backend="aot_eager", **how))


def learned(model):
    attach_learned(model, bits_of(model), held=set(), bit_min=2, bit_max=8)
    return model


def frozen(model):
    attach_frozen(model, "per_channel", scale="absmax", percentile=99.9)
    bits = {name: layer.copy() for name, layer in bits_of(model, widths=(4, 32)).layers.items()}
    freeze(model, bits)
    return model


def quantized(granularity, scale):
    def change(model):
        quantize_model(model, bits_of(model, granularity), scale=scale)
        return model

    return change


def with_activations(model):
    quantize_model(model, bits_of(model), scale="absmax")
    for name in ("0", "5"):
        assert model.get_submodule(name).weight is not None
    result = attach_activations(model, bits=8, scheme="asymmetric", observer="moving_average", points="all")
    assert activation_quantizers(result)
    return result


CASES = {
    "full precision": lambda model: model,
    "per_tensor percentile": quantized("per_tensor", "percentile"),
    "per_param absmax": quantized("per_param", "absmax"),
    "learned widths": learned,
    "frozen units": frozen,
    "activations in the graph": with_activations,
}


@pytest.mark.xdist_group("compile")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model_is_one_graph_with_the_plain_results(case, traced):
    plain = CASES[case](small())
    fast = copy.deepcopy(plain)
    forward = compiled(fast, True)
    torch._dynamo.utils.counters.clear()
    for number in range(2):
        images, labels = batch(6, seed=number)
        assert float(step(plain, plain, images, labels)) == pytest.approx(float(step(fast, forward, images, labels)))
        assert_alike(plain, fast, 1e-5)
    assert forward._graph is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, torch._dynamo.utils.counters["graph_break"]


@pytest.mark.xdist_group("compile")
@pytest.mark.filterwarnings("ignore")
def test_autocast_reaches_the_compiled_graph(traced):
    plain, fast = small(), small()
    forward = compiled(fast, True)
    images, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [plain(images), forward(images)]
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    assert torch.allclose(outputs[0].float(), outputs[1].float(), atol=2e-2)


def test_not_wanted_is_the_model_itself():
    model = small()
    assert compiled(model, False) is model


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no kernel for this\nand a second line") from OSError("ld: not found\nsecond line")


def no_compiler(model, **_):
    raise RuntimeError("inductor failed\nlong story") from FileNotFoundError("no C++ compiler")


def fails_when_called(model, **_):
    def call(images):
        torch.rand(3)  # it has drawn, trained and observed before it fails
        model(images)
        raise TypeError("unsupported: flags")

    return call


def fails_in_backward(model, **_):
    return lambda images: Broken.apply(model(images))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (no_compiler, "FileNotFoundError: no C++ compiler"),
        (fails_when_called, "TypeError: unsupported: flags"),
        (fails_in_backward, "OSError: ld: not found"),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_trace(compiler, reason, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", compiler)
    plain, fast = small(dropout=0.5), small(dropout=0.5)
    forward = compiled(fast, True)
    results = []
    with caplog.at_level(logging.WARNING):
        for model, run in ((plain, plain), (fast, forward)):
            torch.manual_seed(0)
            results.append([float(step(model, run, *batch(6, seed=n))) for n in range(3)])
    assert results[0] == results[1]
    assert_alike(plain, fast, 0.0)
    assert caplog.messages == [f"compile: got {reason}; training goes on in plain torch"]


def test_under_a_function_mode_training_is_plain(caplog):
    class Global(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model = small()
    with Global(), caplog.at_level(logging.WARNING):
        assert torch.isfinite(step(model, compiled(model, True), *batch()))
    reason = "a forward pass under Global (parallel.batch_norm: local has none)"
    assert caplog.messages == [f"compile: got {reason}; training goes on in plain torch"]


def test_layers_are_plain_inside_and_as_they_were_afterwards():
    model = small()
    quantize_model(model, bits_of(model), scale="absmax")
    layer, state = model[0], {name: value.clone() for name, value in model.state_dict().items()}
    own, wanted = type(layer), layer.weight.detach().clone()
    with pytest.raises(KeyError), weights_in_place(model):
        assert type(layer) is nn.Conv2d and torch.equal(layer.weight, wanted) and layer.weight.requires_grad
        raise KeyError
    assert type(layer) is own and "weight" not in layer.__dict__
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_undone_takes_back_buffers_and_random_numbers():
    model = small(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    with undone(model, torch.device("cpu")):
        model(batch()[0])
        model[1].running_var = torch.zeros(4)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
