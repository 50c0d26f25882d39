"""Worker: ExecuTorch with XNNPACK. A PT2 archive, which isobit wrote, is lowered for each size of batch, and run."""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed

_MOVES = frozenset(
    {"quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel", "view_copy", "permute_copy", "clone",
     "_clone_dim_order", "_to_dim_order_copy", "slice_copy", "select_copy", "squeeze_copy", "unsqueeze_copy",
     "alias_copy", "alloc", "view", "expand_copy", "constant_pad_nd", "cat", "full", "getitem",
     "executorch_call_delegate", "sym_size", "where", "logical_not", "eq", "any", "full_like", "scalar_tensor",
     "embedding", "isnan"}
)  # fmt: skip
"""Ops that compute nothing: in float they are no island."""

_INTEGER = frozenset(
    {"add", "addmm", "cat", "clamp", "convolution", "elu", "hardtanh", "linear", "max_pool2d", "mean", "mm", "mul",
     "relu", "sub"}
)  # fmt: skip
"""Ops that XNNPACK's partitioner takes with quantized inputs and results; others between quantizers run in float."""

_ABSORBED = frozenset({"relu", "hardtanh", "clamp", "view_copy", "permute_copy"})
"""Ops between a computing op and the quantize op behind it."""


class File:
    """A program; each size of its inputs has a lowered form of its own, since memory is planned for it."""

    def __init__(self, path: str, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(threads)
        extra = {"isobit.json": ""}
        program = torch.export.load(path, extra_files=extra)
        self.raised = json.loads(json.loads(extra["isobit.json"])["raised"])
        self.module = program.module()
        users = set(program.graph_signature.user_inputs)
        values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in users}
        self.inputs = [[name, str(v.dtype).removeprefix("torch."), _sizes(v)] for name, v in values.items()]
        self.outputs = list(program.graph_signature.user_outputs)
        self.methods: dict[tuple[tuple[int, ...], ...], tuple[Any, Any]] = {}
        self.programs: list[Any] = []  # a method reads its program's memory
        self.kernels, self.islands = _described(
            self.method([np.zeros([abs(s) for s in x[2]], x[1]) for x in self.inputs])
        )

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Run the form for these sizes."""
        method, _ = self.method(inputs)
        found = method.execute([torch.from_numpy(np.array(x)) for x in inputs])
        return [self._as_in_the_file(name, y.numpy()) for name, y in zip(self.outputs, found, strict=True)]

    def _as_in_the_file(self, name: str, y: np.ndarray) -> np.ndarray:
        by = self.raised.get(name, 0)
        return (y.astype(np.int16) - by).astype(np.uint8) if by else y.copy()

    def method(self, inputs: list[np.ndarray]) -> tuple[Any, Any]:
        """The lowered form for the sizes of `inputs`, and its program."""
        key = tuple(x.shape for x in inputs)
        found = self.methods.get(key) or self._lowered(inputs)
        self.methods[key] = found
        return found

    def _lowered(self, inputs: list[np.ndarray]) -> tuple[Any, Any]:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.kernels import quantized  # noqa: F401 - kernels for what is not lowered
        from executorch.runtime import Runtime

        for node in self.module.graph.nodes:
            node.meta["custom"] = {"isobit.name": node.name}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            static = torch.export.export(self.module, tuple(torch.from_numpy(np.array(x)) for x in inputs))
            edge = to_edge_transform_and_lower(static, partitioner=[XnnpackPartitioner()])
            lowered = edge.exported_program()
            content = bytes(edge.to_executorch().buffer)
        program = Runtime.get().load_program(content)
        self.programs.append((program, content))
        return program.load_method("forward"), lowered


def _described(found: tuple[Any, Any]) -> tuple[list[list[Any]], list[str]]:
    """The kernels, and the names of ops that compute in float: inside of XNNPACK's parts and outside."""
    counts: Counter[tuple[str, str]] = Counter()
    islands = []
    for where, node in _nodes(found[1]):
        kind = _kind(node)
        if kind in _MOVES or (kind in _ABSORBED and _kind(node.args[0]) not in _MOVES):
            continue
        precision = "int8" if where == "XNNPACK" and kind in _INTEGER and _is_integer(node) else "float32"
        counts[f"{where} {kind}", precision] += 1
        if precision == "float32":
            islands.append(str(node.meta.get("custom", {}).get("isobit.name", node.name)))
    return [[name, precision, n] for (name, precision), n in sorted(counts.items())], list(dict.fromkeys(islands))


def _nodes(lowered: Any) -> Iterator[tuple[str, Any]]:
    """Every op, and what computes it."""
    for node in lowered.graph_module.graph.nodes:
        if node.op == "call_function":
            yield "portable", node
        elif node.op == "get_attr":
            part = getattr(lowered.graph_module, node.target, None)
            original = getattr(part, "original_module", None)
            for inner in [] if original is None else original.graph.nodes:
                if inner.op == "call_function":
                    yield "XNNPACK", inner


def _is_integer(node: Any) -> bool:
    """Whether a computing op stands between dequantize ops and a quantize op."""

    def is_rounded(of: Any) -> bool:
        return bool(of.users) and all(
            _kind(user) == "quantize_per_tensor" or (_kind(user) in _ABSORBED and is_rounded(user)) for user in of.users
        )

    given = [x for x in node.all_input_nodes if x.op == "call_function"]
    return is_rounded(node) and all(_kind(x).startswith("dequantize") for x in given)


def _kind(node: Any) -> str:
    """The name of an op without its namespace and overload, `convolution`."""
    if getattr(node, "op", "") != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None) or getattr(getattr(node.target, "_op", None), "_schema", None)
    name = str(schema.name) if schema is not None else str(getattr(node.target, "__name__", node.target))
    return name.rpartition("::")[2].partition(".")[0]


def _sizes(x: Any) -> list[int]:
    return [s if isinstance(s, int) else -1 for s in x.shape]


def load(path: str, expose: list[str], settings: dict[str, Any]) -> File:
    """The exposed tensors are outputs of the program already."""
    del expose
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    logging.disable(logging.WARNING)
    return File(path, int(settings["threads"]))
