"""What every graph pass of the table promises, and BN folding against its closed form."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from isobit.algorithms.channel_repair import input_maxima
from isobit.core.errors import IsobitError
from isobit.graph.capture import capture
from isobit.graph.deployed import GlobalAveragePool
from isobit.graph.passes import PASSES, FoldBatchNorm, Pass, UnifyGlobalPool
from isobit.graph.passes.fold_bn import TOLERANCE, fold_batch_norm
from isobit.graph.passes.smooth import MAXIMA
from zoo import small_networks

NETWORKS = tuple(small_networks())


@pytest.fixture(scope="module")
def captured() -> dict[str, tuple[fx.GraphModule, tuple[Tensor, ...]]]:
    found = {name: (capture(net, inputs), inputs) for name, (net, inputs) in small_networks().items()}
    for model, inputs in found.values():
        model.meta[MAXIMA] = input_maxima(model, [(inputs,)])
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", PASSES)
def test_contract(name: str, network: str, captured: dict[str, tuple[fx.GraphModule, tuple[Tensor, ...]]]) -> None:
    model, inputs = captured[network]
    check_pass(PASSES[name](), model, inputs)


def check_pass(settings: Pass, model: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """The float output stays, a second run changes nothing, and the graph stays sound, at another batch size too."""
    assert settings.requires
    assert settings.ensures
    before, model = model, copy.deepcopy(model).eval()
    report = settings.apply(model)
    assert report.largest_error <= TOLERANCE
    model.graph.lint()
    more = tuple(torch.cat([x, x.flip(0)[:1]]) for x in inputs)
    with torch.no_grad():
        torch.testing.assert_close(model(*more), before(*more), rtol=1e-4, atol=1e-5)
    code, state = str(model.code), {k: v.clone() for k, v in model.state_dict().items()}
    again = settings.apply(model)
    assert not again.changed
    assert again.left == report.left
    assert str(model.code) == code
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_the_passes_find_in_the_zoo(captured: dict[str, tuple[fx.GraphModule, tuple[Tensor, ...]]]) -> None:
    pools, norms = {}, {}
    for name, (model, _) in captured.items():
        changed = copy.deepcopy(model)
        pools[name] = len(UnifyGlobalPool().apply(changed).changed)
        norms[name] = len(FoldBatchNorm().apply(changed).changed)
    assert {k for k, n in pools.items() if n} == {"residual", "option_a", "depthwise", "concat", "shared"}
    assert {k: n for k, n in norms.items() if n} == {"residual": 3, "option_a": 7, "depthwise": 4}


LAYERS = {
    "conv without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "conv with bias": lambda: nn.Conv2d(4, 6, 3),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv 1d": lambda: nn.Conv1d(4, 6, 3),
    "conv 3d": lambda: nn.Conv3d(4, 6, 2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "linear": lambda: nn.Linear(4, 6),
    "linear without bias": lambda: nn.Linear(4, 6, bias=False),
}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def norm_of(dim: int, *, affine: bool = True) -> nn.Module:
    """A BN of 6 channels with γ = 0, a negative γ, and odd statistics."""
    norm = NORMS[dim](6, eps=1e-3, affine=affine).eval()
    generator = torch.Generator().manual_seed(1)
    norm.running_mean = torch.randn(6, generator=generator)
    norm.running_var = torch.rand(6, generator=generator) + 0.1
    if affine:
        norm.weight.data = torch.tensor([0.0, -1.5, 1.0, 1e-8, -1e-3, 20.0])
        norm.bias.data = torch.randn(6, generator=generator)
    return norm


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("kind", LAYERS)
def test_folding_is_the_closed_form(kind: str, affine: bool) -> None:
    """W' = W γ / sqrt(σ² + ε), b' = β + (b - μ) γ / sqrt(σ² + ε), and the outputs agree to float64."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    x = torch.randn(3, layer.weight.shape[1 if "linear" in kind else 0], *[7] * (layer.weight.dim() - 2)).double()
    if "linear" not in kind:
        x = torch.randn(3, layer.in_channels, *[7] * (layer.weight.dim() - 2)).double()
    norm = norm_of(layer.weight.dim() if "linear" not in kind else 2, affine=affine).double()
    weight, bias = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
    with torch.no_grad():
        expected = norm(layer(x))
        assert fold_batch_norm(layer, norm) <= TOLERANCE
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    factor = (norm.weight if affine else 1.0) / torch.sqrt(norm.running_var + norm.eps)
    shape = (1, -1) if kind == "transposed" else (-1, 1)
    folded = weight * factor.reshape(*shape, *[1] * (weight.dim() - 2))
    torch.testing.assert_close(layer.weight.detach(), folded.detach(), rtol=1e-12, atol=0)
    beta = norm.bias if affine else 0.0
    expected_bias = beta + ((0.0 if bias is None else bias) - norm.running_mean) * factor
    torch.testing.assert_close(layer.bias.detach(), expected_bias.detach(), rtol=1e-12, atol=1e-15)


def test_a_functional_batch_norm_stays_and_is_named(
    captured: dict[str, tuple[fx.GraphModule, tuple[Tensor, ...]]],
) -> None:
    (line,) = FoldBatchNorm().apply(copy.deepcopy(captured["functional"][0])).left
    assert line == "batch_norm: a function that always uses its own statistics, not a module"


def test_broken_statistics_are_an_error_that_names_the_layer() -> None:
    norm = norm_of(4)
    norm.running_var[2] = float("nan")
    net = nn.Sequential(nn.Conv2d(3, 6, 1), norm).eval()
    with pytest.raises(IsobitError, match="batch norm into 0"):
        FoldBatchNorm().apply(capture(net, torch.randn(2, 3, 4, 4), check=False))


class Twice(nn.Module):
    """A BN whose convolution is also read by others, one called twice, one behind a ReLU, one of batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.shared_bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.relu, self.behind = nn.ReLU(), nn.BatchNorm2d(3)
        self.last, self.live = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.grouped, self.grouped_bn = nn.ConvTranspose2d(3, 3, 1, groups=3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.bn(y) + y
        y = self.shared_bn(self.shared(self.shared_bn(self.shared(y))))
        y = self.behind(self.relu(y))
        return self.grouped_bn(self.grouped(self.live(self.last(y))))


def test_a_batch_norm_that_has_to_stay_is_named_with_its_reason() -> None:
    net = Twice().eval()
    model = capture(net, torch.randn(2, 3, 4, 4))
    report = FoldBatchNorm().apply(model)
    assert not report.changed
    reasons = dict(line.split(": ", 1) for line in report.left)
    assert reasons == {
        "bn": "the output of conv has other readers",
        "shared_bn": "a layer that is called more than once",
        "behind": "no layer with weights in front of it",
        "live": "it has no running statistics",
        "grouped_bn": "a grouped transposed convolution",
    }
    assert all(isinstance(m, nn.BatchNorm2d) for n, m in model.named_modules() if n in reasons)


class Pools(nn.Module):
    """Means that look alike: two are over the whole map, the others are not."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        match self.form:
            case "module":
                return nn.functional.adaptive_avg_pool2d(x, 1)
            case "mean":
                return x.mean((-1, -2))
            case "mean keepdim":
                return x.mean((2, 3), keepdim=True)
            case "window":
                return nn.functional.avg_pool2d(x, (4, 6))
            case "half window":
                return nn.functional.avg_pool2d(x, 2)
            case "adaptive 2":
                return nn.functional.adaptive_avg_pool2d(x, 2)
            case _:
                return x.mean((1, 2))


@pytest.mark.parametrize("form", ["module", "mean", "mean keepdim", "window"])
def test_every_global_mean_becomes_one_op(form: str) -> None:
    x = torch.randn(2, 3, 4, 6)
    model = capture(Pools(form), x)
    assert len(UnifyGlobalPool().apply(model).changed) == 1
    assert sum(isinstance(m, GlobalAveragePool) for m in model.modules()) == 1
    torch.testing.assert_close(model(x), Pools(form)(x))


@pytest.mark.parametrize("form", ["half window", "adaptive 2", "channels"])
def test_other_means_stay(form: str) -> None:
    model = capture(Pools(form), torch.randn(2, 3, 4, 6))
    assert not UnifyGlobalPool().apply(model).changed
