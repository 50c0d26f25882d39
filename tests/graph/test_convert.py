"""Conversion: the deployed network computes what the prepared one does, with integers inside."""

import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerGroup
from isobit.graph.convert import convert, hash_integers, integers, round_biases
from isobit.graph.insert import slots
from isobit.graph.slots import Slot
from isobit.targets import TARGETS
from zoo import small_networks


def quantized(name: str, target: str = "snpe", **settings: object) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    net, inputs = small_networks()[name]
    return isobit.quantize(net, [(inputs,)], target=target, **settings), inputs


@pytest.mark.parametrize("target", TARGETS)
def test_deployed_equals_simulation(target: str) -> None:
    """Where they sum the same numbers in the same order: the very same bits but for the folded bias."""
    groups = {"group_size": 16} if isinstance(TARGETS[target].weight.granularity, PerGroup) else {}
    model, inputs = quantized("residual", target, bits=4 if 4 in TARGETS[target].widths else None, **groups)
    deployed = convert(model)
    with torch.no_grad():
        torch.testing.assert_close(deployed(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)
    assert not any(isinstance(m, Slot) for m in deployed.modules())
    assert any(isinstance(m, Slot) for m in model.modules())
    assert not any(p.requires_grad for p in deployed.parameters())


def test_what_is_stored() -> None:
    model, _ = quantized("residual")
    found = integers(convert(model))
    kinds = {key.rpartition(".")[2]: v.dtype for key, v in found.items() if ".integer." in key}
    assert kinds == {
        "q": torch.int8, "scale": torch.float32, "zero_point": torch.int8, "bias_q": torch.int32,
        "bias_scale": torch.float32, "bias_zero_point": torch.int32,
    }  # fmt: skip
    layers = [s for s in slots(model) if s.point.endswith(".weight")]
    assert sum(key.endswith("integer.q") for key in found) == len(layers) == 5


def test_the_hash_sees_every_integer() -> None:
    model, _ = quantized("mlp")
    deployed = convert(model)
    before = hash_integers(deployed)
    assert before == hash_integers(convert(model))
    for name in integers(deployed):
        owner, _, key = name.rpartition(".")
        buffer = deployed.get_submodule(owner)._buffers[key]
        assert buffer is not None
        flat = buffer.view(-1)
        kept = flat[0].clone()
        flat[0] = kept + 1
        assert hash_integers(deployed) != before, name
        flat[0] = kept
    assert hash_integers(deployed) == before


def test_biases_lie_on_the_accumulator_s_grid() -> None:
    model, _ = quantized("depthwise")
    layer = model.get_submodule("expand.0")
    slot = next(s for s in slots(model) if s.point == "expand.0.weight")
    source = next(s for s in slots(model) if s.point == "stem.3")
    steps = layer.bias.double() / (source.grid().scale * slot.grid().scale).double()
    torch.testing.assert_close(steps, steps.round(), rtol=2.0**-23, atol=0)  # a float32 each
    kept = layer.bias.clone()
    round_biases(model)
    assert torch.equal(layer.bias, kept)


def test_a_bias_stays_in_float_where_the_input_does() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), torch.randn(4, 3, 8, 8)
    model = isobit.quantize(net, [x], target="academic", activation_bits=32)
    assert not any(key.endswith("bias_q") for key in integers(convert(model)))


def test_a_layer_that_is_called_twice_is_deployed_twice() -> None:
    """Its two inputs have two scales, hence two integer biases."""
    model, inputs = quantized("shared")
    found = {k: v for k, v in integers(convert(model)).items() if k.startswith("deployed_conv") and "bias_scale" in k}
    first, second = found.values()
    assert not torch.equal(first, second)
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(*inputs), model(*inputs), rtol=0, atol=0.05)


class Signs(nn.Module):
    """A ReLU moved and joined stays non-negative; a sum with something negative does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.relu(self.a(x)))
        z = torch.cat([y, y], 1)[:, :3]
        return self.c(self.b(z) + y)


def test_where_no_value_is_negative_zero_is_the_lowest_level() -> None:
    model = isobit.quantize(Signs().eval(), [torch.randn(8, 3, 8, 8)], target="tensorrt")
    zero = {k: int(v) for k, v in integers(convert(model)).items() if k.endswith("zero_point") and "slots" in k}
    lowest = {
        k.removeprefix("deployed_activation_slots_").removesuffix(".zero_point") for k, z in zero.items() if z == 0
    }
    assert {n for n in lowest if "relu" in n} == lowest
    assert lowest
    assert all(z in (0, 128) for z in zero.values())


def test_what_has_no_deployed_form() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    model = isobit.quantize(net, [torch.randn(4, 3, 6, 6)], target="snpe")
    with pytest.raises(UnsupportedError, match="reflect padding cannot be exported"):
        convert(model)
    model, _ = quantized("mlp", "snpe", activation_quantizer="dynamic")
    with pytest.raises(UnsupportedError, match=r"x: .*fixed"):
        convert(model)
