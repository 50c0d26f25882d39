"""Where torch.export fails, torch.fx traces: noted in the record, and the same modules come out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.graph.capture import capture
from isobit.graph.names import names
from isobit.graph.ops import kinds


@torch.library.custom_op("isobit_tests::without_fake_kernel", mutates_args=())
def without_fake_kernel(x: Tensor) -> Tensor:
    return x * 2


without_fake_kernel.register_autograd(lambda ctx, grad: grad * 2)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.randn(4))
        self.norm, self.scale = nn.BatchNorm2d(4), nn.Parameter(torch.ones(8))
        self.w = nn.Parameter(torch.randn(8, 4))
        self.dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.ops.isobit_tests.without_fake_kernel(self.relu(self.conv(x)))
        x = F.conv2d(x, self.weight, self.bias, padding=0)
        x = self.relu(self.norm(x)) + x
        x = F.dropout(x.flatten(2).transpose(1, 2), 0.3, self.training)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout if self.training else 0.0)
        return F.layer_norm(F.linear(x, self.w), (8,), self.scale)


@pytest.fixture(scope="module")
def net() -> Odd:
    torch.manual_seed(0)
    return Odd()


def test_symbolic_trace_takes_over(net: Odd) -> None:
    captured = capture(net, torch.zeros(1, 3, 4, 4))
    assert captured.record.method == "symbolic_trace"
    assert "torch.export failed, torch.fx traced it instead" in captured.record.notes[0]
    assert list(captured.state_dict()) == list(net.state_dict())
    found = list(kinds(captured).values())
    wanted = ["input", "conv", "relu", "other", "conv", "batch_norm", "relu", "add", "reshape", "transpose"]
    assert found[:10] == wanted
    assert found[10:] == ["dropout", "attention", "linear", "layer_norm", "output"]
    named = list(names(captured.graph).values())
    assert named[:8] == ["x", "conv", "relu", "without_fake_kernel", "conv_2", "norm", "relu:2", "add"]


def test_a_training_step_is_the_same(net: Odd) -> None:
    captured = capture(net, torch.zeros(1, 3, 4, 4))
    x = torch.randn(3, 3, 4, 4)
    grads = []
    for module in (net.train(), captured.train()):
        module.zero_grad()
        torch.manual_seed(0)
        out = module(x)
        out.square().sum().backward()
        grads.append((out, *[p.grad for p in module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
