import math

import pytest
import torch
from torch import Tensor, nn

from analysis.nets import branches, mlp
from isobit.analysis.cost import cost
from isobit.benchmark.models import MODELS
from isobit.core.errors import UnsupportedError
from isobit.graph.capture import capture
from isobit.recipes.workflow import quantize

IMAGE = (2, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "macs", "tolerance"),
    [
        ("resnet18", 1.814e9, 1e6),  # torchvision's table of models: 1.81 G, He et al. 2016, Table 1: 1.8 G
        ("mobilenet_v2", 300.8e6, 0.1e6),  # Sandler et al. 2018, Table 4: 300 M
        pytest.param("resnet50", 4.089e9, 1e6, marks=pytest.mark.slow),  # torchvision: 4.09 G
        pytest.param("vit_b16", 17.564e9, 1e6, marks=pytest.mark.slow),  # torchvision: 17.56 G, attention included
    ],
)
def test_published_numbers(name: str, macs: float, tolerance: float) -> None:
    net = MODELS[name]()
    found = cost(capture(net, torch.zeros(IMAGE), check=False))
    assert abs(found.macs - macs) < tolerance
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.bitops == found.macs * 32 * 32
    floats = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
    assert found.float_bytes == found.quantized_bytes == 4 * sum(t.numel() for t in floats)


class Products(nn.Module):
    """Every way to multiply matrices, a transposed and a grouped convolution, a shared layer, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False)
        self.grouped = nn.Conv2d(6, 12, (3, 1), groups=3, stride=2)
        self.shared = nn.Linear(9, 9)
        self.offset = nn.Parameter(torch.zeros(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.up(x)) + self.offset  # (n, 4, 9, 8) -> (n, 6, 19, 17) -> (n, 12, 9, 9)
        x = self.shared(self.shared(x))
        x = x @ x.transpose(-2, -1)
        x = torch.einsum("nchw,ncwv->nchv", x, x)
        return nn.functional.scaled_dot_product_attention(x[..., :4], x[..., 4:8], x)


def test_closed_forms() -> None:
    net = Products()
    found = {op.name: op for op in cost(capture(net, torch.randn(2, 4, 9, 8))).ops}
    up, grouped = 4 * 6 * 9 * (9 * 8), 12 * (6 // 3) * 3 * (9 * 9)
    linear, product, attention = 12 * 9 * 9 * 9, 12 * 9 * 9 * 9, 12 * 9 * 9 * (4 + 9)
    macs = [op.macs for op in found.values() if op.macs]
    assert macs == [up, grouped, linear, linear, product, product, attention]
    assert found["shared"].parameters == 90
    assert found["shared:2"].parameters == 0
    assert found["offset"].parameters == 12
    assert sum(op.parameters for op in found.values()) == sum(p.numel() for p in net.parameters())


def test_a_fixed_batch_is_divided_out() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(6, 3, 8, 8)
    fixed, free = (cost(capture(net, x, dynamic_batch=dynamic)) for dynamic in (False, True))
    assert fixed.macs == free.macs == 8 * 27 * 36 + 8 * 36 * 10


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bit_operations_and_bytes(bits: int) -> None:
    """Linear 6 → 16 and 16 → 4, first and last layer at 8 bits, one layer of `bits` between them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4))
    model = quantize(net, [torch.randn(32, 6)], target="onnxruntime-x86", bits=bits)
    found = cost(model)
    assert [(op.weight_bits, op.activation_bits) for op in found.ops] == [(8, 8), (bits, bits), (8, 8)]
    assert found.bitops == 96 * 64 + 80 * bits * bits + 20 * 64
    weights = 96 + math.ceil(80 * bits / 8) + 20
    scales = (16 + 5 + 4) + 4  # per output channel; the input and three outputs
    assert found.quantized_bytes == weights + 4 * 25 + 5 * scales
    assert found.float_bytes == 4 * (196 + 25)


def test_what_stays_in_float_counts_in_full() -> None:
    model, _ = branches()
    kept = quantize_without_body()
    assert cost(kept).macs == cost(model).macs
    body = next(op for op in cost(kept).ops if op.name == "body")
    assert (body.weight_bits, body.activation_bits) == (32, 32)
    assert cost(kept).quantized_bytes > cost(model).quantized_bytes


def quantize_without_body() -> torch.fx.GraphModule:
    from analysis.nets import Branches

    torch.manual_seed(1)
    return quantize(Branches(), [torch.randn(24, 3, 8, 8)], target="onnxruntime-x86", keep_float=["body"])


def test_learned_scales_are_no_parameters_of_the_network() -> None:
    plain, _ = mlp()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    learned = quantize(net, [torch.randn(64, 6)], target="tensorrt", weight_quantizer="lsq", activation_quantizer="lsq")
    assert cost(learned).parameters == cost(plain).parameters == 6 * 16 + 16 + 16 * 4 + 4


def test_a_graph_without_shapes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"no shape at .*torch\.export"):
        cost(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
