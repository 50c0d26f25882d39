"""ABC-Net: least squares on bases, the codebook of their sums, and what it refuses."""

import itertools

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.abc_net import AbcNet, AbcNetQuantizer
from isobit.quantizers.bwn import Bwn
from isobit.quantizers.protocol import Role


def calibrated(w: torch.Tensor, *, bits: int, settings: AbcNet | None = None) -> AbcNetQuantizer:
    quantizer = (settings or AbcNet()).build(Scheme(bits=bits), role="weight")
    quantizer.calibrate(qparams_of_range(w.amin(), w.amax(), quantizer.scheme))
    return quantizer


def test_three_bases_by_hand() -> None:
    """The deviation is 2: shifts of -1, 0 and 1 put thresholds at 2, 0 and -2, and every weight has its own value."""
    w = torch.tensor([-3.0, -1.0, 1.0, 3.0]) * (4 / 5) ** 0.5
    quantizer = calibrated(w, bits=3)
    torch.testing.assert_close(quantizer(w), w)
    torch.testing.assert_close(quantizer.alpha, torch.ones(3) * (4 / 5) ** 0.5)


def test_a_single_base_is_that_of_binary_weights_around_their_mean() -> None:
    torch.manual_seed(0)
    w = torch.randn(4000)
    w = w - w.mean()
    binary = Bwn().build(Scheme(bits=1), role="weight")
    binary.calibrate(qparams_of_range(w.amin(), w.amax(), binary.scheme))
    torch.testing.assert_close(calibrated(w, bits=1)(w), binary(w))


def test_no_other_scales_have_a_smaller_error() -> None:
    torch.manual_seed(0)
    w = torch.randn(20, 30).exp()
    quantizer = calibrated(w, bits=4)
    least = (quantizer(w) - w).square().sum()
    bases = torch.stack([torch.where(w - w.mean() + u * w.std(correction=0) >= 0, 1.0, -1.0) for u in
                         torch.linspace(-1, 1, 4)], -1)  # fmt: skip
    torch.testing.assert_close(bases @ quantizer.alpha, quantizer(w))
    for _ in range(50):
        other = bases @ (quantizer.alpha + 0.05 * torch.randn(4))
        assert (other - w).square().sum() > least


def test_more_bases_lower_the_error() -> None:
    torch.manual_seed(0)
    w = torch.randn(4000)
    errors = [(calibrated(w, bits=bits)(w) - w).square().mean().item() for bits in (1, 2, 3, 5, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1 - 2 / torch.pi, rel=0.05)  # binary values of a normal variable
    assert errors[2] < 0.16


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_the_codebook_is_every_signed_sum_in_ascending_order(bits: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(3000) + 0.2
    quantizer = calibrated(w, bits=bits)
    y, grid = quantizer(w), quantizer.grid()
    assert grid.codebook is not None
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)))
    torch.testing.assert_close(grid.codebook, (signs @ quantizer.alpha).sort().values)
    assert torch.equal(grid.fake_quantize(y), y)
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)
    assert y.unique().numel() <= bits + 1


def test_scales_follow_the_weights_and_calibration_alone_covers_the_range() -> None:
    w = torch.randn(50)
    quantizer = calibrated(w, bits=3)
    codebook = quantizer.grid().codebook
    assert codebook is not None
    assert codebook[-1].item() == pytest.approx(w.abs().max().item())
    torch.testing.assert_close(codebook.diff(), codebook.diff()[:1].expand(7))
    quantizer(w)
    first = quantizer.alpha.clone()
    quantizer(w * 3)
    torch.testing.assert_close(quantizer.alpha, first * 3)


@pytest.mark.parametrize("w", [torch.zeros(5), torch.full((4, 4), 0.3), torch.tensor([1.0]), torch.eye(20)])
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_bases_that_are_alike_stay_finite_and_fit(w: torch.Tensor, bits: int) -> None:
    """Weights of one value, or with nothing between two thresholds, would make the normal equations singular."""
    quantizer = calibrated(w, bits=bits)
    if w.unique().numel() == 1:
        torch.testing.assert_close(quantizer(w), w)
    assert (quantizer(w) - w).square().sum() <= w.square().sum()
    assert torch.equal(quantizer.grid().fake_quantize(quantizer(w)), quantizer(w))


def test_the_gradient_of_the_paper_is_that_of_the_sum_of_scales() -> None:
    w = torch.randn(6, 7, requires_grad=True)
    plain, paper = calibrated(w.detach(), bits=3), calibrated(w.detach(), bits=3, settings=AbcNet(gradient="sum"))
    assert torch.equal(plain(w), paper(w))
    (straight,) = torch.autograd.grad(plain(w).sum(), w)
    (summed,) = torch.autograd.grad(paper(w).sum(), w)
    assert torch.equal(straight, torch.ones_like(w))
    torch.testing.assert_close(summed, paper(w).detach().max().expand_as(w))


def test_training_the_weights_lowers_a_loss() -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(8, 8))
    x, target = torch.randn(200, 8), torch.randn(200, 8)
    quantizer = calibrated(w.detach(), bits=3)
    optimizer = torch.optim.Adam([w], lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_that_pass_twice_before_the_backward_pass_get_their_gradient() -> None:
    """Shared weights: what follows them in a buffer must not be part of the graph."""
    w = torch.randn(5, 6, requires_grad=True)
    quantizer = calibrated(w.detach(), bits=3)
    (once,) = torch.autograd.grad(quantizer(w).sum(), w)
    (twice,) = torch.autograd.grad((quantizer(w) + quantizer(w)).sum(), w)
    assert torch.equal(twice, 2 * once)


def test_a_fresh_module_loads_the_scales() -> None:
    w = torch.randn(5, 6)
    quantizer = calibrated(w, bits=4)
    quantizer(w)
    fresh = AbcNet().build(Scheme(bits=4), role="weight")
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.grid().codebook, quantizer.grid().codebook)


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=3), "activation", "use `bi_real`"),
        (Scheme(bits=9), "weight", "up to 8, not 9"),
        (Scheme(bits=3, signed=False), "weight", "per-tensor scheme"),
        (Scheme(bits=3, symmetric=False), "weight", "per-tensor scheme"),
        (Scheme(bits=3, granularity=PerChannel(0)), "weight", "or `bwn` for a scale in each channel"),
        (Scheme(bits=3, scale=PowerOfTwo()), "weight", "float scale"),
        (Scheme(bits=3, narrow=True), "weight", "without `narrow`"),
        (Scheme(bits=3, grid=MidRise()), "weight", "uniform grid"),
        (Scheme(bits=3, rounding=Floor()), "weight", "rounding to nearest"),
    ],
)
def test_schemes_that_abc_net_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        AbcNet().build(scheme, role=role)


def test_an_unknown_gradient_is_refused() -> None:
    with pytest.raises(SettingError, match="'straight_through' or 'sum', not 'clip'"):
        AbcNet(gradient="clip")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(w, bits=3)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(w[:4]), quantizer(w[:4]))
