"""The grids with levels of their own, against the constructions of their papers and brute force."""

import numpy as np
import pytest
import torch

from isobit.core.errors import CalibrationError, SettingError
from isobit.core.fake_quantize import fake_quantize, nearest_level
from isobit.core.granularity import PerChannel
from isobit.core.grid import AdditivePowersOfTwo, Codebook, Grid, MidRise, PowersOfTwo, Uniform, levels
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme

PUBLISHED = {
    2: [0, 0.25, 0.5, 1],
    3: [0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1],
    4: [0, 1 / 48, 1 / 24, 1 / 16, 1 / 12, 0.125, 1 / 6, 0.1875, 0.25, 1 / 3, 0.375, 0.5, 2 / 3, 0.6875, 0.75, 1],
}
"""The levels that the paper's code prints for each number of bits of the magnitude, the highest being 1."""

WITH_LEVELS = {
    "mid-rise 1": Scheme(bits=1, grid=MidRise()),
    "mid-rise 3": Scheme(bits=3, grid=MidRise()),
    "mid-rise 8": Scheme(bits=8, grid=MidRise()),
    "mid-rise 2^n": Scheme(bits=2, grid=MidRise(), scale=PowerOfTwo()),
    "additive s2": Scheme(bits=2, grid=AdditivePowersOfTwo()),
    "additive s4": Scheme(bits=4, grid=AdditivePowersOfTwo()),
    "additive s6": Scheme(bits=6, grid=AdditivePowersOfTwo()),
    "additive u3": Scheme(bits=3, signed=False, grid=AdditivePowersOfTwo()),
    "additive u5": Scheme(bits=5, signed=False, grid=AdditivePowersOfTwo()),
    "powers of two s4": Scheme(bits=4, grid=PowersOfTwo()),
}


@pytest.mark.parametrize("bits", PUBLISHED)
def test_additive_powers_of_two_are_those_of_the_paper(bits: int) -> None:
    mine = np.array(levels(AdditivePowersOfTwo(), bits, signed=False))
    np.testing.assert_allclose(mine / mine[-1], PUBLISHED[bits], rtol=1e-12)


def test_five_bits_of_magnitude_are_three_terms() -> None:
    """The paper's base 2^-1, 2^-2, …, dealt in turn to three sets, the last of which gets one term."""
    terms = ([0, 2**-1, 2**-3, 2**-6], [0, 2**-2, 2**-4, 2**-7], [0, 2**-5])
    sums = np.unique([a + b + c for a in terms[0] for b in terms[1] for c in terms[2]])
    mine = np.array(levels(AdditivePowersOfTwo(), 5, signed=False))
    assert np.array_equal(mine / 128, sums)


@pytest.mark.parametrize("bits", range(1, 6))
def test_additive_powers_of_two_use_every_code(bits: int) -> None:
    """No two sums coincide: 2^bits magnitudes, and with a sign 2^(bits + 1) - 1 levels, the zeros being one."""
    magnitudes = levels(AdditivePowersOfTwo(), bits, signed=False)
    assert len(magnitudes) == 2**bits
    signed = levels(AdditivePowersOfTwo(), bits + 1, signed=True)
    assert signed == (*(-m for m in reversed(magnitudes[1:])), *magnitudes)


def test_two_bit_weights_of_apot_are_ternary() -> None:
    assert Scheme(bits=2, grid=AdditivePowersOfTwo()).levels == (-1, 0, 1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_mid_rise_levels_are_odd_and_symmetric(bits: int) -> None:
    mine = Scheme(bits=bits, grid=MidRise()).levels
    assert len(mine) == 2**bits
    assert set(np.diff(mine)) == {2}
    assert mine == tuple(-level for level in reversed(mine))
    np.testing.assert_allclose(np.array(mine) / mine[-1], np.linspace(-1, 1, 2**bits), atol=1e-15)


def test_mid_rise_takes_zero_to_the_upper_level() -> None:
    """sign(0) = 1, also for -0.0, in fake quantization and in the integers."""
    zeros = torch.tensor([0.0, -0.0])
    scheme = Scheme(bits=1, grid=MidRise())
    q = QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), scheme)
    assert q.quantize(zeros).tolist() == [1, 1]
    assert q.fake_quantize(zeros).tolist() == [0.5, 0.5]
    assert nearest_level(torch.tensor([-2.0, 2.0]), (-3, -1, 1, 3), ties_up=True).tolist() == [
        -1.0,
        3.0,
    ]


@pytest.mark.parametrize("name", WITH_LEVELS)
def test_integers_are_the_nearest_levels(name: str) -> None:
    scheme = WITH_LEVELS[name]
    torch.manual_seed(0)
    x = torch.randn(2000) if scheme.signed else torch.rand(2000)
    p = qparams_of_range(x.min(), x.max(), scheme)
    table = np.array(scheme.levels, dtype=np.float64)
    distance = np.abs(x.double().numpy()[:, None] / p.scale.double().item() - table)
    integers = p.quantize(x).numpy()
    assert set(integers.tolist()) <= set(scheme.levels)
    chosen = np.abs(x.double().numpy() / p.scale.double().item() - integers)
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-4)
    assert torch.equal(p.dequantize(p.quantize(x)), p.fake_quantize(x))
    assert torch.equal(p.fake_quantize(p.fake_quantize(x)), p.fake_quantize(x))


@pytest.mark.parametrize("name", WITH_LEVELS)
def test_gradients_of_a_grid_equal_the_closed_form(name: str) -> None:
    scheme = WITH_LEVELS[name]
    torch.manual_seed(1)
    s = 0.9 / scheme.quant_max
    x = torch.randn(400, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(400, dtype=torch.float64)
    y = fake_quantize(x, scale, torch.tensor(0), scheme)
    grad_x, grad_scale = torch.autograd.grad(y, (x, scale), upstream)

    u, g, table = x.detach().numpy() / s, upstream.numpy(), np.array(scheme.levels, dtype=np.float64)
    nearest = table[np.abs(u[:, None] - table).argmin(1)]
    inside = (u > table[0]) & (u < table[-1])
    assert 0 < inside.sum() < 400
    assert np.array_equal(y.detach().numpy(), nearest * s)
    assert np.array_equal(grad_x.numpy(), g * inside)
    slope = np.where(inside, nearest - u, nearest)
    np.testing.assert_allclose(grad_scale.item(), (g * slope).sum(), rtol=1e-12)


class OnGrid(torch.nn.Module):
    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, torch.tensor(0.1), torch.tensor(0), self.scheme)


@pytest.mark.parametrize("name", ["mid-rise 3", "additive s4", "powers of two s4"])
def test_export_keeps_a_dynamic_batch(name: str) -> None:
    net = OnGrid(WITH_LEVELS[name])
    program = torch.export.export(net, (torch.randn(2, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(7, 6)
    assert torch.equal(program.module()(x), net(x))


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("name", ["mid-rise 3", "additive s4", "powers of two s4"])
def test_compile_gives_the_eager_values_and_gradients(name: str) -> None:
    net = OnGrid(WITH_LEVELS[name])
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 6, requires_grad=True)
    assert torch.equal(compiled(x), net(x))
    (traced,), (eager,) = (torch.autograd.grad((m(x) ** 2).sum(), x) for m in (compiled, net))
    assert torch.equal(traced, eager)


def test_what_is_not_a_number_stays_so() -> None:
    """A diverged network shows it, instead of going on with the highest level."""
    for scheme in WITH_LEVELS.values():
        y = fake_quantize(torch.tensor([float("nan"), 0.0, float("inf")]), torch.tensor(0.5), torch.tensor(0), scheme)
        assert y.isnan().tolist() == [True, False, False]
        assert y[2] == 0.5 * scheme.quant_max


def test_per_channel_scales_of_a_mid_rise_grid() -> None:
    scheme = Scheme(bits=2, grid=MidRise(), granularity=PerChannel(0))
    p = QParams(torch.tensor([1.0, 10.0]), torch.zeros(2, dtype=torch.int32), scheme)
    assert p.quantize(torch.tensor([[-0.5, 9.0], [-0.5, 9.0]])).tolist() == [[-1, 3], [-1, 1]]
    low, high = p.range()
    assert (low.tolist(), high.tolist()) == ([-3.0, -30.0], [3.0, 30.0])


def codebook(values: list[float], *, bits: int, scale: float = 1.0) -> QParams:
    scheme = Scheme(bits=bits, grid=Codebook())
    return QParams(torch.tensor(scale), torch.tensor(0, dtype=torch.int32), scheme, torch.tensor(values))


def test_a_codebook_takes_the_nearest_of_its_values() -> None:
    p = codebook([-1.0, 0.0, 0.25, 4.0], bits=2, scale=0.5)
    x = torch.randn(1000) * 2
    table = np.array([-1.0, 0.0, 0.25, 4.0]) * 0.5
    nearest = np.abs(x.numpy()[:, None] - table).argmin(1)
    assert np.array_equal(p.quantize(x).numpy(), nearest)
    assert np.array_equal(p.fake_quantize(x).numpy(), table[nearest].astype(np.float32))
    assert [bound.item() for bound in p.range()] == [-0.5, 2.0]


def test_a_codebook_may_have_fewer_values_than_codes_and_equal_ones() -> None:
    ternary = codebook([-0.3, 0.0, 0.7], bits=2)
    assert ternary.quantize(torch.tensor([-9.0, -0.3, 0.0, 0.7, 9.0])).tolist() == [0, 0, 1, 2, 2]
    doubled = codebook([-0.3, 0.0, 0.7, 0.7], bits=2)
    x = torch.randn(500)
    assert torch.equal(doubled.fake_quantize(x), ternary.fake_quantize(x))


def test_neighbours_in_float32_keep_their_own_values() -> None:
    """Their middle, rounded to float32, is one of the two: the search runs in float64."""
    a = np.float32(1.0)
    b, c = np.nextafter(a, np.float32(2)), np.nextafter(np.nextafter(a, np.float32(2)), np.float32(2))
    values = torch.tensor([float(a), float(b), float(c)])
    assert torch.equal(codebook(values.tolist(), bits=2).fake_quantize(values), values)


def test_a_codebook_keeps_the_dtype_of_what_it_quantizes() -> None:
    assert codebook([-1.0, 1.0], bits=1).fake_quantize(torch.tensor([0.3], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("low, high", [(-1.5, 4.0), (0.0, 3.0), (-2.0, 0.0)])
def test_a_codebook_starts_evenly_over_the_range(low: float, high: float) -> None:
    p = qparams_of_range(torch.tensor(low), torch.tensor(high), Scheme(bits=3, grid=Codebook()))
    assert p.codebook is not None
    torch.testing.assert_close(p.codebook * p.scale, torch.linspace(low, high, 8), rtol=1e-6, atol=1e-6)
    unsigned = qparams_of_range(torch.tensor(low), torch.tensor(4.0), Scheme(bits=2, signed=False, grid=Codebook()))
    assert unsigned.codebook is not None
    torch.testing.assert_close(unsigned.codebook * unsigned.scale, torch.linspace(0, 4, 4))


def test_a_codebook_per_channel_has_a_scale_for_each() -> None:
    scheme = Scheme(bits=2, grid=Codebook(), granularity=PerChannel(0))
    p = qparams_of_range(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 8.0]), scheme)
    assert p.scale.tolist() == [1.0, 8.0]
    assert p.fake_quantize(torch.tensor([[1.0, -1.0], [8.0, -8.0]])).tolist() == [[1.0, -1.0], [8.0, -8.0]]


@pytest.mark.parametrize("values", [[1.0, 0.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_a_codebook_is_finite_and_ascending(values: list[float]) -> None:
    with pytest.raises(CalibrationError, match="finite and ascending"):
        codebook(values, bits=2)


@pytest.mark.parametrize("values", [[], [0.0, 1.0, 2.0]])
def test_a_codebook_has_no_more_values_than_codes(values: list[float]) -> None:
    with pytest.raises(SettingError, match="1 to 2 values"):
        codebook(values, bits=1)


def test_a_codebook_and_its_grid_come_together() -> None:
    zero = torch.tensor(0, dtype=torch.int32)
    with pytest.raises(SettingError, match="belongs to"):
        QParams(torch.tensor(1.0), zero, Scheme(bits=2, grid=Codebook()))
    with pytest.raises(SettingError, match="belongs to"):
        QParams(torch.tensor(1.0), zero, Scheme(bits=2), torch.tensor([0.0, 1.0]))
    with pytest.raises(SettingError, match="looks them up"):
        fake_quantize(torch.zeros(2), torch.tensor(1.0), zero, Scheme(bits=2, grid=Codebook()))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"grid": MidRise(), "signed": False}, "no level at 0"),
        ({"grid": MidRise(), "adapt_sign": True}, "no level at 0"),
        ({"grid": Codebook(), "symmetric": False}, "zero point"),
        ({"grid": MidRise(), "rounding": Floor()}, "nearest level"),
        ({"grid": AdditivePowersOfTwo(), "bits": 8}, "1 to 5 bits, not 7"),
        ({"grid": AdditivePowersOfTwo(), "bits": 6, "signed": False}, "1 to 5 bits, not 6"),
        ({"grid": AdditivePowersOfTwo(), "bits": 1}, "1 to 5 bits, not 0"),
    ],
)
def test_formats_that_contradict_themselves_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Scheme(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "grid, word",
    [
        (Uniform(), "s3 symmetric per-tensor"),
        (MidRise(), "s3 symmetric per-tensor mid-rise"),
        (AdditivePowersOfTwo(), "s3 symmetric per-tensor additive powers of two"),
        (Codebook(), "s3 symmetric per-tensor codebook"),
    ],
)
def test_a_scheme_names_its_grid(grid: Grid, word: str) -> None:
    assert str(Scheme(bits=3, grid=grid)) == word
