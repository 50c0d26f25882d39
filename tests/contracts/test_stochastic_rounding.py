"""Stochastic rounding in training: what every quantizer of the table that takes it promises, and who refuses it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from algorithms.blobs import Blobs, evaluation, prepared
from contracts.test_quantizers import ROLES, calibrated, taken
from isobit.algorithms.calibration import Observation, calibrate
from isobit.algorithms.post_training import Preparing, prepare
from isobit.algorithms.training import Training, train
from isobit.core.errors import UnsupportedError
from isobit.core.granularity import expand
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import Stochastic
from isobit.core.scheme import Scheme
from isobit.graph.convert import convert, hash_integers
from isobit.graph.insert import slots
from isobit.graph.slots import Slot
from isobit.quantizers import QUANTIZERS, Ewgs, Lsq, LsqPlus, Pact, Role, Tqt
from isobit.targets import TARGETS

TAKE = {
    "dorefa",
    "dsq",
    "ewgs",
    "fixed",
    "logarithmic",
    "lsq",
    "lsq_plus",
    "n2uq",
    "pact",
    "qil",
    "sawb",
    "tqt",
}
DRAWS = 64

every_taker = pytest.mark.parametrize("name", sorted(TAKE))
every_role = pytest.mark.parametrize("role", ROLES)


def input_of() -> Tensor:
    return torch.randn(4, 65, generator=torch.Generator().manual_seed(0))


def rounded_value(name: str, role: Role, quantizer: nn.Module, x: Tensor) -> Tensor:
    """What is rounded, by the papers: the weights themselves, or as DoReFa and QIL transform them."""
    if role == "weight" and name == "qil":
        return x / x.abs().max() if x.dim() and quantizer.center.dim() == 0 else x / x.abs().amax(1, keepdim=True)  # type: ignore[operator, union-attr]
    if role == "weight" and name == "dorefa" and quantizer.scheme.bits > 1:  # type: ignore[union-attr]
        return x.tanh() / x.tanh().abs().max()
    return x


def test_the_table_says_who_takes_it() -> None:
    assert {name for name, settings in QUANTIZERS.items() if getattr(settings, "stochastic_rounding", False)} == TAKE


@every_taker
@every_role
def test_the_mean_over_the_noise_is_the_clipped_value(name: str, role: Role) -> None:
    """Noise (i + 1/2) / n for i < n draws the upper level in n p of n cases, to within one: no chance is left."""
    x = input_of()
    for scheme in taken(name, role):
        quantizer = calibrated(name, scheme, role, x)
        drawn = torch.stack([quantizer(x, noise=torch.full_like(x, (i + 0.5) / DRAWS)).detach() for i in range(DRAWS)])
        grid = quantizer.grid()
        low, high = (expand(bound, x.dim(), scheme.granularity) for bound in grid.range())
        scale = expand(grid.scale, x.dim(), scheme.granularity)
        gap = max(b - a for a, b in zip(grid.scheme.levels, grid.scheme.levels[1:], strict=False))
        wanted = rounded_value(name, role, quantizer, x).clamp(low, high)
        assert bool(((drawn.mean(0) - wanted).abs() <= (gap / DRAWS + 1e-5 * grid.scheme.quant_max) * scale).all()), (
            scheme
        )
        for y in drawn[:: DRAWS // 4]:
            assert torch.equal(grid.fake_quantize(y), y), scheme


@every_taker
@every_role
def test_only_training_draws_and_the_seed_says_what(name: str, role: Role) -> None:
    x = input_of()
    for scheme in taken(name, role):
        slot = Slot(calibrated(name, scheme, role, x), name="w", stochastic=True)
        slot.mode = "quantize"

        def seeded(seed: int, slot: Slot = slot) -> Tensor:
            torch.manual_seed(seed)
            return slot(x).detach()  # type: ignore[no-any-return]

        assert torch.equal(seeded(1), seeded(1)), scheme
        assert not torch.equal(seeded(1), seeded(2)), scheme
        slot.eval()
        nearest = slot.quantizer(x)
        assert torch.equal(seeded(1), nearest), scheme
        assert torch.equal(seeded(2), nearest), scheme


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@every_taker
def test_compiled_draws_are_the_eager_ones(name: str) -> None:
    role: Role = "weight"
    x = input_of()
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    scheme = next(s for s in taken(name, role) if 1 < s.bits <= 4 or name == "tqt")
    quantizer = calibrated(name, scheme, role, x)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, noise=noise), quantizer(x, noise=noise))


def test_a_preparation_with_it_draws_in_every_slot_of_a_network_that_trains() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(4, 3, 8, 8)
    model = prepare(net, x, TARGETS["academic"], Preparing(weight=Lsq(), activation=Lsq(), stochastic_rounding=True))
    calibrate(model, [x], Observation())
    assert slots(model) and all(slot.stochastic for slot in slots(model))
    before = hash_integers(convert(model))
    model.train()
    outputs = [model(x) for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert torch.equal(model(x), model(x))
    assert hash_integers(convert(model)) == before


@pytest.mark.parametrize("name", sorted(QUANTIZERS.keys() - TAKE))
def test_the_others_refuse_it_by_name(name: str) -> None:
    settings = QUANTIZERS[name]()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(UnsupportedError, match=f"{type(settings).__name__} has no stochastic rounding"):
        prepare(
            net,
            torch.randn(1, 3, 8, 8),
            TARGETS["academic"],
            Preparing(weight=settings, activation=Lsq(), stochastic_rounding=True),
        )


@pytest.mark.parametrize("name", QUANTIZERS)
@every_role
def test_no_quantizer_takes_it_for_what_is_deployed(name: str, role: Role) -> None:
    with pytest.raises(UnsupportedError):
        QUANTIZERS[name]().build(Scheme(bits=4, rounding=Stochastic()), role=role)


def drawn_integer(u: Tensor, noise: Tensor) -> Tensor:
    return u.floor() + (noise < u - u.floor())


def lsq(s: Tensor, x: Tensor, noise: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Equation 3 of LSQ with the integer that was drawn, signed 4 bits."""
    u = x / s
    r, inside = drawn_integer(u, noise), (u > -8) & (u < 7)
    slope = torch.where(inside, r - u, u.clamp(-8, 7))
    return {"output": r.clamp(-8, 7) * s, "x": g * inside, "scale": (g * slope).sum()}


def tqt(log2_t: Tensor, x: Tensor, noise: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Equations 7 and 8 of TQT, signed 4 bits."""
    s = 2 ** (log2_t.ceil() - 3)
    u = x / s
    r = drawn_integer(u, noise)
    inside = (r >= -8) & (r <= 7)
    slope = torch.where(inside, r - u, r.clamp(-8, 7)) * s * math.log(2)
    return {"output": r.clamp(-8, 7) * s, "x": g * inside, "log2_t": (g * slope).sum()}


def pact(alpha: Tensor, x: Tensor, noise: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Equation 3 of PACT, unsigned 4 bits; rounding plays no part in it."""
    s = (alpha / 15).float().double()
    u = x / s
    y = drawn_integer(u, noise).clamp(0, 15) * s
    return {"output": y, "x": g * ((u > 0) & (u < 15)), "alpha": (g * (u >= 15)).sum()}


def ewgs(upper: Tensor, x: Tensor, noise: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Section 3 of EWGS, unsigned 4 bits, delta = 1e-3: the error is that of the level that was drawn."""
    s = upper / 15
    u = (x / s).clamp(0, 15)
    r = drawn_integer(u, noise)
    to_level = g * s * (1 + float(torch.tensor(1e-3)) * (g * s).sign() * (u - r) / 15)
    inside = (x > 0) & (x < upper)
    to_upper = (g * r / 15).sum() + (to_level * torch.where(inside, -x / s**2 / 15, torch.zeros_like(x))).sum()
    return {"output": r * s, "x": to_level * inside / s, "upper": to_upper}


FORMS: dict[str, tuple[Any, Scheme, Any]] = {
    "lsq": (Lsq(damp=False), Scheme(bits=4), lsq),
    "lsq_plus": (LsqPlus(damp=False), Scheme(bits=4), lsq),
    "tqt": (Tqt(), Scheme(bits=4), tqt),
    "pact": (Pact(), Scheme(bits=4, signed=False), pact),
    "ewgs": (Ewgs(), Scheme(bits=4, signed=False), ewgs),
}


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_the_closed_form_of_what_was_drawn(name: str) -> None:
    settings, scheme, form = FORMS[name]
    generator = torch.Generator().manual_seed(3)
    x, upstream = (torch.randn(500, dtype=torch.float64, generator=generator) for _ in range(2))
    noise = torch.rand(500, dtype=torch.float64, generator=generator)
    quantizer = settings.build(scheme)
    low = torch.tensor(-1.2 if scheme.signed else 0.0)
    quantizer.calibrate(qparams_of_range(low, torch.tensor(1.2), quantizer.scheme))
    quantizer.double()
    x.requires_grad_()
    y = quantizer(x, noise=noise)
    (parameter, value), *others = quantizer.named_parameters()
    assert not others
    to_x, to_parameter = torch.autograd.grad(y, [x, value], upstream)
    wanted = form(value.detach(), x.detach(), noise, upstream)
    assert not torch.equal(wanted["output"], quantizer(x).detach())
    for found, key in ((y.detach(), "output"), (to_x, "x"), (to_parameter, parameter)):
        torch.testing.assert_close(found, wanted[key], rtol=1e-12, atol=1e-12)


def test_the_gradient_of_dsq_is_that_of_its_curve_whatever_is_drawn() -> None:
    x = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64, requires_grad=True)
    quantizer = calibrated("dsq", Scheme(bits=3), "activation", x.detach().float()).double()
    found = []
    for noise in (None, torch.rand_like(x)):
        found.append(torch.autograd.grad(quantizer(x, noise=noise).sum(), [x, quantizer.alpha]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_resumed_training_draws_the_same(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")

    def fresh() -> fx.GraphModule:
        model = prepared(-1)
        for slot in slots(model):
            slot.stochastic = True
        return model

    settings = Training(epochs=3, learning_rate=0.02)
    whole = fresh()
    train(whole, Blobs(), evaluation(), settings, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(fresh(), Blobs(dies_in=2), evaluation(), settings, folder=tmp_path / "broken")
    torch.manual_seed(123)
    resumed = fresh()
    train(resumed, Blobs(), evaluation(), settings, folder=tmp_path / "broken")
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert hash_integers(convert(whole)) == hash_integers(convert(resumed))
    plain = prepared(-1)
    train(plain, Blobs(), evaluation(), settings, folder=tmp_path / "plain")
    assert hash_integers(convert(plain)) != hash_integers(convert(whole))
