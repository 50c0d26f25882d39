"""INQ: its powers of two, which weights are frozen when, and what it refuses."""

import pytest
import torch
from safetensors.torch import load, save

from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import MidRise, PowersOfTwo
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.inq import Inq, InqQuantizer
from isobit.quantizers.protocol import Role


def started(settings: Inq, scheme: Scheme, w: torch.Tensor) -> InqQuantizer:
    quantizer = settings.build(scheme, role="weight")
    observer = OBSERVERS[Inq.observer]().build(quantizer.scheme)
    observer.see(w)
    quantizer.calibrate(observer.qparams())
    quantizer.start(w)
    return quantizer


def test_levels_and_rounding_are_those_of_the_paper() -> None:
    """max|w| = 1 and 3 bits: n1 = 0, n2 = -1. Half-way weights take the larger power on both sides."""
    w = torch.tensor([1.0, 0.75, 0.74, 0.5, 0.25, 0.24, 0.0, -0.24, -0.25, -0.74, -0.75, -1.0])
    wanted = [1.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, -0.5, -0.5, -1.0, -1.0]
    assert started(Inq(), Scheme(bits=3), w).eval()(w).tolist() == wanted


@pytest.mark.parametrize("bits, powers", [(2, 1), (3, 2), (4, 4), (5, 8)])
def test_bits_give_half_as_many_powers_as_the_codes_beside_the_sign(bits: int, powers: int) -> None:
    w = torch.linspace(-1.3, 1.3, 20001)
    levels = started(Inq(), Scheme(bits=bits), w).eval()(w).unique()
    assert len(levels) == 2 * powers + 1
    assert levels[-1] == 1.0  # floor(log2(4 · 1.3 / 3)) = 0
    assert levels[powers + 1] == 2.0 ** (1 - powers)


def test_weights_that_grow_beyond_the_range_keep_the_largest_power() -> None:
    quantizer = started(Inq(), Scheme(bits=4), torch.tensor([1.0, -1.0, 0.3])).eval()
    assert quantizer(torch.tensor([40.0, -1.6, 0.3])).tolist() == [1.0, -1.0, 0.25]


def test_the_largest_are_frozen_first_and_stay() -> None:
    torch.manual_seed(0)
    w = torch.randn(10, 100)
    quantizer = started(Inq(), Scheme(bits=5), w)
    shares, before = [], torch.zeros_like(w, dtype=torch.bool)
    values = torch.zeros_like(w)
    for progress in (0.0, 0.2, 0.34, 0.6, 0.7, 1.0):
        quantizer.advance(progress)
        y = quantizer(w)
        assert quantizer.frozen[before].all()
        assert torch.equal(y[before], values[before])
        new = quantizer.frozen & ~before
        if new.any() and not quantizer.frozen.all():
            assert w.abs()[new].min() >= w.abs()[~quantizer.frozen].max()
        shares.append(quantizer.frozen.double().mean().item())
        assert torch.equal(y[~quantizer.frozen], w[~quantizer.frozen])
        before, values = quantizer.frozen.clone(), y.clone()
        w = w + 0.05 * torch.randn_like(w)  # weight decay and momentum move frozen ones, too
    assert shares == [0.5, 0.5, 0.75, 0.75, 0.875, 1.0]
    assert torch.equal(y, quantizer.eval()(w))


def test_only_free_weights_get_a_gradient() -> None:
    w = torch.tensor([0.1, -0.9, 0.5, 0.2]).requires_grad_()
    quantizer = started(Inq(), Scheme(bits=4), w.detach())
    quantizer(w).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_inference_in_the_middle_quantizes_everything_and_freezes_nothing() -> None:
    w = torch.randn(30, 30)
    quantizer = started(Inq(), Scheme(bits=4), w).eval()
    y = quantizer(w)
    assert not quantizer.frozen.any()
    assert torch.equal(quantizer.grid().fake_quantize(y), y)
    assert isinstance(quantizer.grid().scheme.scale, PowerOfTwo)


def test_training_in_parts_beats_rounding_at_once() -> None:
    """The free weights make up for the error of the frozen ones on correlated inputs."""
    torch.manual_seed(0)
    x = torch.randn(400, 8) @ torch.randn(8, 40) + 0.3 * torch.randn(400, 40)
    float_w = torch.randn(40, 1)
    target = x @ float_w
    w = torch.nn.Parameter(float_w.clone())
    quantizer = started(Inq(), Scheme(bits=4), float_w)
    optimizer = torch.optim.Adam([w], lr=0.02)
    with torch.no_grad():
        at_once = (x @ quantizer.eval()(w) - target).square().mean().item()
    quantizer.train()
    for step in range(300):
        quantizer.advance(step / 300)
        optimizer.zero_grad()
        (x @ quantizer(w) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        in_parts = (x @ quantizer.eval()(w) - target).square().mean().item()
    assert in_parts < 0.3 * at_once


def test_a_state_in_the_middle_goes_on_in_a_fresh_module() -> None:
    torch.manual_seed(0)
    w, later = torch.randn(20, 20), torch.randn(20, 20)
    scheme = Scheme(bits=4, granularity=PerGroup(1, 5))
    quantizer, fresh = started(Inq(), scheme, w), Inq().build(scheme, role="weight")
    quantizer.advance(0.4)
    quantizer(w)
    fresh.load_state_dict(load(save(quantizer.state_dict())))
    assert torch.equal(fresh(later), quantizer(later))
    assert torch.equal(fresh.frozen, quantizer.frozen)
    for module in (quantizer, fresh):
        module.advance(0.7)
    assert torch.equal(fresh(later), quantizer(later))
    assert torch.equal(fresh.eval()(w), quantizer.eval()(w))


def test_each_channel_has_powers_of_its_own() -> None:
    w = torch.tensor([[1.0, 0.3], [0.1, 0.02]])
    quantizer = started(Inq(), Scheme(bits=2, granularity=PerChannel(0)), w).eval()
    assert quantizer(w).tolist() == [[1.0, 0.0], [0.125, 0.0]]
    narrow = started(Inq(), Scheme(bits=2, narrow=True, scale=PowerOfTwo()), w).eval()
    assert narrow(w).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_running_or_starting_too_early_is_an_error() -> None:
    quantizer = Inq().build(Scheme(bits=4), role="weight")
    for call in (quantizer, quantizer.start):
        with pytest.raises(CalibrationError, match="before it was calibrated"):
            call(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=4), "activation", "weights only"),
        (Scheme(bits=8), "weight", "2 to 6 bits, not 8"),
        (Scheme(bits=1), "weight", "2 to 6 bits, not 1"),
        (Scheme(bits=4, signed=False, grid=PowersOfTwo()), "weight", "both sides of 0"),
        (Scheme(bits=4, symmetric=False), "weight", "both sides of 0"),
        (Scheme(bits=4, grid=MidRise()), "weight", "levels of its own"),
    ],
)
def test_schemes_that_inq_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Inq().build(scheme, role=role)


@pytest.mark.parametrize(
    "fractions, begins, message",
    [
        ((0.5, 1.0), (0.0,), "as many"),
        ((), (), "at least one"),
        ((0.5, 0.9), (0.0, 1.0), "from above 0 to 1"),
        ((0.5, 0.4, 1.0), (0.0, 0.5, 1.0), "from above 0 to 1"),
        ((0.0, 1.0), (0.0, 1.0), "from above 0 to 1"),
        ((0.5, 1.0), (0.5, 0.5), "one after the other"),
        ((0.5, 1.0), (0.5, 1.5), "one after the other"),
    ],
)
def test_stages_that_do_not_grow_are_refused(
    fractions: tuple[float, ...], begins: tuple[float, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Inq(fractions=fractions, begins=begins)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    eager, other = (started(Inq(), Scheme(bits=4), w) for _ in range(2))
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    for progress in (0.0, 0.5, 1.0):
        for quantizer in (eager, other):
            quantizer.advance(progress)
        assert torch.equal(compiled(w), eager(w))
    assert other.frozen.all()
    program = torch.export.export(eager.eval(), (w,))
    assert torch.equal(program.module()(w), eager(w))
