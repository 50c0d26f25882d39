"""One small file for each op, with attributes drawn at random where these change what it computes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from graph.from_onnx.files import file, node

Random = np.random.Generator
F32 = np.float32
I64 = np.int64
IMAGE = ("N", 4, 9, 11)


def weights(random: Random, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(F32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


def conv(random: Random, dims: int) -> onnx.ModelProto:
    groups = int(random.choice([1, 2, 4]))
    kernel = random.integers(1, 4, dims).tolist()
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "group": groups, "strides": random.integers(1, 3, dims).tolist(),
        "dilations": random.integers(1, 3, dims).tolist(),
    }  # fmt: skip
    attributes |= padding(random, dims)
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        attributes["dilations"] = [1] * dims  # ONNX Runtime pads wrongly there
    constants = {"w": weights(random, 8, 4 // groups, *kernel)}
    if random.random() < 0.5:
        constants["b"] = weights(random, 8)
    return file(
        [node("Conv", "x w" + (" b" if "b" in constants else ""), **attributes)],
        {"x": ("N", 4, 9, 11, 8)[: dims + 2]},
        constants,
    )


def padding(random: Random, dims: int) -> dict[str, Any]:
    kind = random.choice(["pads", "even", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if kind == "pads":
        return {"pads": random.integers(0, 3, 2 * dims).tolist()}
    if kind == "even":
        return {"pads": random.integers(0, 3, dims).tolist() * 2}
    return {"auto_pad": str(kind)}


def conv_transpose(random: Random, dims: int) -> onnx.ModelProto:
    groups, kernel = int(random.choice([1, 2])), random.integers(2, 4, dims).tolist()
    strides = random.integers(1, 3, dims).tolist()
    attributes: dict[str, Any] = {"kernel_shape": kernel, "group": groups, "strides": strides}
    kind = random.choice(["pads", "even", "shape"])
    if kind == "shape":
        sizes = (9, 11, 6)[:dims]
        attributes["output_shape"] = [n * s for n, s in zip(sizes, strides, strict=True)]
    else:
        attributes["pads"] = (
            random.integers(0, 2, 2 * dims).tolist() if kind == "pads" else random.integers(0, 2, dims).tolist() * 2
        )
        attributes["output_padding"] = [int(random.integers(0, s)) for s in strides]
    constants = {"w": weights(random, 4, 3, *kernel), "b": weights(random, 3 * groups)}
    return file([node("ConvTranspose", "x w b", **attributes)], {"x": ("N", 4, 9, 11, 6)[: dims + 2]}, constants)


def pool(random: Random, kind: str) -> onnx.ModelProto:
    dims = int(random.integers(1, 4))
    kernel = random.integers(2, 4, dims).tolist()
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": random.integers(1, 4, dims).tolist()}
    attributes["ceil_mode"] = int(random.random() < 0.5)
    if attributes["ceil_mode"]:
        attributes["pads"] = random.integers(0, 2, dims).tolist() * 2
    elif random.random() < 0.6:
        attributes["pads"] = random.integers(0, 2, 2 * dims).tolist()
    else:
        attributes["auto_pad"] = str(random.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(random.random() < 0.5)
    return file([node(kind, "x", **attributes)], {"x": ("N", 4, 9, 11, 8)[: dims + 2]}, opset=22)


def gemm(random: Random) -> onnx.ModelProto:
    attributes = {"alpha": float(random.choice([1.0, 0.5])), "beta": float(random.choice([1.0, 2.0]))}
    transposed = int(random.random() < 0.5)
    bias = [(5,), (1, 5), (1,), ()][random.integers(4)]
    constants = {
        "w": weights(random, *((5, 7) if transposed else (7, 5))),
        "c": np.asarray(weights(random, *bias), F32),
    }
    return file([node("Gemm", "x w c", transB=transposed, **attributes)], {"x": ("N", 7)}, constants)


def batch_norm(random: Random) -> onnx.ModelProto:
    constants = {k: weights(random, 4) for k in ("s", "b", "m")} | {"v": random.random(4).astype(F32) + 0.5}
    shape = ("N", 4, 5, 6, 3)[: int(random.integers(2, 6))]
    return file([node("BatchNormalization", "x s b m v", epsilon=1e-3)], {"x": shape}, constants)


def elementwise(kind: str, second: str = "input") -> Callable[[Random], onnx.ModelProto]:
    def make(random: Random) -> onnx.ModelProto:
        if second == "input":
            return file([node(kind, "x z")], {"x": ("N", 3, 4), "z": ("N", 3, 4)})
        shapes: list[tuple[int, ...]] = [(), (1,), (4,), (3, 1), (1, 3, 4)]
        c = weights(random, *shapes[random.integers(len(shapes))]) + F32(0.1)
        return file([node(kind, "x c" if second == "right" else "c x")], {"x": ("N", 3, 4)}, {"c": np.asarray(c, F32)})

    return make


def positive(kind: str) -> onnx.ModelProto:
    return file(
        [node("Abs", "x", "a"), node("Add", "a c", "p"), node(kind, "p")], {"x": ("N", 3, 4)}, {"c": np.array(0.1, F32)}
    )


def reduction(random: Random, kind: str) -> onnx.ModelProto:
    axes = [ints(-1), ints(2, 3), ints(1), ints(1, -1)][random.integers(4)]
    body = [node("Abs", "x", "p"), node(kind, "p a", keepdims=int(random.random() < 0.5))]
    return file(body, {"x": ("N", 3, 4, 5)}, {"a": axes})


def resize(random: Random) -> onnx.ModelProto:
    mode = str(random.choice(["nearest", "linear", "cubic"]))
    where = {
        "nearest": ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric"],
        "linear": ["half_pixel", "pytorch_half_pixel", "align_corners"],
        "cubic": ["half_pixel", "align_corners"],
    }
    attributes = {"mode": mode, "coordinate_transformation_mode": str(random.choice(where[mode]))}
    if mode == "nearest":
        attributes["nearest_mode"] = str(random.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
    if random.random() < 0.5:
        scales = np.array([1, 1, *random.choice([0.5, 2.0, 3.0], 2)], F32)
        return file([node("Resize", "x - s", **attributes)], {"x": ("N", 3, 6, 8)}, {"s": scales})
    sizes = [ints(12, 16), ints(5, 9), ints(18, 4)][random.integers(3)]
    return file([node("Resize", "x - - s", axes=[2, 3], **attributes)], {"x": ("N", 3, 6, 8)}, {"s": sizes})


def pad(random: Random) -> onnx.ModelProto:
    mode = str(random.choice(["constant", "reflect", "edge", "wrap"]))
    sides = random.integers(0, 3, 4)
    return file([node("Pad", "x p - a", mode=mode)] if mode != "constant" else [node("Pad", "x p v a")],
                {"x": IMAGE}, {"p": sides.astype(I64), "a": ints(2, 3), "v": np.array(0.5, F32)}, opset=21)  # fmt: skip


def slices(random: Random) -> onnx.ModelProto:
    step = int(random.choice([1, 2, -1, -2]))
    start, end = sorted(random.integers(-9, 10, 2).tolist())
    start, end = (start, end) if step > 0 else (end, start)
    if len(range(9)[start:end:step]) == 0:
        start, end = (0, 2**63 - 1) if step > 0 else (2**31, -(2**63))
    return file(
        [node("Slice", "x b e a s")],
        {"x": ("N", 9, 4)},
        {"b": ints(start), "e": ints(end), "a": ints(1), "s": ints(step)},
    )


def split(random: Random) -> onnx.ModelProto:
    if random.random() < 0.5:
        return file(
            [node("Split", "x l", "p q", axis=1), node("Concat", "q p", axis=1)], {"x": ("N", 7, 4)}, {"l": ints(3, 4)}
        )
    return file([node("Split", "x", "p q", axis=1, num_outputs=2), node("Concat", "q p", axis=-2)], {"x": ("N", 7, 4)})


def gather(random: Random) -> onnx.ModelProto:
    index = [np.array(2, I64), ints(0, -1, 2), np.array([[1, 2], [0, -2]], I64)][random.integers(3)]
    return file([node("Gather", "x i", axis=int(random.choice([1, 2, -1])))], {"x": ("N", 4, 3)}, {"i": index})


def embedding(random: Random) -> onnx.ModelProto:
    return file([node("Gather", "t x")], {"x": (("N", 6), TensorProto.INT64)}, {"t": weights(random, 5, 4)})


def normalization(random: Random, kind: str) -> onnx.ModelProto:
    if kind == "LayerNormalization":
        axis = int(random.choice([-1, -2, 2]))
        shape = (11,) if axis == -1 else (9, 11)
        return file(
            [node(kind, "x s b", axis=axis, epsilon=1e-4)],
            {"x": IMAGE},
            {"s": weights(random, *shape), "b": weights(random, *shape)},
        )
    if kind == "GroupNormalization":
        return file(
            [node(kind, "x s b", num_groups=2, epsilon=1e-4)],
            {"x": IMAGE},
            {"s": weights(random, 4), "b": weights(random, 4)},
            opset=21,
            rank=4,
        )
    if kind == "RMSNormalization":
        return file([node(kind, "x s", axis=-1)], {"x": IMAGE}, {"s": weights(random, 11)}, opset=23)
    return file([node(kind, "x s b", epsilon=1e-4)], {"x": IMAGE}, {"s": weights(random, 4), "b": weights(random, 4)})


def activation(kind: str, **attributes: Any) -> Callable[[Random], onnx.ModelProto]:
    return lambda random: file([node(kind, "x", **attributes)], {"x": ("N", 3, 5)}, opset=22)


def clip(random: Random) -> onnx.ModelProto:
    low, high = [("l", "h"), ("l", ""), ("", "h"), ("z", "s"), ("z", "")][random.integers(5)]
    constants = {"l": np.array(-0.5, F32), "h": np.array(0.7, F32), "z": np.array(0, F32), "s": np.array(6, F32)}
    return file(
        [node("Clip", f"x {low or '-'} {high or '-'}")],
        {"x": ("N", 9)},
        {k: v for k, v in constants.items() if k in (low, high)},
    )


def prelu(random: Random) -> onnx.ModelProto:
    slope = [weights(random, 4, 1, 1), weights(random, 1), weights(random, 1, 4, 1, 1), weights(random, 9, 11)][
        random.integers(4)
    ]
    return file([node("PRelu", "x s")], {"x": IMAGE}, {"s": slope})


def attention(random: Random) -> onnx.ModelProto:
    heads = bool(random.random() < 0.5)
    shape: tuple[Any, ...] = ("N", 2, 5, 4) if not heads else ("N", 5, 8)
    extra = {"q_num_heads": 2, "kv_num_heads": 2} if heads else {}
    mask = {"m": weights(random, 5, 5)} if random.random() < 0.5 else {}
    return file([node("Attention", "q k v" + (" m" if mask else ""), is_causal=int(not mask), **extra)],
                {"q": shape, "k": shape, "v": shape}, mask, opset=23)  # fmt: skip


def compared(kind: str) -> Callable[[Random], onnx.ModelProto]:
    body = [node(kind, "x z", "c"), node("Where", "c x z")]
    return lambda random: file(body, {"x": ("N", 4), "z": ("N", 4)})


def logical(kind: str) -> Callable[[Random], onnx.ModelProto]:
    kinds = {"x": (("N", 4), TensorProto.BOOL), "z": (("N", 4), TensorProto.BOOL)}
    return lambda random: file([node(kind, "x z")], kinds, outputs={"y": TensorProto.BOOL})


def of(
    *nodes: onnx.NodeProto,
    shape: tuple[Any, ...] = IMAGE,
    out: int = TensorProto.FLOAT,
    opset: int = 20,
    **constants: Any,
) -> Callable[[Random], onnx.ModelProto]:
    return lambda random: file(nodes, {"x": shape}, constants, outputs={"y": out}, opset=opset)


CASES: dict[str, Callable[[Random], onnx.ModelProto]] = {
    "conv1d": lambda r: conv(r, 1),
    "conv2d": lambda r: conv(r, 2),
    "conv3d": lambda r: conv(r, 3),
    "conv_transpose1d": lambda r: conv_transpose(r, 1),
    "conv_transpose2d": lambda r: conv_transpose(r, 2),
    "conv_transpose3d": lambda r: conv_transpose(r, 3),
    "max_pool": lambda r: pool(r, "MaxPool"),
    "average_pool": lambda r: pool(r, "AveragePool"),
    "gemm": gemm,
    "gemm of inputs": lambda r: file(
        [node("ReduceMean", "z a", "m", keepdims=0), node("Gemm", "x m c", transB=1, alpha=0.5, beta=2.0)],
        {"x": ("N", 4), "z": ("N", 5, 4)},
        {"c": weights(r, 5), "a": ints(0)},
    ),
    "matmul": lambda r: file([node("MatMul", "x w")], {"x": ("N", 3, 4)}, {"w": weights(r, 4, 6)}),
    "matmul of inputs": lambda r: file([node("MatMul", "x z")], {"x": ("N", 3, 4), "z": ("N", 4, 2)}),
    "matmul by a constant from the left": lambda r: file(
        [node("MatMul", "w x")], {"x": ("N", 3, 4)}, {"w": weights(r, 5, 3)}
    ),
    "batch_norm": batch_norm,
    "prelu": prelu,
    "clip": clip,
    "attention": attention,
    "embedding": embedding,
    **{
        kind: (lambda r, kind=kind: normalization(r, kind))
        for kind in ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
    },
    **{
        f"{kind} {how}": elementwise(kind, how)
        for kind in ("Add", "Sub", "Mul", "Div")
        for how in ("input", "left", "right")
    },
    "Min": elementwise("Min"),
    "Max": elementwise("Max"),
    "Sum": elementwise("Sum"),
    "Mean": elementwise("Mean"),
    "Pow": of(node("Pow", "x c"), c=np.array(3.0, F32)),
    "Mod": of(node("Mod", "x c", fmod=1), c=np.array(0.3, F32)),
    **{kind: (lambda r, kind=kind: positive(kind)) for kind in ("Sqrt", "Log", "Reciprocal")},
    **{
        kind: of(node(kind, "x"))
        for kind in ("Exp", "Abs", "Neg", "Sign", "Erf", "Floor", "Ceil", "Round", "Sin", "Cos", "Atan")
    },
    **{
        kind: (lambda r, kind=kind: reduction(r, kind))
        for kind in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
            "ReduceSum",
        )
    },
    "reduce all": of(node("ReduceSum", "x e", noop_with_empty_axes=1), e=np.zeros(0, I64)),
    **{kind: compared(kind) for kind in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")},
    **{kind: logical(kind) for kind in ("And", "Or", "Xor")},
    "Not": lambda r: file([node("Not", "x")], {"x": (("N", 4), TensorProto.BOOL)}, outputs={"y": TensorProto.BOOL}),
    "IsNaN": of(node("Log", "x", "l"), node("IsNaN", "l"), out=TensorProto.BOOL),
    "Relu": activation("Relu"),
    "LeakyRelu": activation("LeakyRelu", alpha=0.2),
    "Sigmoid": activation("Sigmoid"),
    "Tanh": activation("Tanh"),
    "HardSwish": activation("HardSwish"),
    "HardSigmoid": activation("HardSigmoid"),
    "HardSigmoid of torch": activation("HardSigmoid", alpha=1 / 6),
    "Elu": activation("Elu", alpha=0.7),
    "Celu": activation("Celu", alpha=0.7),
    "Selu": activation("Selu"),
    "Selu with other factors": activation("Selu", alpha=1.5, gamma=2.0),
    "Softplus": activation("Softplus"),
    "Softsign": activation("Softsign"),
    "Mish": activation("Mish"),
    "Gelu": activation("Gelu"),
    "Gelu by tanh": activation("Gelu", approximate="tanh"),
    "Softmax": activation("Softmax", axis=1),
    "LogSoftmax": activation("LogSoftmax", axis=-1),
    "resize": resize,
    "pad": pad,
    "slice": slices,
    "split": split,
    "gather": gather,
    "GlobalAveragePool": of(node("GlobalAveragePool", "x")),
    "GlobalMaxPool": of(node("GlobalMaxPool", "x")),
    "LRN": of(node("LRN", "x", size=3, alpha=0.01, beta=0.6, bias=1.5)),
    "LpNormalization": of(node("LpNormalization", "x", axis=1)),
    "DepthToSpace DCR": of(node("DepthToSpace", "x", blocksize=2, mode="DCR"), shape=("N", 8, 3, 4)),
    "DepthToSpace CRD": of(node("DepthToSpace", "x", blocksize=2, mode="CRD"), shape=("N", 8, 3, 4)),
    "SpaceToDepth": of(node("SpaceToDepth", "x", blocksize=2), shape=("N", 2, 6, 4)),
    "Flatten": of(node("Flatten", "x")),
    "Flatten behind": of(node("Flatten", "x", axis=2)),
    "Transpose": of(node("Transpose", "x", perm=[0, 2, 3, 1])),
    "Transpose all": of(node("Transpose", "x"), shape=("N", 3)),
    "Reshape": of(node("Reshape", "x s"), s=ints(0, -1, 11)),
    "Reshape by -1": of(node("Reshape", "x s"), s=ints(-1, 99)),
    "Squeeze": of(node("Squeeze", "x a"), shape=("N", 1, 3, 1), a=ints(1, -1)),
    "Squeeze all": lambda r: file([node("Squeeze", "x")], {"x": ("N", 1, 3, 1)}, rank=2),
    "Unsqueeze": of(node("Unsqueeze", "x a"), a=ints(1, -1)),
    "Expand": of(node("Expand", "x s"), shape=("N", 1, 3), s=ints(2, 1, 4, 1)),
    "Tile": of(node("Tile", "x r"), shape=("N", 2, 3), r=ints(1, 2, 3)),
    "Cast": of(node("Cast", "x", to=TensorProto.INT64), out=TensorProto.INT64),
    "CastLike": of(node("CastLike", "x c"), c=np.zeros(1, np.int32), out=TensorProto.INT32),
    "GatherElements": lambda r: file(
        [node("GatherElements", "x i", axis=1)], {"x": ("N", 5), "i": (("N", 2), TensorProto.INT64)}
    ),
    "ArgMax": of(node("ArgMax", "x", axis=1, keepdims=0), out=TensorProto.INT64),
    "ArgMin": of(node("ArgMin", "x", axis=-1), out=TensorProto.INT64),
    "TopK": of(node("TopK", "x k", "y i", axis=1), k=ints(2)),
    "CumSum": of(node("CumSum", "x a"), a=np.array(1, I64)),
    "Trilu": of(node("Trilu", "x k", upper=0), k=np.array(1, I64)),
    "Einsum": lambda r: file([node("Einsum", "x z", equation="nij,njk->nik")], {"x": ("N", 3, 4), "z": ("N", 4, 2)}),
    "GatherND": lambda r: file(
        [node("GatherND", "x i")], {"x": ("N", 4, 3)}, {"i": np.array([[0, 1], [1, 3]], I64)}, rank=2
    ),
    "ScatterND": of(node("ScatterND", "x i u"), shape=("N", 4), i=np.array([[0, 1], [1, 3]], I64), u=np.ones(2, F32)),
    "ScatterND, add": of(
        node("ScatterND", "x i u", reduction="add"), shape=("N", 4), i=np.array([[0], [1]], I64), u=np.ones((2, 4), F32)
    ),
    "Dropout": of(node("Dropout", "x")),
    "Identity": of(node("Identity", "x", "i"), node("Relu", "i")),
    "integer division": lambda r: file(
        [node("Div", "x c")], {"x": (("N", 4), TensorProto.INT64)}, {"c": ints(3)}, outputs={"y": TensorProto.INT64}
    ),
}
"""The random ones are drawn several times."""

RANDOM = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "max_pool",
    "average_pool", "gemm", "batch_norm", "prelu", "clip", "attention", "resize", "pad", "slice", "split", "gather",
    "LayerNormalization", "Add left", "Sub left", "Div left", "Mul right", "Sub right", "Div right",
    "ReduceMean", "ReduceProd",
})  # fmt: skip


def draws() -> Iterator[tuple[str, int]]:
    """The name of a case, and the seed of its attributes."""
    for name in CASES:
        for seed in range(8 if name in RANDOM else 1):
            yield name, seed
