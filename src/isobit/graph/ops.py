"""What a node of a graph does, as one word: the same for a module, an ATen overload, a function and a method."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, padding, pooling

from isobit.graph.attention import Attention, AttentionWeights
from isobit.graph.capped import CappedReLU
from isobit.graph.deployed import GlobalAveragePool
from isobit.graph.deployed_activations import (
    ActivationQuantizer,
    DynamicActivationQuantizer,
    GeometricQuantizer,
    LevelQuantizer,
)
from isobit.graph.deployed_float16 import Float16Quantizer
from isobit.graph.names import function_name
from isobit.graph.slots import Slot

MEANINGS: Mapping[str, str] = {
    "input": "an input of the network",
    "output": "its outputs",
    "constant": "a parameter or buffer that an operator reads (get_attr)",
    "shape": "a number computed from shapes, not a tensor",
    "getitem": "picks one of several results",
    "conv": "convolution in 1, 2 or 3 dimensions",
    "conv_transpose": "transposed convolution",
    "linear": "x Wᵀ + b",
    "embedding": "rows of a table",
    "batch_norm": "batch normalization",
    "layer_norm": "layer normalization, root mean square normalization too",
    "group_norm": "group normalization",
    "instance_norm": "instance normalization",
    "relu": "max(x, 0)",
    "relu6": "min(max(x, 0), 6)",
    "capped_relu": "min(max(x, 0), c), one c for each channel",
    "hardswish": "x · relu6(x + 3) / 6",
    "hardsigmoid": "relu6(x + 3) / 6",
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "hyperbolic tangent",
    "silu": "x · sigmoid(x)",
    "gelu": "x · Φ(x), exact or by tanh",
    "leaky_relu": "x where positive, else a fixed slope times x",
    "prelu": "x where positive, else a learned slope times x",
    "elu": "x where positive, else exp(x) - 1, scaled (ELU, SELU, CELU)",
    "softmax": "softmax along one axis",
    "dropout": "anything that drops in train mode and is the identity in eval mode",
    "add": "x + y",
    "sub": "x - y",
    "mul": "x · y",
    "div": "x / y",
    "matmul": "product of two computed matrices",
    "attention": "scaled dot-product attention",
    "concat": "several tensors along one axis (stack too)",
    "slice": "a part of a tensor: slice, select, split, chunk, narrow",
    "pad": "adds values around a tensor",
    "reshape": "the same values in another shape: view, flatten, squeeze, unsqueeze, expand",
    "transpose": "the axes in another order",
    "max_pool": "largest value of a window",
    "avg_pool": "mean of a window",
    "global_avg_pool": "mean over both spatial axes",
    "quantize": "a quantizer of a prepared or deployed network",
    "mean": "mean over other axes",
    "interpolate": "changes the resolution",
    "identity": "returns its input: identity, contiguous, clone, a cast to the same type",
    "clamp": "limits to a range",
    "other": "anything else",
}
"""Every kind that `op_kind` returns, and what it means."""

KINDS = frozenset(MEANINGS)

MODULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv_transpose"),
    (conv._ConvNd, "conv"),
    (nn.Linear, "linear"),
    (nn.Embedding, "embedding"),
    (batchnorm._BatchNorm, "batch_norm"),
    (instancenorm._InstanceNorm, "instance_norm"),
    ((nn.LayerNorm, nn.RMSNorm), "layer_norm"),
    (nn.GroupNorm, "group_norm"),
    (nn.ReLU6, "relu6"),
    (CappedReLU, "capped_relu"),
    (nn.ReLU, "relu"),
    (nn.Hardswish, "hardswish"),
    (nn.Hardsigmoid, "hardsigmoid"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Tanh, "tanh"),
    (nn.SiLU, "silu"),
    (nn.GELU, "gelu"),
    (nn.LeakyReLU, "leaky_relu"),
    (nn.PReLU, "prelu"),
    ((nn.ELU, nn.SELU, nn.CELU), "elu"),
    ((nn.Softmax, nn.Softmax2d, AttentionWeights), "softmax"),
    (nn.Hardtanh, "clamp"),
    (dropout._DropoutNd, "dropout"),
    (Attention, "attention"),
    (pooling._MaxPoolNd, "max_pool"),
    (pooling._AdaptiveMaxPoolNd, "max_pool"),
    (GlobalAveragePool, "global_avg_pool"),
    (
        (Slot, ActivationQuantizer, DynamicActivationQuantizer, Float16Quantizer, GeometricQuantizer, LevelQuantizer),
        "quantize",
    ),
    (pooling._AvgPoolNd, "avg_pool"),
    (pooling._AdaptiveAvgPoolNd, "avg_pool"),
    (nn.Upsample, "interpolate"),
    ((nn.Flatten, nn.Unflatten), "reshape"),
    ((padding._ConstantPadNd, padding._ReflectionPadNd, padding._ReplicationPadNd, padding._CircularPadNd), "pad"),
    (nn.Identity, "identity"),
)
"""Types of modules, the first that fits counts."""

DROP_PATHS = frozenset({"DropPath", "StochasticDepth", "DropBlock2d", "PatchDropout"})
"""Classes outside torch.nn that drop in train mode and are the identity in eval mode."""

FUNCTIONS: Mapping[str, str] = {
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "convolution": "conv",
    "conv_transpose1d": "conv_transpose", "conv_transpose2d": "conv_transpose", "conv_transpose3d": "conv_transpose",
    "linear": "linear", "embedding": "embedding", "batch_norm": "batch_norm", "instance_norm": "instance_norm",
    "layer_norm": "layer_norm", "rms_norm": "layer_norm", "native_layer_norm": "layer_norm",
    "group_norm": "group_norm", "relu": "relu", "relu6": "relu6",
    "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu",
    "gelu": "gelu", "leaky_relu": "leaky_relu", "prelu": "prelu", "elu": "elu", "selu": "elu", "celu": "elu",
    "softmax": "softmax", "dropout": "dropout", "dropout1d": "dropout", "dropout2d": "dropout", "dropout3d": "dropout",
    "feature_dropout": "dropout", "alpha_dropout": "dropout",
    "add": "add", "iadd": "add", "radd": "add", "sub": "sub", "isub": "sub", "rsub": "sub", "subtract": "sub",
    "mul": "mul", "imul": "mul", "multiply": "mul", "div": "div", "truediv": "div", "itruediv": "div",
    "matmul": "matmul", "bmm": "matmul", "mm": "matmul", "baddbmm": "matmul", "einsum": "matmul",
    "scaled_dot_product_attention": "attention",
    "cat": "concat", "concat": "concat", "concatenate": "concat", "stack": "concat",
    "slice": "slice", "select": "slice", "split": "slice", "split_with_sizes": "slice", "chunk": "slice",
    "tensor_split": "slice", "narrow": "slice", "unbind": "slice", "index_select": "slice",
    "pad": "pad", "constant_pad_nd": "pad", "reflection_pad2d": "pad", "replication_pad2d": "pad",
    "view": "reshape", "reshape": "reshape", "flatten": "reshape", "unflatten": "reshape", "squeeze": "reshape",
    "unsqueeze": "reshape", "expand": "reshape", "expand_as": "reshape", "view_as": "reshape",
    "reshape_as": "reshape", "unsafe_view": "reshape",
    "transpose": "transpose", "permute": "transpose", "swapaxes": "transpose", "t": "transpose",
    "movedim": "transpose", "numpy_T": "transpose", "swapdims": "transpose",
    "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool", "boolean_dispatch": "max_pool",
    "adaptive_max_pool1d": "max_pool", "adaptive_max_pool2d": "max_pool",
    "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool", "avg_pool3d": "avg_pool",
    "adaptive_avg_pool1d": "avg_pool", "adaptive_avg_pool2d": "avg_pool", "adaptive_avg_pool3d": "avg_pool",
    "mean": "mean",
    "interpolate": "interpolate", "upsample": "interpolate", "upsample_nearest1d": "interpolate",
    "upsample_nearest2d": "interpolate", "upsample_nearest3d": "interpolate", "upsample_nearest_exact2d": "interpolate",
    "upsample_bilinear2d": "interpolate", "upsample_bicubic2d": "interpolate", "upsample_linear1d": "interpolate",
    "upsample_trilinear3d": "interpolate",
    "contiguous": "identity", "clone": "identity", "detach": "identity", "alias": "identity",
    "lift_fresh_copy": "identity",
    "clamp": "clamp", "clamp_min": "clamp", "clamp_max": "clamp", "clip": "clamp", "hardtanh": "clamp",
    "sym_size": "shape", "sym_numel": "shape", "sym_stride": "shape", "size": "shape", "dim": "shape", "numel": "shape",
}  # fmt: skip
"""Bare names of functions and methods."""

_SHAPE_ARITHMETIC = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.truediv, operator.neg}
)


def op_kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The kind of a node, one of `KINDS`; `modules` are those of its network by dotted name.

    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1)))
    >>> [op_kind(n, dict(net.named_modules())) for n in net.graph.nodes]
    ['input', 'conv', 'global_avg_pool', 'output']
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if node.op == "get_attr":
        return "constant"
    if node.op == "call_module":
        return _module_kind(node, modules[str(node.target)])
    return _function_kind(node)


def kinds(module: fx.GraphModule) -> dict[fx.Node, str]:
    """The kind of each node of a captured network."""
    modules = dict(module.named_modules(remove_duplicate=False))
    return {node: op_kind(node, modules) for node in module.graph.nodes}


def _module_kind(node: fx.Node, module: nn.Module) -> str:
    if node.meta.get("switches_off") or type(module).__name__ in DROP_PATHS:
        return "dropout"
    found = next((kind for types, kind in MODULES if isinstance(module, types)), "other")
    if isinstance(module, nn.AdaptiveAvgPool2d) and _all_one(module.output_size):
        return "global_avg_pool"
    if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0):
        return "relu6"
    return found


def _function_kind(node: fx.Node) -> str:
    if _is_number(node):
        return "shape"
    name = function_name(node.target)
    if name == "getitem":
        picks = isinstance(node.args[1], (int, str)) and _is_sequence(node.args[0])
        return "getitem" if picks else "slice"
    found = FUNCTIONS.get(name, "other")
    refine = _REFINE.get(name)
    return refine(node, found) if refine is not None else found


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
        return True
    if node.target in _SHAPE_ARITHMETIC and node.all_input_nodes:
        return all(_is_number(a) for a in node.all_input_nodes)
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    if function_name(node.target) == "getitem" and node.all_input_nodes:
        return _is_number(node.all_input_nodes[0])
    return node.op in ("call_method", "call_function") and FUNCTIONS.get(function_name(node.target)) == "shape"


def _is_sequence(value: Any) -> bool:
    """Whether a node returns several tensors."""
    if not isinstance(value, fx.Node):
        return True
    known = value.meta.get("val")
    if known is not None:
        return isinstance(known, (tuple, list))
    several = ("split", "chunk", "unbind", "split_with_sizes", "tensor_split")
    return value.op != "placeholder" and (value.op == "call_module" or function_name(value.target) in several)


def _all_one(size: Any) -> bool:
    sizes = size if isinstance(size, (tuple, list)) else (size,)
    return all(s == 1 for s in sizes)


def _argument(node: fx.Node, index: int, *names: str, default: Any = None) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return next((node.kwargs[n] for n in names if n in node.kwargs), default)


def _pool(node: fx.Node, _kind: str) -> str:
    return "global_avg_pool" if _all_one(_argument(node, 1, "output_size")) else "avg_pool"


def _mean(node: fx.Node, _kind: str) -> str:
    """A mean over both spatial axes of (n, c, h, w) is a global pool; unknown ranks count where the axes say so."""
    axes = _argument(node, 1, "dim", "axis")
    if not isinstance(axes, (tuple, list)):
        return "mean"
    value = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    if isinstance(value, Tensor) and value.dim() != 4:
        return "mean"
    return "global_avg_pool" if sorted(a % 4 for a in axes if isinstance(a, int)) == [2, 3] else "mean"


def _hardtanh(node: fx.Node, kind: str) -> str:
    limits = (_argument(node, 1, "min_val", "min", default=-1.0), _argument(node, 2, "max_val", "max", default=1.0))
    return "relu6" if limits == (0, 6) else kind


def _cast(node: fx.Node, _kind: str) -> str:
    values = [n.meta.get("val") for n in (node.args[0], node) if isinstance(n, fx.Node)]
    types = {v.dtype for v in values if isinstance(v, Tensor)}
    return "identity" if len(types) == 1 and "val" in node.meta else "other"


_REFINE: Mapping[str, Callable[[fx.Node, str], str]] = {
    "adaptive_avg_pool2d": _pool,
    "mean": _mean,
    "hardtanh": _hardtanh,
    "clamp": _hardtanh,
    "to": _cast,
}
