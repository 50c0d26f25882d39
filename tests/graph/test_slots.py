"""Slots, and layers whose weight passes one."""

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.graph.slots import QUANTIZED_LAYERS, Slot, give_weight_slot, weight_slot
from isobit.observers import MinMax
from isobit.quantizers import Fixed

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, stride=2), (2, 4, 6, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, dilation=2), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 4)),
}


def slot(name: str = "layer.weight") -> Slot:
    return Slot(Fixed().build(Scheme(bits=4)), name=name)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_quantized_layer_is_the_float_layer_with_another_weight(kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    keys, identity, expected = list(layer.state_dict()), id(layer), layer(x)
    give_weight_slot(layer, slot())
    assert id(layer) == identity
    assert [k for k in layer.state_dict() if "slot" not in k] == keys
    assert torch.equal(layer(x), expected)
    found = weight_slot(layer)
    assert found is not None
    found.observer, found.mode = MinMax().build(found.quantizer.scheme), "observe"  # type: ignore[arg-type]
    layer(x)
    found.calibrate()
    rounded = make()
    rounded.load_state_dict({k: v for k, v in layer.state_dict().items() if "slot" not in k})
    with torch.no_grad():
        rounded.weight.copy_(found.grid().fake_quantize(layer.weight))  # type: ignore[union-attr]
    assert torch.equal(layer(x), rounded(x))
    assert not torch.equal(layer(x), expected)


def test_all_kinds_of_layers_are_tried_above() -> None:
    made = [make() for make, _ in LAYERS.values()]
    assert {k for k in QUANTIZED_LAYERS for m in made if isinstance(m, k)} == set(QUANTIZED_LAYERS)


def test_layers_without_a_quantized_form() -> None:
    with pytest.raises(UnsupportedError, match=r"up\.weight: cannot quantize a ConvTranspose1d; layers with weights: "):
        give_weight_slot(nn.ConvTranspose1d(2, 2, 2), slot("up.weight"))
    assert weight_slot(nn.Linear(2, 2)) is None
    layer = nn.ConvTranspose2d(2, 2, 2)
    give_weight_slot(layer, slot())
    with pytest.raises(UnsupportedError, match="set output_padding instead"):
        layer(torch.randn(1, 2, 3, 3), output_size=[7, 7])


def test_modes() -> None:
    x = torch.linspace(-1, 1, 40)
    found = slot("relu")
    assert torch.equal(found(x), x)
    found.observer, found.mode = MinMax().build(Scheme(bits=4)), "observe"
    assert torch.equal(found(x), x)
    found.calibrate()
    assert found.observer is None
    assert found.mode == "quantize"
    assert found(x).unique().numel() == 15  # ±7 steps of 1/7
    assert "'relu', quantize" in repr(found)


@pytest.mark.parametrize("bad", [torch.tensor([float("nan")]), torch.tensor([float("inf")])])
def test_bad_values_are_named_by_their_place(bad: Tensor) -> None:
    found = slot("layer1.relu")
    found.observer, found.mode = MinMax().build(Scheme()), "observe"
    with pytest.raises(CalibrationError, match=r"at layer1\.relu: "):
        found(bad)
    with pytest.raises(CalibrationError, match=r"at layer1\.relu: .*saw no data"):
        found.calibrate()


def test_a_gradient_passes_to_the_float_weight() -> None:
    """Straight through, but for a weight at the very end of the range: as in LSQ, that counts as clipped."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.7, -0.5, 0.1, 0.3], [-0.7, 0.0, 0.2, -0.1]]))
    give_weight_slot(layer, slot())
    found = weight_slot(layer)
    assert found is not None
    found.quantizer.calibrate(QParams(torch.tensor(0.125), torch.tensor(0, dtype=torch.int32), Scheme(bits=4)))  # type: ignore[operator]
    found.mode = "quantize"
    with torch.no_grad():
        layer.weight[0, 0] = 0.875  # 7 steps: the highest level
    x = torch.randn(5, 4)
    layer(x).sum().backward()
    expected = x.sum(0).repeat(2, 1)
    expected[0, 0] = 0.0
    torch.testing.assert_close(layer.weight.grad, expected)


def test_mixed_precision_quantizes_in_float32() -> None:
    """x̂ in bfloat16 is that of float32, rounded once; under autocast a weight stays float32."""
    slot = Slot(Fixed().build(Scheme()), name="x")
    slot.quantizer.calibrate(QParams(torch.tensor(0.037), torch.tensor(0, dtype=torch.int32), Scheme()))
    slot.mode = "quantize"
    x = torch.randn(4096) * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(slot(x), slot.quantizer(x))
        half = slot(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, slot.quantizer(x.bfloat16().float()).bfloat16())
    assert torch.equal(slot(x.bfloat16()), half)
