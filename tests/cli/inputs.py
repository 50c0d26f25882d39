"""A folder with a network, data, and everything that a user can get wrong about them."""

from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x) + x)
        return self.linear(self.norm(x.mean((2, 3))))

class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x

class Sines(nn.Module):
    def forward(self, x):
        return torch.sin(x)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, y):
        return self.conv(x + y)

def net():
    torch.manual_seed(0)
    return Net()

def other():
    torch.manual_seed(1)
    return Net()

def needs_classes(classes):
    return Net(classes)

def fails():
    raise RuntimeError("the checkpoint server is down")

def state():
    return net().state_dict()

def exits():
    raise SystemExit("usage: nets.py CONFIG")

module = net()
number = 3
"""

DATA = """
import torch

def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

def good():
    return [(image(8, 3, 8, 8, seed=i), torch.arange(8) % 4) for i in range(4)]

def stream():
    yield from good()

def empty():
    return []

def no_samples():
    return [image(0, 3, 8, 8)]

def wrong_channels():
    return [image(8, 1, 8, 8)]

def two_shapes():
    return [image(8, 3, 8, 8), image(8, 3, 6, 6)]

def with_nan():
    x = image(8, 3, 8, 8)
    x[3, 0, 0, 0] = float("nan")
    return [image(8, 3, 8, 8), x]

def with_inf():
    x = image(8, 3, 8, 8)
    x[3, 0, 0, 0] = float("inf")
    return [x]

def constant():
    return [torch.full((8, 3, 8, 8), 0.5) for _ in range(3)]

def of_strings():
    return ["cat.png", "dog.png"]

def three_parts():
    return [(image(8, 3, 8, 8), image(8, 3, 8, 8), torch.zeros(8))]

def number():
    return 7

def fails_later():
    yield image(8, 3, 8, 8)
    raise OSError("image 9 cannot be read")

def interrupted():
    yield image(8, 3, 8, 8)
    raise KeyboardInterrupt

def faulty():
    raise NotImplementedError

used_up = iter(good())
tensor = image(32, 3, 8, 8)
"""


def write_inputs(folder: Path) -> None:
    """Write every good and bad file."""
    (folder / "nets.py").write_text(NETS)
    (folder / "data.py").write_text(DATA)
    (folder / "broken.py").write_text("def net(:\n    pass\n")
    (folder / "imports.py").write_text("import tensorflaw\n")
    (folder / "raises.py").write_text("import torch\n\nweights = torch.load('nowhere.pt')\n")
    (folder / "unknown_key.toml").write_text('target = "tensorrt"\nweight_bit = 4\n')
    (folder / "wrong_type.toml").write_text('target = "tensorrt"\nweight_bits = "4"\n')
    (folder / "no_toml.toml").write_text("target: tensorrt\n")
    (folder / "good.toml").write_text('target = "onnxruntime-x86"\nweight_bits = 4\nkeep_float = ["linear"]\n')
    _weights(folder)
    _arrays(folder)
    _images(folder)
    _models(folder)


def _weights(folder: Path) -> None:
    space: dict[str, object] = {}
    exec(NETS, space)
    state = {k: v.contiguous() for k, v in space["net"]().state_dict().items()}  # type: ignore[operator]
    save_file(state, folder / "net.safetensors")
    save_file({k.replace("conv1", "conv_1"): v for k, v in state.items()}, folder / "renamed.safetensors")
    save_file({**state, "linear.weight": torch.zeros(10, 8)}, folder / "ten_classes.safetensors")
    save_file({**state, "conv2.bias": torch.full((8,), float("nan"))}, folder / "nan.safetensors")
    whole = (folder / "net.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(state, folder / "net.pt")


def _arrays(folder: Path) -> None:
    x = np.random.default_rng(0).random((32, 3, 8, 8), dtype=np.float32)
    np.savez(folder / "good.npz", x=x, y=np.arange(32) % 4)
    np.savez(folder / "empty.npz", x=x[:0])
    np.savez(folder / "no_x.npz", inputs=x)
    np.savez(folder / "short_labels.npz", x=x, y=np.arange(31))
    np.savez(folder / "pixels.npz", x=(255 * x).astype(np.uint8))
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    (folder / "truncated.npz").write_bytes((folder / "good.npz").read_bytes()[:400])


def _images(folder: Path) -> None:
    for name in ("no_images", "flat", "unreadable/cat"):
        (folder / name).mkdir(parents=True)
    (folder / "flat" / "cat.png").write_bytes(b"")
    (folder / "unreadable" / "cat" / "1.png").write_bytes(b"no picture")


def _models(folder: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
        [value("x", onnx.TensorProto.FLOAT, [1, 3])], [value("y", onnx.TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), folder / "foreign.onnx")
    unknown = onnx.helper.make_graph(
        [onnx.helper.make_node("NonZero", ["x"], ["y"], name="find")], "g",
        [value("x", onnx.TensorProto.FLOAT, ["N", 3])], [value("y", onnx.TensorProto.INT64, [2, None])],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(unknown), folder / "unknown_op.onnx")
    (folder / "text.onnx").write_text("this is no model\n" * 20)
    (folder / "empty.onnx").write_bytes(b"")
