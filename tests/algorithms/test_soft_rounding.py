"""Learned rounding against the formulas of AdaRound (arXiv:2004.10568) and their gradients, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isobit.algorithms.soft_quantizers import LearnedStep, SoftRounding
from isobit.core.granularity import PerChannel
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.core.soft_rounding import (
    annealed,
    half_cosine,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    undecided,
)


def test_rectified_sigmoid_is_equation_23() -> None:
    v = np.linspace(-6, 6, 101)
    expected = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    np.testing.assert_allclose(rectified_sigmoid(torch.tensor(v)).numpy(), expected, atol=1e-15)


def test_its_inverse_gives_back_every_share() -> None:
    h = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(h)), h, rtol=0, atol=1e-15)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_regularizer_is_equation_24_and_so_is_its_gradient(beta: float) -> None:
    v = torch.linspace(-2.2, 2.3, 46, dtype=torch.float64, requires_grad=True)
    h = 1.2 / (1 + np.exp(-v.detach().numpy())) - 0.1
    value = undecided(v, beta)
    assert value.item() == pytest.approx(np.sum(1 - np.abs(2 * h - 1) ** beta), rel=1e-12)
    value.backward()
    sigmoid = 1 / (1 + np.exp(-v.detach().numpy()))
    slope = 1.2 * sigmoid * (1 - sigmoid)
    expected = -beta * np.abs(2 * h - 1) ** (beta - 1) * np.sign(2 * h - 1) * 2 * slope
    assert v.grad is not None
    np.testing.assert_allclose(v.grad.numpy(), expected, rtol=1e-10, atol=1e-14)


def test_annealing_and_cosine() -> None:
    assert [annealed(p, warm_up=0.5, first=10, last=2) for p in (0.1, 0.5, 0.75, 1.0)] == [10, 10, 6, 2]
    assert [half_cosine(p) for p in (0, 0.5, 1, 2)] == pytest.approx([1, 0.5, 0, 0])


GRIDS = {
    "symmetric": Scheme(bits=3, granularity=PerChannel(0)),
    "asymmetric": Scheme(bits=3, granularity=PerChannel(0), signed=False, symmetric=False),
}


def grid_of(name: str) -> QParams:
    zero_point = torch.tensor([0, 0] if name == "symmetric" else [3, 5], dtype=torch.int32)
    return QParams(torch.tensor([0.25, 0.5]), zero_point, GRIDS[name])


@pytest.mark.parametrize("name", GRIDS)
def test_soft_rounding_starts_at_the_weight_and_ends_on_the_grid(name: str) -> None:
    grid = grid_of(name)
    low, high = grid.range()
    weight = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    weight = low[:, None] + weight * (high - low)[:, None]
    soft = SoftRounding(weight, grid)
    torch.testing.assert_close(soft(weight), weight, rtol=0, atol=1e-6)
    hard = soft.hard()
    torch.testing.assert_close(hard, grid.fake_quantize(weight))  # V starts at the nearest rounding
    with torch.no_grad():
        soft.v.copy_(torch.randn(soft.v.shape))
    either = torch.stack([(weight / soft.scale).floor(), (weight / soft.scale).floor() + 1]) * soft.scale
    assert bool((soft.hard() - either).abs().amin(0).max() < 1e-6)
    assert torch.equal(grid.fake_quantize(soft.hard()), soft.hard())


@pytest.mark.parametrize("name", GRIDS)
def test_gradient_of_soft_rounding_is_the_chain_rule(name: str) -> None:
    grid = grid_of(name)
    weight = torch.tensor([[-3.0, -0.6, -0.3, 0.1, 0.7, 9.0]] * 2).double()
    soft = SoftRounding(weight, grid).double()
    grad = torch.arange(12, dtype=torch.float64).reshape(2, 6) + 1
    soft(weight).backward(grad)
    u, z = weight / grid.scale[:, None], grid.zero_point[:, None]
    h = u - u.floor()
    q = u.floor() + h + z
    inside = (q >= grid.scheme.quant_min) & (q <= grid.scheme.quant_max)
    sigmoid = (h + 0.1) / 1.2
    expected = grad * inside * grid.scale[:, None] * 1.2 * sigmoid * (1 - sigmoid)
    assert soft.v.grad is not None
    edge = (h == 0) | (h == 1)
    torch.testing.assert_close(soft.v.grad[~edge], expected[~edge], rtol=1e-6, atol=1e-9)


def lsq_step_gradient(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    u = x / scale
    return torch.where(u <= low, float(low), torch.where(u >= high, float(high), u.round() - u))


def test_learned_step_has_the_gradient_of_lsq_times_the_first_step() -> None:
    grid = QParams(torch.tensor(0.3), torch.tensor(0, dtype=torch.int32), Scheme(bits=3, signed=False))
    step = LearnedStep(grid, learns=True, quantized=1.0, generator=torch.Generator())
    x = torch.linspace(-1, 3, 50)
    step(x).sum().backward()
    assert step.r.grad is not None
    assert step.r.grad.item() == pytest.approx(float(lsq_step_gradient(x, 0.3, 0, 7).sum()) * 0.3, rel=1e-4)


def test_a_step_that_does_not_learn_stays() -> None:
    grid = QParams(torch.tensor(0.3), torch.tensor(0, dtype=torch.int32), Scheme(bits=3, signed=False))
    step = LearnedStep(grid, learns=False, quantized=1.0, generator=torch.Generator())
    assert step.scale() is grid.scale
    assert not step.r.requires_grad


@pytest.mark.parametrize("quantized", [0.25, 0.5])
def test_elements_are_quantized_with_that_probability(quantized: float) -> None:
    grid = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), Scheme(bits=8, signed=False))
    step = LearnedStep(grid, learns=False, quantized=quantized, generator=torch.Generator().manual_seed(3))
    x = torch.full((10_000,), 0.6)
    y = step(x)
    assert set(y.tolist()) == {1.0, x[0].item()}
    share = float((y == 1).float().mean())
    assert abs(share - quantized) < 4 * math.sqrt(quantized * (1 - quantized) / 10_000)
