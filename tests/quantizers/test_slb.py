"""SLB: where the search starts, the schedule that ends it, and what it refuses."""

import pytest
import torch
from safetensors.torch import load, save

from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.protocol import Role
from isobit.quantizers.slb import Slb, SlbQuantizer


def started(settings: Slb, scheme: Scheme, w: torch.Tensor) -> SlbQuantizer:
    quantizer = settings.build(scheme, role="weight")
    observer = OBSERVERS[Slb.observer]().build(quantizer.scheme)
    observer.see(w)
    quantizer.calibrate(observer.qparams())
    quantizer.start(w)
    return quantizer


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_from_scratch_the_levels_are_the_papers_and_the_logits_he_normal(bits: int) -> None:
    torch.manual_seed(0)
    quantizer = started(Slb(pretrained=False), Scheme(bits=bits), torch.full((64, 32, 3, 3), 7.0))
    assert quantizer.logits.shape == (64, 32, 3, 3, 2**bits)
    deviation = (2 / (64 * 9 * 2**bits)) ** 0.5  # fan out of the tensor with its last dimension
    assert quantizer.logits.std().item() == pytest.approx(deviation, rel=0.02)
    assert abs(quantizer.logits.mean().item()) < 0.02 * deviation
    quantizer.eval()
    levels = quantizer(torch.zeros(64, 32, 3, 3)).unique()
    torch.testing.assert_close(levels.detach(), torch.linspace(-1, 1, 2**bits), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_pretrained_weights_start_at_their_mean_and_at_their_nearest_level(bits: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(40, 50)
    quantizer = started(Slb(), Scheme(bits=bits), w)
    step, top = 2 * quantizer.scale, quantizer.scale * (2**bits - 1)
    inner = w.abs() < top - step  # at the end one side of the distribution is missing
    assert ((quantizer(w) - w).abs()[inner].max() / step).item() < 0.03
    assert ((quantizer(w) - w.clamp(-top, top)).abs().max() / step).item() < 0.13
    assert torch.equal(quantizer.eval()(w), quantizer.grid().fake_quantize(w))


def test_the_start_is_the_same_at_every_temperature() -> None:
    w = torch.randn(8, 9)
    torch.testing.assert_close(started(Slb(softest=50.0), Scheme(bits=2), w)(w), started(Slb(), Scheme(bits=2), w)(w))


def test_binary_pretrained_weights_have_the_scale_of_least_error() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 5000)
    found = started(Slb(), Scheme(bits=1), w).grid().scale.item()
    assert found == pytest.approx(w.abs().mean().item(), rel=0.03)  # the search goes in steps of max|w| / 100


@pytest.mark.parametrize("bits, factor, last", [(1, 1.03, 1.6e3), (2, 1.04, 1.8e4), (4, 1.05, 2e5)])
def test_the_schedule_is_the_authors(bits: int, factor: float, last: float) -> None:
    """500 epochs, of which the inverse temperature grows by a factor in each from 40 to 90 %."""
    w = torch.randn(3, 4)
    quantizer = started(Slb(), Scheme(bits=bits), w)
    for epoch, t in [(0, 1.0), (200, 1.0), (201, factor), (300, factor**100), (449, factor**249)]:
        quantizer.advance(epoch / 500)
        assert quantizer.sharpness.item() == pytest.approx(t, rel=1e-5)
        assert quantizer.logits.requires_grad and not quantizer.frozen
    quantizer.advance(0.9)
    assert quantizer.sharpness.item() == pytest.approx(last, rel=0.02)
    assert quantizer.frozen


def test_frozen_logits_stay_and_the_output_is_that_of_inference() -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 7)
    quantizer = started(Slb(), Scheme(bits=2), w)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    (quantizer(w) - 1).square().sum().backward()
    optimizer.step()
    quantizer.advance(0.95)
    before = quantizer.logits.detach().clone()
    y = quantizer(w)
    assert not y.requires_grad
    optimizer.step()
    assert torch.equal(quantizer.logits, before)
    assert torch.equal(y, quantizer.eval()(w))
    quantizer.train().advance(0.0)
    assert quantizer(w).requires_grad


def test_a_frozen_state_loads_into_a_fresh_module() -> None:
    w = torch.randn(5, 6)
    quantizer = started(Slb(), Scheme(bits=4, granularity=PerChannel(0)), w)
    for progress in (0.7, 0.95):
        quantizer.advance(progress)
        fresh = Slb().build(Scheme(bits=4, granularity=PerChannel(0)), role="weight")
        fresh.load_state_dict(load(save(quantizer.state_dict())))
        assert torch.equal(fresh(w), quantizer(w))
        assert torch.equal(fresh.eval()(w), quantizer.eval()(w))
        quantizer.train()


def test_training_finds_the_levels_of_a_teacher_and_the_gap_closes() -> None:
    """A binary regression from scratch; at the end W_c is W_q, so that freezing costs nothing."""
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 20), torch.tensor([-1.0, 1.0]).repeat(10)[:, None]
    w = torch.zeros(20, 1)
    quantizer = started(Slb(pretrained=False), Scheme(bits=1), w)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    gaps = []
    for step in range(200):
        quantizer.advance(step / 200)
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - x @ teacher).square().mean()
        if quantizer.logits.requires_grad:
            loss.backward()
        optimizer.step()
        gaps.append((quantizer(w) - quantizer.eval()(w)).abs().max().item())
        quantizer.train()
    assert torch.equal(quantizer(w), teacher)
    assert gaps[0] > 0.5
    assert max(gaps[170:180]) < 1e-3
    assert max(gaps[180:]) == 0


def test_running_or_starting_too_early_is_an_error() -> None:
    quantizer = Slb().build(Scheme(bits=2), role="weight")
    for call in (quantizer, quantizer.start):
        with pytest.raises(CalibrationError, match="before it was calibrated"):
            call(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=2), "activation", "searches for weights"),
        (Scheme(bits=8), "weight", "8 bits are many"),
        (Scheme(bits=2, signed=False), "weight", "both sides of 0"),
        (Scheme(bits=2, symmetric=False), "weight", "both sides of 0"),
        (Scheme(bits=2, narrow=True), "weight", "none to drop"),
        (Scheme(bits=2, grid=PowersOfTwo()), "weight", "levels are even"),
    ],
)
def test_schemes_that_slb_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Slb().build(scheme, role=role)


def test_scales_that_are_powers_of_two_need_pretrained_weights() -> None:
    w = torch.randn(4, 9)
    shifts = started(Slb(), Scheme(bits=4, scale=PowerOfTwo()), w).grid().scale.log2()
    assert shifts == shifts.round()
    with pytest.raises(UnsupportedError, match="no power of two"):
        Slb(pretrained=False).build(Scheme(bits=4, scale=PowerOfTwo()), role="weight")
    assert started(Slb(pretrained=False), Scheme(bits=1, scale=PowerOfTwo()), w).grid().scale == 1


@pytest.mark.parametrize(
    "softest, sharpest, begin, freeze",
    [(0.0, None, 0.4, 0.9), (2.0, 1.0, 0.4, 0.9), (1.0, 9.0, 0.5, 0.5), (1.0, 9.0, -0.1, 0.5), (1.0, 9.0, 0.5, 1.1)],
)
def test_a_schedule_that_does_not_sharpen_is_refused(
    softest: float, sharpest: float | None, begin: float, freeze: float
) -> None:
    with pytest.raises(SettingError, match="SLB needs"):
        Slb(softest=softest, sharpest=sharpest, begin=begin, freeze=freeze)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = started(Slb(), Scheme(bits=2, granularity=PerChannel(0)), w)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    for progress in (0.0, 0.7, 0.95):  # a schedule in a buffer: nothing is compiled anew
        quantizer.advance(progress)
        assert torch.equal(compiled(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,))
    assert torch.equal(program.module()(w), quantizer(w))
