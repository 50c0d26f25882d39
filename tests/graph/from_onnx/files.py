"""Small ONNX files, and what ONNX Runtime computes from them with all of its rewriting switched off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from isobit.graph.from_onnx import load_onnx

Shape = Sequence[int | str]


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, "-" stands for an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def file(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Shape, int] | Shape],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    outputs: Mapping[str, int] | None = None,
    rank: int | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A file; inputs are shapes (float) or (shape, type), outputs their types, of `rank` where onnx cannot tell."""
    unknown = None if rank is None else [None] * rank
    values = []
    for name, given in inputs.items():
        shape, kind = given if isinstance(given[0], (tuple, list)) else (given, TensorProto.FLOAT)
        values.append(helper.make_tensor_value_info(name, kind, shape))
    results = [
        helper.make_tensor_value_info(name, kind, unknown)
        for name, kind in (outputs or {"y": TensorProto.FLOAT}).items()
    ]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "net", values, results, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(path: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


def results(network: nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the imported network computes."""
    with torch.no_grad():
        found = network(*(torch.from_numpy(a) for a in arrays))
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


def arrays_for(model: onnx.ModelProto, *, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs; free dimensions get `batch`, integers lie from 0 to 4, truth values are mixed."""
    random = np.random.default_rng(seed)
    made = []
    for given in model.graph.input:
        dims = given.type.tensor_type.shape.dim
        shape = [d.dim_value if d.HasField("dim_value") else batch for d in dims]
        kind = given.type.tensor_type.elem_type
        if kind == TensorProto.BOOL:
            made.append(random.random(shape) < 0.5)
        elif kind == TensorProto.FLOAT:
            made.append(random.standard_normal(shape).astype(np.float32))
        else:
            made.append(random.integers(0, 5, shape).astype(helper.tensor_dtype_to_np_dtype(kind)))
    return made


def close(found: np.ndarray, wanted: np.ndarray, *, tolerance: float = 1e-5) -> None:
    """Equal shapes and types; float values within `tolerance` of the largest one."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if not np.issubdtype(wanted.dtype, np.floating):
        np.testing.assert_array_equal(found, wanted)
        return
    finite = wanted[np.isfinite(wanted)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * max(largest, 1e-6))


def check(model: onnx.ModelProto, folder: Path, *, batches: Sequence[int] = (3,), tolerance: float = 1e-5) -> nn.Module:
    """Import a file and compare it with ONNX Runtime; give the network."""
    path = folder / "net.onnx"
    onnx.save(model, path)
    network = load_onnx(path)
    for batch in batches:
        arrays = arrays_for(model, batch=batch)
        for found, wanted in zip(results(network, arrays), run(path, arrays), strict=True):
            close(found, wanted, tolerance=tolerance)
    return network


def ones_for(network: nn.Module, shapes: Sequence[Shape], batch: int) -> tuple[Tensor, ...]:
    """Inputs of ones, for what only looks at shapes."""
    return tuple(torch.ones([batch if isinstance(n, str) else n for n in shape]) for shape in shapes)
