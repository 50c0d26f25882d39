"""k-means: clusters that stay, centroids that learn, and what it refuses."""

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers.centroids import Centroids
from isobit.quantizers.k_means import KMeans, KMeansQuantizer
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed


def calibrated(w: torch.Tensor, *, bits: int, iterations: int = 300) -> KMeansQuantizer:
    return observed(KMeans().build(Scheme(bits=bits), role="weight"), Centroids(iterations=iterations), w)


def test_lloyd_lowers_the_error_of_the_linear_start() -> None:
    torch.manual_seed(0)
    w = torch.randn(4000)
    errors = [(calibrated(w, bits=3, iterations=n)(w) - w).square().mean().item() for n in (0, 1, 10, 300)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0.0345, rel=0.06)  # the Lloyd-Max quantizer of a normal variable, 8 levels


def test_training_moves_the_centroids_and_no_weight_changes_its_cluster() -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(6, 40))
    quantizer = calibrated(w.detach(), bits=2)
    before = quantizer.grid().quantize(quantizer(w).detach())
    optimizer = torch.optim.SGD([w, *quantizer.parameters()], lr=0.2, weight_decay=0.1)
    target = w.detach() * 2 + 1
    first = (quantizer(w) - target).square().mean().item()
    for _ in range(200):
        optimizer.zero_grad()
        error = (quantizer(w) - target).square().mean()
        error.backward()
        optimizer.step()
    assert w.grad is None
    assert error.item() < 0.35 * first
    assert torch.equal(quantizer.grid().quantize(quantizer(w).detach()), before)


def test_centroids_that_pass_each_other_keep_the_declared_grid_ascending() -> None:
    w = torch.linspace(-1, 1, 50)
    quantizer = calibrated(w, bits=2).eval()
    quantizer.centroids.data = torch.tensor([0.5, -0.25, -0.25, 0.125])
    grid = quantizer.grid()
    assert grid.codebook is not None
    assert grid.codebook.tolist() == [-0.25, -0.25, 0.125, 0.5]
    assert torch.equal(grid.fake_quantize(quantizer(w)), quantizer(w))
    assert quantizer(w)[0] == 0.5


def test_an_observer_without_a_codebook_gives_the_linear_start() -> None:
    quantizer = KMeans().build(Scheme(bits=2), role="weight")
    quantizer.calibrate(qparams_of_range(torch.tensor(-1.0), torch.tensor(2.0), quantizer.scheme))
    torch.testing.assert_close(quantizer.centroids.detach(), torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    quantizer.calibrate(qparams_of_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(bits=2, narrow=True)))
    torch.testing.assert_close(quantizer.centroids.detach(), torch.linspace(-1, 1, 4))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=4), "activation", "of weights"),
        (Scheme(bits=4, signed=False), "weight", "per-tensor scheme"),
        (Scheme(bits=4, symmetric=False), "weight", "per-tensor scheme"),
        (Scheme(bits=4, granularity=PerChannel(0)), "weight", "per-tensor scheme"),
        (Scheme(bits=4, scale=PowerOfTwo()), "weight", "float scale"),
        (Scheme(bits=4, narrow=True), "weight", "without `narrow`"),
        (Scheme(bits=4, grid=MidRise()), "weight", "uniform grid"),
    ],
)
def test_schemes_that_k_means_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        KMeans().build(scheme, role=role)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(w, bits=3)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,))
    assert torch.equal(program.module()(w), quantizer(w))
