"""What every post-training algorithm promises on the zoo: no worse than round-to-nearest, the same every time."""

import copy
import functools
import math
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, fx, nn

from isobit.algorithms import RECONSTRUCTIONS
from isobit.algorithms.bias_correction import BiasCorrection
from isobit.algorithms.calibration import Observation
from isobit.algorithms.channel_repair import ChannelRepair
from isobit.algorithms.lapq import Lapq
from isobit.algorithms.post_training import PostTraining, Preparing, prepare
from isobit.core.errors import CalibrationError
from isobit.core.granularity import PerGroup
from isobit.graph.capture import capture
from isobit.graph.convert import convert, hash_integers
from isobit.graph.insert import slots
from isobit.observers import OBSERVERS
from isobit.targets import TARGETS, Profile
from zoo import small_networks

NETWORKS = ("residual", "depthwise", "concat", "shared", "mlp", "vit")


@functools.cache
def captured_once(network: str) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    net, inputs = small_networks()[network]
    return capture(net, inputs), inputs


def fresh(network: str) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """A captured network of the zoo, to be changed."""
    model, inputs = captured_once(network)
    return copy.deepcopy(model).eval(), inputs


class Algorithm(Protocol):
    """Settings that turn a float network and calibration data into a quantized one."""

    def apply(self, net: nn.Module, example: Any, data: Any, profile: Profile) -> fx.GraphModule: ...


ALGORITHMS: dict[str, tuple[Algorithm, int]] = {
    "post_training": (PostTraining(), 8),
    "post_training, mse": (
        PostTraining(observation=Observation(weight=OBSERVERS["mse"](), activation=OBSERVERS["mse"]())),
        4,
    ),
    "joint_ranges": (
        PostTraining(
            observation=Observation(weight=OBSERVERS["mse"](), activation=OBSERVERS["mse"]()),
            joint_ranges=Lapq(samples=16, evaluations=20),
        ),
        4,
    ),
    "bias_correction": (PostTraining(bias_correction=BiasCorrection()), 8),
    "equalization": (PostTraining(preparing=Preparing(repair=ChannelRepair(equalize=True))), 8),
    "smoothing": (PostTraining(preparing=Preparing(repair=ChannelRepair(smooth=0.5))), 8),
    "splitting": (PostTraining(preparing=Preparing(repair=ChannelRepair(split_channels=0.1))), 8),
    "absorption": (PostTraining(preparing=Preparing(repair=ChannelRepair(absorb_bias=True))), 8),
    **{
        name: (
            PostTraining(
                observation=Observation(weight=OBSERVERS["mse"](), activation=OBSERVERS["mse"]()),
                reconstruction=kind(**({"iterations": 60} if hasattr(kind, "iterations") else {})),
            ),
            4,
        )
        for name, kind in RECONSTRUCTIONS.items()
    },
}
"""Each with the width at which it is meant to be used."""


def data_of(inputs: tuple[Tensor, ...]) -> list[tuple[tuple[Tensor, ...]]]:
    """Four batches; whole numbers stay as they are."""
    generator = torch.Generator().manual_seed(7)

    def like(x: Tensor) -> Tensor:
        return torch.randn(8, *x.shape[1:], generator=generator) if x.is_floating_point() else x.repeat(4, 1)

    return [(tuple(like(x) for x in inputs),) for _ in range(4)]


def error(model: nn.Module, net: nn.Module, data: list[tuple[tuple[Tensor, ...]]]) -> float:
    """Mean squared difference of the outputs, relative to the float network's power."""
    with torch.no_grad():
        pairs = [(model(*inputs), net(*inputs)) for (inputs,) in data]
    return float(sum((a - b).square().mean() for a, b in pairs) / sum(b.square().mean() for _, b in pairs))


def round_to_nearest(
    net: nn.Module, inputs: tuple[Tensor, ...], data: list[tuple[tuple[Tensor, ...]]], profile: Profile
) -> fx.GraphModule:
    """The plainest way, written out: each slot's range is that of the values that pass it, nothing is corrected."""
    model = prepare(net, inputs, profile).eval()
    for slot in slots(model):
        slot.observer, slot.mode = OBSERVERS["min_max"]().build(slot.quantizer.scheme), "observe"
    with torch.no_grad():
        for (batch,) in data:
            model(*batch)
    for slot in slots(model):
        slot.calibrate()
    return model


@pytest.mark.parametrize("name", ALGORITHMS)
def test_not_worse_than_round_to_nearest(name: str) -> None:
    """By the geometric mean over the zoo: on a single tiny network the luck of a few roundings decides."""
    algorithm, bits = ALGORITHMS[name]
    check_not_worse(algorithm, TARGETS["onnxruntime-x86"].with_bits(weight=bits, activation=bits))


def check_not_worse(algorithm: Algorithm, profile: Profile) -> None:
    """Log of the output's error against that of the plainest way."""
    gains = []
    for name in NETWORKS:
        data = data_of(captured_once(name)[1])
        net = captured_once(name)[0]
        plain = error(round_to_nearest(*fresh(name), data, profile), net, data)
        found = error(algorithm.apply(*fresh(name), data, profile), net, data)
        gains.append(math.log(found / plain))
    assert sum(gains) / len(gains) <= math.log(1.02), dict(zip(NETWORKS, gains, strict=True))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_integers_each_time(name: str, network: str) -> None:
    check_repeatable(ALGORITHMS[name][0], network, TARGETS["onnxruntime-x86"])


def check_repeatable(algorithm: Algorithm, network: str, profile: Profile) -> None:
    """Bit-equal integers, whatever was drawn from the global generator before."""
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = algorithm.apply(*fresh(network), data_of(captured_once(network)[1]), profile)
        assert model.meta["samples"] == 32
        hashes.add(hash_integers(convert(model)))
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_network_itself_stays(name: str) -> None:
    net, inputs = small_networks()["residual"]
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ALGORITHMS[name][0].apply(net, inputs, data_of(inputs), TARGETS["snpe"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("target", TARGETS)
def test_eight_bits_cost_little_and_two_bits_more(target: str) -> None:
    net, inputs = captured_once("residual")
    data, profile = data_of(inputs), TARGETS[target]
    if isinstance(profile.weight.granularity, PerGroup):
        profile = profile.with_groups(size=16)  # the inputs of its linear layer
    profiles = [profile.with_bits(weight=b, activation=b) for b in (8, 4, 2) if b in profile.widths] or [profile]
    errors = [error(PostTraining().apply(*fresh("residual"), data, p), net, data) for p in profiles]
    assert errors[0] < 0.01
    assert errors == sorted(errors)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_simulation_is_what_is_deployed(network: str) -> None:
    """A calibrated model and its deployed form, weights as integers, compute the same but for float32's last bits."""
    net, inputs = fresh(network)
    model = PostTraining().apply(net, inputs, data_of(inputs), TARGETS["tvm"])
    with torch.no_grad():
        torch.testing.assert_close(convert(model)(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([], "empty"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "NaN"),
        ([torch.zeros(2, 3, 8, 8)], "constant"),
        ([torch.randn(2, 4, 8, 8)], "batch 0"),
        ([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 9, 9)], "shape"),
    ],
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_data_that_cannot_be_used(name: str, data: list[Tensor], reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        ALGORITHMS[name][0].apply(*fresh("residual"), data, TARGETS["snpe"])
