"""Forward and gradients of fake quantization against closed forms in float64, eager, compiled and exported."""

import numpy as np
import pytest
import torch

from isobit.core.fake_quantize import FakeQuantize, fake_quantize, in_pieces, nearest_level
from isobit.core.granularity import PerChannel, PerGroup, PerTensor, expand
from isobit.core.grid import PowersOfTwo
from isobit.core.rounding import Floor, HalfAway, HalfEven, Stochastic
from isobit.core.scheme import Scheme

SCHEMES = {
    "s8": Scheme(),
    "u4": Scheme(bits=4, signed=False),
    "u8 asymmetric": Scheme(signed=False, symmetric=False),
    "s2 narrow": Scheme(bits=2, narrow=True),
    "s4 per-channel": Scheme(bits=4, granularity=PerChannel(1)),
    "s4 per-group": Scheme(bits=4, granularity=PerGroup(1, 3)),
    "half-away": Scheme(bits=3, rounding=HalfAway()),
    "floor": Scheme(bits=3, rounding=Floor()),
}


def parameters(scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    shape = {PerTensor: (), PerChannel: (6,), PerGroup: (5, 2, 4)}[type(scheme.granularity)]
    scale = torch.rand(shape, dtype=torch.float64) * 0.3 + 0.05
    zero_point = torch.zeros(shape, dtype=torch.int32)
    if not scheme.symmetric:
        zero_point = zero_point + 7
    return scale, zero_point


def numpy_round(u: np.ndarray, scheme: Scheme) -> np.ndarray:
    match scheme.rounding:
        case HalfAway():
            return np.sign(u) * np.floor(np.abs(u) + 0.5)
        case Floor():
            return np.floor(u)
        case _:
            return np.rint(u)


@pytest.mark.parametrize("name", SCHEMES)
def test_forward_and_gradients_equal_the_closed_form(name: str) -> None:
    scheme = SCHEMES[name]
    torch.manual_seed(0)
    x = (torch.randn(5, 6, 4, dtype=torch.float64) * 2).requires_grad_()
    scale, zero_point = parameters(scheme)
    scale.requires_grad_()
    upstream = torch.randn_like(x)
    y = fake_quantize(x, scale, zero_point, scheme)
    grad_x, grad_scale = torch.autograd.grad(y, (x, scale), upstream)

    s = expand(scale.detach(), 3, scheme.granularity).numpy()
    z = expand(zero_point, 3, scheme.granularity).numpy()
    u, g = x.detach().numpy() / s, upstream.numpy()
    low, high = scheme.quant_min, scheme.quant_max
    rounded = numpy_round(u, scheme)
    assert np.array_equal(y.detach().numpy(), (np.clip(rounded + z, low, high) - z) * s)
    inside = (u + z > low) & (u + z < high)
    assert np.array_equal(grad_x.numpy(), g * inside)
    slope = np.where(inside, rounded - u, np.where(u + z <= low, low - z, high - z)) * g
    match scheme.granularity:
        case PerTensor():
            expected = slope.sum()
        case PerChannel():
            expected = slope.sum((0, 2))
        case PerGroup():
            expected = slope.reshape(5, 2, 3, 4).sum(2)
    np.testing.assert_allclose(grad_scale.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gradient_to_a_real_zero_point_is_minus_scale_where_clipped() -> None:
    x = torch.tensor([-9.0, 0.3, 9.0], dtype=torch.float64)
    z = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    y = FakeQuantize.apply(x, torch.tensor(0.5, dtype=torch.float64), z, -4, 3, HalfEven(), None)
    (grad,) = torch.autograd.grad(y.sum(), z)
    assert grad.item() == pytest.approx(-1.0)  # two clipped values, -0.5 each


def test_powers_of_two_grid_takes_the_nearest_level_and_its_gradient() -> None:
    scheme = Scheme(bits=3, grid=PowersOfTwo())
    x = torch.tensor([-9.0, -1.2, 0.2, 0.9, 2.6, 3.1, 7.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = fake_quantize(x, scale, torch.tensor(0), scheme)
    assert y.tolist() == [-4.0, -1.0, 0.0, 1.0, 2.0, 4.0, 4.0]
    grad_x, grad_scale = torch.autograd.grad(y.sum(), (x, scale))
    assert grad_x.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert grad_scale.item() == pytest.approx(-4 + 0.2 - 0.2 + 0.1 - 0.6 + 0.9 + 4)


def test_nearest_level_equals_brute_force() -> None:
    levels = (-4, -2, -1, 0, 1, 2, 4)
    u, table = torch.randn(1000) * 3, torch.tensor(levels, dtype=torch.float32)
    assert torch.equal(nearest_level(u, levels), table[(u[:, None] - table).abs().argmin(1)])


@pytest.mark.parametrize("ties_up", [False, True])
def test_compiled_levels_equal_eager_ones_to_the_bit(ties_up: bool) -> None:
    levels = (-8, -4, -3, -1, 0, 2, 3, 7)
    u = torch.cat((torch.randn(1000) * 5, torch.arange(-20, 20) / 2, torch.tensor([torch.nan, torch.inf, -torch.inf])))
    compiled = torch.compile(lambda x: nearest_level(x, levels, ties_up=ties_up), backend="eager")
    assert torch.equal(compiled(u).nan_to_num(-99), nearest_level(u, levels, ties_up=ties_up).nan_to_num(-99))


def test_stochastic_rounding_is_unbiased_and_seeded() -> None:
    scheme = Scheme(rounding=Stochastic(3))
    x = torch.full((200_000,), 0.3)
    y = fake_quantize(x, torch.tensor(1.0), torch.tensor(0), scheme)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert abs(y.mean().item() - 0.3) < 4 * (0.3 * 0.7 / 200_000) ** 0.5
    assert torch.equal(y, fake_quantize(x, torch.tensor(1.0), torch.tensor(0), scheme))
    other = fake_quantize(x, torch.tensor(1.0), torch.tensor(0), Scheme(rounding=Stochastic(4)))
    assert not torch.equal(y, other)


@pytest.mark.parametrize("name", ["s8", "u8 asymmetric", "s4 per-channel"])
def test_export_keeps_a_dynamic_batch(name: str) -> None:
    scheme = SCHEMES[name]
    scale, zero_point = (t.float() if t.is_floating_point() else t for t in parameters(scheme))

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return fake_quantize(x, scale, zero_point, scheme)

    program = torch.export.export(Net(), (torch.randn(2, 6, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(7, 6, 4)
    assert torch.equal(program.module()(x), Net()(x))


@pytest.mark.filterwarnings("ignore")  # inductor's own warnings
def test_compile_gives_the_eager_values_and_gradients() -> None:
    scheme = SCHEMES["s4 per-channel"]
    scale, zero_point = parameters(scheme)
    scale = scale.float()

    def loss(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return (fake_quantize(x, s, zero_point, scheme) ** 2).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for batch in (5, 3):
        x, s = torch.randn(batch, 6, 4, requires_grad=True), scale.clone().requires_grad_()
        eager = torch.autograd.grad(loss(x, s), (x, s))
        traced = torch.autograd.grad(compiled(x, s), (x, s))
        for a, b in zip(eager, traced, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "flat"])
@pytest.mark.parametrize(("low", "high", "z"), [(-8, 7, 0), (0, 255, 131), (0, 3, 0)])
def test_a_large_tensor_in_pieces_is_the_same(
    dtype: torch.dtype, layout: str, low: int, high: int, z: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, 100, 101, dtype=dtype, generator=generator)
    upstream = torch.randn(x.shape, dtype=dtype, generator=generator)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "flat":
        x, upstream = x.reshape(-1), upstream.reshape(-1)
    scale, zero_point = torch.tensor(0.07, dtype=dtype), torch.tensor(z, dtype=torch.int32)
    assert in_pieces(x, scale, zero_point)

    def run() -> tuple[torch.Tensor, ...]:
        a, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = FakeQuantize.apply(a, s, zero_point, low, high, HalfEven(), None)
        return y, *torch.autograd.grad(y, (a, s), upstream)

    pieces = run()
    monkeypatch.setattr("isobit.core.fake_quantize.in_pieces", lambda *_: False)
    whole = run()
    assert torch.equal(pieces[0], whole[0])
    assert torch.equal(pieces[1], whole[1])
    torch.testing.assert_close(pieces[2], whole[2], rtol=1e-12 if dtype == torch.float64 else 2e-4, atol=1e-9)
    assert pieces[0].stride() == x.stride()


def test_only_large_dense_tensors_with_one_scale_go_in_pieces() -> None:
    x, z = torch.zeros(4, 3, 200, 200), torch.tensor(0, dtype=torch.int32)
    assert in_pieces(x, torch.tensor(1.0), z)
    assert not in_pieces(x, torch.ones(3), z)
    assert not in_pieces(x, torch.tensor(1.0), torch.tensor(0.5))
    assert not in_pieces(x[:, :, ::2], torch.tensor(1.0), z)
    assert not in_pieces(x[:1], torch.tensor(1.0), z)
