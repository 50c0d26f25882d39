"""What exporters take apart becomes one layer again, and computes the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import fx, nn

from graph.from_onnx.files import check, file, node

F32 = np.float32
I64 = np.int64
SHAPE = ("N", 3, 6)
LAST = {"a": np.array([-1], I64), "two": np.array(2, F32), "eps": np.array(1e-5, F32)}
AFFINE = {"g": np.linspace(0.5, 2, 6, dtype=F32), "b": np.linspace(-1, 1, 6, dtype=F32)}


def layers(network: nn.Module) -> list[str]:
    """The types of the layers, in the order of execution, and the names of functions."""
    assert isinstance(network, fx.GraphModule)
    found = []
    for n in network.graph.nodes:
        if n.op == "call_module":
            found.append(type(network.get_submodule(str(n.target))).__name__)
        elif n.op in ("call_function", "call_method"):
            found.append(getattr(n.target, "__name__", str(n.target)))
    return found


def centred(opset: int = 18) -> list[onnx.NodeProto]:
    return [node("ReduceMean", "x a", "m"), node("Sub", "x m", "d")]


def layer_norm(square: str, quotient: str) -> onnx.ModelProto:
    nodes = centred()
    nodes.append(node("Pow", "d two", "q") if square == "pow" else node("Mul", "d d", "q"))
    nodes += [node("ReduceMean", "q a", "v"), node("Add", "v eps", "e"), node("Sqrt", "e", "s")]
    if quotient == "div":
        nodes.append(node("Div", "d s", "n"))
    else:
        nodes += [node("Reciprocal", "s", "r"), node("Mul", "d r", "n")]
    return file([*nodes, node("Mul", "n g", "w"), node("Add", "b w")], {"x": SHAPE}, LAST | AFFINE)


def layer_norm_of_tensorflow() -> onnx.ModelProto:
    nodes = [
        *centred(), node("Mul", "d d", "q"), node("ReduceMean", "q a", "v"), node("Add", "v eps", "e"),
        node("Sqrt", "e", "s"), node("Reciprocal", "s", "r"), node("Mul", "r g", "t"), node("Mul", "x t", "xt"),
        node("Mul", "m t", "mt"), node("Sub", "b mt", "o"), node("Add", "xt o"),
    ]  # fmt: skip
    return file(nodes, {"x": SHAPE}, LAST | AFFINE)


def layer_norm_without_factors() -> onnx.ModelProto:
    nodes = [*centred(), node("Pow", "d two", "q"), node("ReduceMean", "q a", "v"), node("Add", "v eps", "e"),
             node("Sqrt", "e", "s"), node("Div", "d s")]  # fmt: skip
    return file(nodes, {"x": SHAPE}, LAST)


def gelu(order: int) -> onnx.ModelProto:
    constants = {
        "r": np.array(np.sqrt(2), F32),
        "i": np.array(1 / np.sqrt(2), F32),
        "one": np.array(1, F32),
        "h": np.array([0.5], F32),
    }
    start = [
        node("Div", "x r", "s") if order % 2 else node("Mul", "i x", "s"),
        node("Erf", "s", "e"),
        node("Add", "e one", "p"),
    ]
    end = [
        [node("Mul", "x p", "t"), node("Mul", "t h")],
        [node("Mul", "x h", "t"), node("Mul", "t p")],
        [node("Mul", "p h", "t"), node("Mul", "x t")],
    ]
    return file(start + end[order % 3], {"x": SHAPE}, constants)


def gelu_by_tanh(cube: str) -> onnx.ModelProto:
    constants = {
        "c": np.array(0.044715, F32),
        "k": np.array(np.sqrt(2 / np.pi), F32),
        "one": np.array(1, F32),
        "h": np.array(0.5, F32),
        "three": np.array(3, F32),
    }
    nodes = [node("Pow", "x three", "u")] if cube == "pow" else [node("Mul", "x x", "w"), node("Mul", "w x", "u")]
    nodes += [
        node("Mul", "u c", "v"),
        node("Add", "x v", "s"),
        node("Mul", "s k", "t"),
        node("Tanh", "t", "a"),
        node("Add", "a one", "p"),
        node("Mul", "x h", "q"),
        node("Mul", "q p"),
    ]
    return file(nodes, {"x": SHAPE}, constants)


def hard_swish(form: str) -> onnx.ModelProto:
    constants = {"three": np.array(3, F32), "low": np.array(0, F32), "high": np.array(6, F32), "six": np.array(6, F32)}
    if form == "hard sigmoid":
        return file([node("HardSigmoid", "x", "s", alpha=1 / 6, beta=0.5), node("Mul", "s x")], {"x": SHAPE})
    nodes = [
        node("Add", "x three", "a"),
        node("Clip", "a low high", "c"),
        node("Mul", "x c", "p"),
        node("Div", "p six"),
    ]
    return file(nodes, {"x": SHAPE}, constants)


def silu() -> onnx.ModelProto:
    return file([node("Sigmoid", "x", "s"), node("Mul", "x s")], {"x": SHAPE})


def attention(mask: bool) -> onnx.ModelProto:
    """As torch.onnx.export writes it: the root of the scale on both sides."""
    root = np.array([8**-0.25], F32)
    nodes = [
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("Mul", "q root", "qs"),
        node("Mul", "kt root", "ks"),
        node("MatMul", "qs ks", "s"),
    ]
    nodes += [node("Add", "s mask", "sm")] if mask else [node("Identity", "s", "sm")]
    nodes += [node("Softmax", "sm", "w", axis=-1), node("MatMul", "w v")]
    shape = ("N", 2, 5, 8)
    return file(
        nodes,
        {"q": shape, "k": shape, "v": shape},
        {"root": root} | ({"mask": np.triu(np.full((5, 5), -1e4, F32), 1)} if mask else {}),
    )


def linear(left: bool) -> onnx.ModelProto:
    constants = {"w": np.random.default_rng(0).standard_normal((6, 4)).astype(F32), "b": np.arange(4, dtype=F32)}
    return file([node("MatMul", "x w", "p"), node("Add", "b p" if left else "p b")], {"x": SHAPE}, constants)


def conv() -> onnx.ModelProto:
    constants = {
        "w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(F32),
        "b": np.arange(4, dtype=F32).reshape(1, 4, 1, 1),
    }
    return file([node("Conv", "x w", "p"), node("Add", "p b")], {"x": ("N", 3, 6, 6)}, constants)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    **{
        f"layer norm, {s}, {q}": (lambda s=s, q=q: layer_norm(s, q), ["LayerNorm"])
        for s in ("pow", "mul")
        for q in ("div", "reciprocal")
    },
    "layer norm of TensorFlow": (layer_norm_of_tensorflow, ["LayerNorm"]),
    "layer norm without factors": (layer_norm_without_factors, ["LayerNorm"]),
    **{f"GELU {i}": (lambda i=i: gelu(i), ["GELU"]) for i in range(6)},
    "GELU by tanh, pow": (lambda: gelu_by_tanh("pow"), ["GELU"]),
    "GELU by tanh, mul": (lambda: gelu_by_tanh("mul"), ["GELU"]),
    "SiLU": (silu, ["SiLU"]),
    "hard swish by hard sigmoid": (lambda: hard_swish("hard sigmoid"), ["Hardswish"]),
    "hard swish by ReLU6": (lambda: hard_swish("relu6"), ["Hardswish"]),
    "attention": (lambda: attention(False), ["scaled_dot_product_attention"]),
    "masked attention": (lambda: attention(True), ["scaled_dot_product_attention"]),
    "linear": (lambda: linear(False), ["Linear"]),
    "linear, bias first": (lambda: linear(True), ["Linear"]),
    "conv": (conv, ["Conv2d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_pattern_becomes_one_layer(name: str, tmp_path: Path) -> None:
    make, wanted = CASES[name]
    assert layers(check(make(), tmp_path)) == wanted


def wrong_mean() -> onnx.ModelProto:
    """The variance of another tensor: no layer norm."""
    nodes = [*centred(), node("Mul", "x x", "q"), node("ReduceMean", "q a", "v"), node("Add", "v eps", "e"),
             node("Sqrt", "e", "s"), node("Div", "d s")]  # fmt: skip
    return file(nodes, {"x": SHAPE}, LAST)


def wrong_factor() -> onnx.ModelProto:
    constants = {"r": np.array(1.5, F32), "one": np.array(1, F32), "h": np.array(0.5, F32)}
    nodes = [
        node("Div", "x r", "s"),
        node("Erf", "s", "e"),
        node("Add", "e one", "p"),
        node("Mul", "x p", "t"),
        node("Mul", "t h"),
    ]
    return file(nodes, {"x": SHAPE}, constants)


def other_gate() -> onnx.ModelProto:
    return file([node("Sigmoid", "z", "s"), node("Mul", "x s")], {"x": SHAPE, "z": SHAPE})


def own_attention() -> onnx.ModelProto:
    nodes = [
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q kt", "s"),
        node("Div", "s c", "d"),
        node("Softmax", "d", "w", axis=-1),
        node("MatMul", "w v"),
    ]
    shape = ("N", 2, 5, 8)
    return file(nodes, {"q": shape, "k": shape, "v": shape}, {"c": np.array(8**0.5, F32)})


def bias_read_twice() -> onnx.ModelProto:
    constants = {"w": np.random.default_rng(0).standard_normal((6, 4)).astype(F32), "b": np.arange(4, dtype=F32)}
    return file([node("MatMul", "x w", "p"), node("Add", "p b", "q"), node("Mul", "p q")], {"x": SHAPE}, constants)


@pytest.mark.parametrize("make", [wrong_mean, wrong_factor, other_gate, own_attention, bias_read_twice])
def test_what_only_looks_like_a_pattern_stays_as_it_is(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model = make()
    found = layers(check(model, tmp_path))
    assert len(found) == len(model.graph.node)
    assert not {"LayerNorm", "GELU", "SiLU", "scaled_dot_product_attention"} & set(found)
