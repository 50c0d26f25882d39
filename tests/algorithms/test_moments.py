"""What batch norm tells: the clipped normal against scipy and Monte Carlo, and what flows on against real tensors."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.algorithms.moments import Moments, clipped_normal, propagated
from isobit.graph.capture import capture

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-math.inf, 1.0), (-1.0, 0.5)])
def test_a_clipped_normal_against_integration(low: float, high: float) -> None:
    mean, std = torch.tensor([-2.0, 0.0, 0.7, 5.0]).double(), torch.tensor([1.0, 0.5, 2.0, 3.0]).double()
    e, variance = clipped_normal(mean, std, torch.tensor(low).double(), torch.tensor(high).double())
    for i in range(4):
        normal = stats.norm(float(mean[i]), float(std[i]))
        x = normal.ppf((np.arange(400_000) + 0.5) / 400_000)
        clipped = np.clip(x, low, high)
        assert float(e[i]) == pytest.approx(clipped.mean(), abs=2e-4)
        assert float(variance[i]) == pytest.approx(clipped.var(), rel=2e-3, abs=1e-5)


def test_behind_a_relu_it_is_the_formula_of_the_paper() -> None:
    """E = σ φ(-μ / σ) + μ (1 - Φ(-μ / σ)) (section 4.2.1)."""
    mean, std = np.array([-1.0, 0.3, 2.0]), np.array([0.5, 1.0, 3.0])
    expected = std * stats.norm.pdf(-mean / std) + mean * (1 - stats.norm.cdf(-mean / std))
    e, _ = clipped_normal(torch.tensor(mean), torch.tensor(std), torch.zeros(1), torch.tensor(math.inf))
    np.testing.assert_allclose(e.numpy(), expected, rtol=1e-10)


def test_a_deviation_of_zero_is_the_value_itself() -> None:
    e, variance = clipped_normal(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(1), torch.tensor(6.0))
    assert e.tolist() == [1.0, 0.0]
    assert variance.tolist() == [0.0, 0.0]


class Known(nn.Module):
    """Two batch norms over inputs of mean 0 and deviation 1: what they tell is exact."""

    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.then = nn.BatchNorm2d(3), nn.BatchNorm2d(3), then
        with torch.no_grad():
            for norm, seed in ((self.a, 0), (self.b, 1)):
                g = torch.Generator().manual_seed(seed)
                norm.weight.uniform_(-2, 2, generator=g)
                norm.bias.uniform_(-1, 3, generator=g)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.then(self.a(x), self.b(y))
        return found


class Then(nn.Module):
    """One op of two tensors."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)  # type: ignore[no-any-return, operator]


OPS = {
    "relu": lambda x, y: torch.relu(x),
    "relu6": lambda x, y: nn.functional.relu6(x),
    "hardswish": lambda x, y: nn.functional.hardswish(x),
    "silu": lambda x, y: nn.functional.silu(x),
    "leaky": lambda x, y: nn.functional.leaky_relu(x, 0.1),
    "clamp": lambda x, y: x.clamp(-0.5, 1.0),
    "add": lambda x, y: x + y,
    "relu of sum": lambda x, y: torch.relu(x + y),
    "concat": lambda x, y: torch.cat([x, torch.relu(y)], 1),
    "flat": lambda x, y: torch.relu(x).flatten(1),
    "pool": lambda x, y: nn.functional.adaptive_avg_pool2d(torch.relu(x), 1),
}


@pytest.mark.parametrize("op", OPS)
def test_what_flows_on_against_monte_carlo(op: str) -> None:
    net = Known(Then(OPS[op])).eval()
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(4000, 3, 4, 4, generator=g) for _ in range(2))
    model = capture(net, (x[:2], y[:2]))
    last = next(n for n in model.graph.nodes if n.op == "output").all_input_nodes[0]
    found = propagated(model, {})[last]
    with torch.no_grad():
        result = net(x, y).double()
    rows = result.movedim(1, 0).flatten(1)
    assert found.mean is not None
    assert found.std is not None
    torch.testing.assert_close(found.mean, rows.mean(1), rtol=0.02, atol=0.02)
    assert bool((found.low <= rows.amin(1) + 1e-3).all())
    assert bool((found.high >= rows.amax(1) - 1e-3).all())
    if op != "pool":  # whose values are means of many: its deviation is an upper bound
        torch.testing.assert_close(found.std, rows.std(1), rtol=0.03, atol=0.02)
    else:
        assert bool((found.std >= rows.std(1)).all())


def test_a_max_pool_has_a_range_and_no_mean() -> None:
    net = Known(Then(lambda x, y: nn.functional.max_pool2d(x, 2))).eval()
    model = capture(net, (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)))
    last = next(n for n in model.graph.nodes if n.op == "output").all_input_nodes[0]
    found = propagated(model, {})[last]
    assert found.mean is None
    torch.testing.assert_close(found.high, (net.a.bias + 6 * net.a.weight.abs()).detach().double())


def test_nothing_is_said_behind_another_axis_or_a_product() -> None:
    for function in (lambda x, y: x * y, lambda x, y: torch.cat([x, y], 2), lambda x, y: x.transpose(1, 2)):
        model = capture(Known(Then(function)).eval(), (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)))
        last = next(n for n in model.graph.nodes if n.op == "output").all_input_nodes[0]
        assert last not in propagated(model, {})


def test_scaled_moments() -> None:
    found = Moments.normal(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])).scaled(torch.tensor([2.0, 4.0]))
    assert found.low.tolist() == [-2.5, -0.25]
    assert found.high.tolist() == [3.5, 1.25]
