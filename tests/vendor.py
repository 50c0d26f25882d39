"""A quantized network for each of the vendors' formats, and what the simulation computes, without the exporters."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
from torch import Tensor, fx

import isobit
from isobit.core.granularity import PerChannel
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.graph.convert import convert
from isobit.graph.deployed import DeployedConv, DeployedLinear
from isobit.graph.names import names
from isobit.graph.slots import Slot
from isobit.targets import TARGETS, Profile
from isobit.targets.profile import GRAPH_1, GRAPH_3
from zoo import small_networks

NARROW = replace(
    TARGETS["tensorrt"],
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(narrow=True),
    signed_bytes=True,
)
"""Signed bytes from -127 to 127, as several engines for phones take them."""

PROFILES: Mapping[str, Profile] = {
    "pt2e": TARGETS["executorch-xnnpack"],
    "openvino": TARGETS["openvino-cpu"],
    "tensorrt": TARGETS["tensorrt"],
    "tensorrt-cache": TARGETS["tensorrt"],
    "tensorrt-ranges": TARGETS["tensorrt"],
    "aimet": TARGETS["snpe"],
    "aimet-1.0": TARGETS["snpe"],
    "ascend": TARGETS["ascend"],
    "ncnn": replace(NARROW, placement=GRAPH_1),
    "ncnn-int8": TARGETS["ncnn"],
    "mnn": replace(NARROW, placement=GRAPH_3),
    "tengine": replace(NARROW, placement=GRAPH_3),
    "vitis-ai": TARGETS["tvm"],
}
"""For each format a target that it is made for."""

BY_LAYER = frozenset({"ascend", "ncnn"})
"""Formats that hold the inputs of layers, not every tensor."""

WITHOUT_WEIGHTS = frozenset({"tensorrt-cache", "tensorrt-ranges", "tengine"})
"""Formats whose tools round weights by themselves."""


@dataclass(frozen=True)
class Quantized:
    """A prepared model and its inputs."""

    model: fx.GraphModule
    inputs: tuple[Tensor, ...]


@contextmanager
def known_target(profile: Profile) -> Iterator[str]:
    """The name under which a profile is in the table for a while."""
    with patch.dict(TARGETS, {"of-this-test": profile}):
        yield "of-this-test"


@functools.cache
def quantized(network: str, format: str) -> Quantized:
    """A network of the zoo for a target of a format: made once."""
    net, inputs = small_networks()[network]
    with known_target(PROFILES[format]) as target:
        return Quantized(isobit.quantize(net, [(inputs,)], target=target), inputs)


def simulated_weights(model: fx.GraphModule) -> dict[str, np.ndarray]:
    """q - zero_point of each weight, and q of each bias at s_x · s_w, by the layer's name."""
    deployed, found = convert(model), {}
    for node, name in names(deployed.graph).items():
        layer = deployed.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, (DeployedConv, DeployedLinear)):
            continue
        q, zero_point = (t.numpy().astype(np.int32) for t in (layer.integer.q, layer.integer.zero_point))
        axis = layer.integer.axis
        found[f"{name}.weight"] = q - zero_point.reshape(
            [-1 if i == axis else 1 for i in range(q.ndim)] if zero_point.ndim else []
        )
        if "bias_q" in layer.integer._buffers:
            found[f"{name}.bias"] = layer.integer.bias_q.numpy()
    return found


def declared_grids(model: fx.GraphModule) -> list[QParams]:
    """What the quantizers of activations declare."""
    slots = [m for n, m in model.named_modules() if isinstance(m, Slot) and not n.endswith("weight_slot")]
    return [grid for slot in slots if isinstance(grid := slot.grid(), QParams)]


def grid_key(scale: float, lowest: int, highest: int) -> tuple[float, int, int]:
    """A grid as a value that can be compared: its scale to seven digits, which IR and tables state."""
    return float(f"{scale:.6e}"), lowest, highest


def run(model: onnx.ModelProto, inputs: list[np.ndarray]) -> np.ndarray:
    """The first output, computed in float by ONNX Runtime without optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found, *_) = session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))
    assert isinstance(found, np.ndarray)
    return found
