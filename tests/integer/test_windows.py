"""Windows in ceil_mode against torch."""

from itertools import product

import onnx
import pytest
import torch
import torch.nn.functional as F

from isobit.core.errors import UnsupportedError
from isobit.integer.model import Node
from isobit.integer.ops import max_pool
from isobit.integer.windows import window_of


def pooling(op: str, kernel: int, stride: int, pad: int, dilation: int) -> Node:
    attributes = {"ceil_mode": 1, "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    return Node(name="pool", op=op, inputs=("x",), outputs=("y",), attributes=attributes, proto=onnx.NodeProto())


@pytest.mark.parametrize(("kernel", "stride", "dilation"), list(product([2, 3], [1, 2, 3], [1, 2])))
def test_max_pool_in_ceil_mode(kernel: int, stride: int, dilation: int) -> None:
    for height, width, pad in product(range(7, 12), range(7, 12), range(kernel // 2 + 1)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))
        window = window_of(pooling("MaxPool", kernel, stride, pad, dilation), x.shape, [kernel] * 2)
        expected = F.max_pool2d(x, kernel, stride, pad, dilation, ceil_mode=True)
        torch.testing.assert_close(max_pool(x, window), expected, rtol=0, atol=0)


def test_an_average_in_ceil_mode_is_refused_where_engines_differ() -> None:
    with pytest.raises(UnsupportedError, match="pool: ceil_mode"):
        window_of(pooling("AveragePool", 3, 2, 0, 1), (1, 1, 8, 8), [3, 3])
    assert window_of(pooling("AveragePool", 3, 2, 0, 1), (1, 1, 7, 7), [3, 3]).after == (0, 0)
