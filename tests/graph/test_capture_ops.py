"""`op_kind` names the same operator the same way, however the graph was made."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isobit.graph.capture import capture
from isobit.graph.ops import kinds

FUNCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", F.relu),
    "relu6": ("relu6", F.relu6),
    "relu6 by hardtanh": ("relu6", lambda x: F.hardtanh(x, 0.0, 6.0)),
    "relu6 by clamp": ("relu6", lambda x: torch.clamp(x, 0, 6)),
    "clamp": ("clamp", lambda x: x.clamp(-1, 1)),
    "hardswish": ("hardswish", F.hardswish),
    "hardsigmoid": ("hardsigmoid", F.hardsigmoid),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "tanh": ("tanh", torch.tanh),
    "silu": ("silu", F.silu),
    "gelu": ("gelu", F.gelu),
    "leaky_relu": ("leaky_relu", F.leaky_relu),
    "elu": ("elu", F.elu),
    "softmax": ("softmax", lambda x: F.softmax(x, dim=1)),
    "softmax method": ("softmax", lambda x: x.softmax(1)),
    "add": ("add", lambda x: x + x),
    "add number": ("add", lambda x: 1.0 + x),
    "sub": ("sub", lambda x: x - x),
    "rsub": ("sub", lambda x: 1.0 - x),
    "mul": ("mul", lambda x: x * x),
    "div": ("div", lambda x: x / 2),
    "matmul": ("matmul", lambda x: x @ x),
    "concat": ("concat", lambda x: torch.cat([x, x], 1)),
    "stack": ("concat", lambda x: torch.stack([x, x], 1)),
    "slice": ("slice", lambda x: x[:, 1:]),
    "select": ("slice", lambda x: x[:, 0]),
    "narrow": ("slice", lambda x: x.narrow(1, 0, 1)),
    "pad": ("pad", lambda x: F.pad(x, (1, 1))),
    "view": ("reshape", lambda x: x.view(-1, 64)),
    "flatten": ("reshape", lambda x: torch.flatten(x, 1)),
    "unsqueeze": ("reshape", lambda x: x.unsqueeze(1)),
    "squeeze": ("reshape", lambda x: x.squeeze(1)),
    "permute": ("transpose", lambda x: x.permute(0, 2, 3, 1)),
    "transpose": ("transpose", lambda x: x.transpose(1, 2)),
    "max_pool": ("max_pool", lambda x: F.max_pool2d(x, 2)),
    "avg_pool": ("avg_pool", lambda x: F.avg_pool2d(x, 2)),
    "adaptive pool to 2": ("avg_pool", lambda x: F.adaptive_avg_pool2d(x, 2)),
    "adaptive pool to 1": ("global_avg_pool", lambda x: F.adaptive_avg_pool2d(x, (1, 1))),
    "mean of both axes": ("global_avg_pool", lambda x: x.mean((2, 3))),
    "mean of both axes, counted back, kept": ("global_avg_pool", lambda x: x.mean([-1, -2], keepdim=True)),
    "mean": ("mean", lambda x: x.mean(1)),
    "interpolate": ("interpolate", lambda x: F.interpolate(x, scale_factor=2.0)),
    "bilinear": ("interpolate", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "contiguous": ("identity", lambda x: x.contiguous()),
    "other": ("other", torch.erf),
}

MODULES: dict[str, tuple[str, nn.Module]] = {
    "relu6": ("relu6", nn.Hardtanh(0.0, 6.0)),
    "conv": ("conv", nn.Conv2d(2, 2, 1)),
    "conv_transpose": ("conv_transpose", nn.ConvTranspose2d(2, 2, 1)),
    "linear": ("linear", nn.Linear(8, 8)),
    "batch_norm": ("batch_norm", nn.BatchNorm2d(2)),
    "instance_norm": ("instance_norm", nn.InstanceNorm2d(2)),
    "group_norm": ("group_norm", nn.GroupNorm(2, 2)),
    "layer_norm": ("layer_norm", nn.LayerNorm(8)),
    "prelu": ("prelu", nn.PReLU()),
    "dropout": ("dropout", nn.Dropout2d()),
    "avg_pool": ("avg_pool", nn.AdaptiveAvgPool2d(2)),
    "global_avg_pool": ("global_avg_pool", nn.AdaptiveAvgPool2d((1, 1))),
    "upsample": ("interpolate", nn.Upsample(scale_factor=2)),
    "flatten": ("reshape", nn.Flatten()),
    "pad": ("pad", nn.ReflectionPad2d(1)),
    "identity": ("identity", nn.Identity()),
    "shuffle": ("other", nn.PixelUnshuffle(2)),
}


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def last(module: fx.GraphModule) -> str:
    found = [kind for node, kind in kinds(module).items() if kind not in ("shape", "output")]
    return found[-1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_both_tracers(name: str) -> None:
    kind, function = FUNCTIONS[name]
    captured = capture(Apply(function), torch.zeros(1, 2, 8, 8))
    assert captured.record.method == "export"
    assert last(captured) == kind
    traced = fx.GraphModule(net := Apply(function), fx.Tracer().trace(net))
    assert last(traced) == kind


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    kind, module = MODULES[name]
    assert last(capture(Apply(module), torch.zeros(1, 2, 8, 8))) == kind


def test_several_results_are_picked() -> None:
    def halves(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * b

    captured = capture(Apply(halves), torch.zeros(1, 2, 8, 8))
    assert list(kinds(captured).values()) == ["input", "identity", "slice", "getitem", "getitem", "mul", "output"]


def test_sizes_are_shapes() -> None:
    def rows(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, -1) + x.shape[0]

    found = list(kinds(capture(Apply(rows), torch.zeros(1, 2, 8, 8))).values())
    assert found == ["input", "shape", "identity", "shape", "reshape", "add", "output"]
    traced = fx.GraphModule(net := Apply(rows), fx.Tracer().trace(net))
    assert [k for k in kinds(traced).values() if k != "shape"] == ["input", "identity", "reshape", "add", "output"]
