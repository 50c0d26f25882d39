"""PyTorch's compiler on the CPU: PT2E programs become oneDNN's integer kernels and loops of C++."""

import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from isobit.core.arithmetic import INDUCTOR, Arithmetic
from isobit.core.errors import EngineError
from isobit.core.pt2_program import module_of
from isobit.core.records import Kernel
from isobit.engines.base import failed, refused
from isobit.engines.instruction_set import instruction_set
from isobit.engines.pt2 import Signed, check_inputs, example_of, read_program, with_sign

_COMPILERS = ("g++", "clang++", "c++", "cl")
_KERNEL = re.compile(r"\b(?:torch\.ops\.(?!inductor\b|aten\.empty)([\w.]+)|extern_kernels\.(\w+)|(cpp_fused\w*))\(")
_ON_BYTES = ("onednn.q", "quantized.", "aten.cat.")
"""Calls on quantized tensors; the compiler calls ATen for a concatenation of bytes alone, all others are loops."""
_SOURCE = re.compile(r"# Topologically Sorted Source Nodes: \[(.*?)\]")
_SIGNATURE = re.compile(r"^(cpp_fused\w*) = async_compile\.\w+\(\[(.*?)\]", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inductor:
    """Settings of the engine. Each batch size is compiled by itself, which takes seconds."""

    threads: int = 1

    @property
    def name(self) -> str:
        """See Engine."""
        return "inductor"

    @property
    def format(self) -> str:
        """See Engine."""
        return "pt2e"

    def missing(self) -> str:
        """See Engine."""
        if any(shutil.which(compiler) for compiler in _COMPILERS):
            return ""
        return f"PyTorch's compiler needs one of C++ at run time: install {' or '.join(_COMPILERS[:2])}"

    def version(self) -> str:
        """See Engine."""
        return f"torch {torch.__version__} inductor"

    def instruction_set(self) -> str:
        """What oneDNN is allowed to use."""
        return instruction_set(onednn=True)

    @property
    def arithmetic(self) -> Arithmetic:
        """See Engine."""
        return INDUCTOR

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "InductorSession":
        """See Engine. Its integer kernels take unsigned bytes alone: signed ones are raised by 128."""
        if reason := self.missing():
            raise EngineError(reason)
        program = read_program(path, expose=expose)
        for call in program.calls:
            if call.target == "aten.max_pool2d.default" and call.arguments.get("ceil_mode"):
                raise EngineError(
                    f"PyTorch's compiler leaves the ceil_mode of {call.results[0]} out where it pools integers, and "
                    "gives wrong results: pad the image instead"
                )
        return InductorSession(Path(path), with_sign(program, signed=False), tuple(expose), self.threads)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A compiled program, and the Python that calls its kernels."""

    run: Callable[..., Any]
    code: str


@final
class InductorSession:
    """A file in PyTorch's compiler."""

    def __init__(self, path: Path, signed: Signed, expose: tuple[str, ...], threads: int) -> None:
        self._path, self._signed, self._expose, self._threads = path, signed, expose, threads
        self._outputs = (*signed.program.outputs, *expose)
        self._compiled: dict[tuple[tuple[int, ...], ...], _Compiled] = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        check_inputs(self._signed.program, inputs)
        tensors = [torch.from_numpy(x if x.flags.writeable else x.copy()) for x in inputs]
        compiled = self._for(tensors)
        try:
            with torch.no_grad(), _threads(self._threads):
                found = [y.numpy() for y in compiled.run(*tensors)]
        except Exception as error:  # of PyTorch, of any kind
            raise failed("PyTorch's compiler", self._path, error) from error
        return [self._as_in_the_file(name, y) for name, y in zip(self._outputs, found, strict=True)]

    def kernels(self) -> tuple[Kernel, ...]:
        """The calls in the code that the compiler made: oneDNN's, float ones of ATen, and loops of its own."""
        counts = Counter((kind, precision) for kind, precision, _ in self._calls())
        return tuple(Kernel(name=kind, precision=p, count=n) for (kind, p), n in sorted(counts.items()))

    def float_islands(self) -> tuple[str, ...]:
        """See Session. A loop that reads and writes bytes is none, although it computes in float32 in between."""
        names = [name for _, precision, held in self._calls() if precision == "float32" for name in held]
        return tuple(dict.fromkeys(names))

    def _as_in_the_file(self, name: str, y: np.ndarray) -> np.ndarray:
        by = self._signed.raised.get(name, 0)
        return (y.astype(np.int16) - by).astype(np.int8 if by > 0 else np.uint8) if by else y

    def _for(self, tensors: Sequence[Tensor]) -> _Compiled:
        shapes = tuple(tuple(x.shape) for x in tensors)
        if shapes not in self._compiled:
            module = module_of(self._signed.program, outputs=self._outputs)
            try:
                with torch.no_grad(), _threads(self._threads):
                    self._compiled[shapes] = _compile(module, tensors)
            except Exception as error:
                raise refused("PyTorch's compiler", self._path, error) from error
        return self._compiled[shapes]

    def _calls(self) -> Iterator[tuple[str, str, list[str]]]:
        """The kind, the precision and the computing ops of each kernel, in the order of the calls."""
        if not self._compiled:
            self._for([torch.from_numpy(x) for x in example_of(self._signed.program)])
        code = next(iter(self._compiled.values())).code
        types = dict(_SIGNATURE.findall(code))
        computing = {c.results[0] for c in self._signed.program.calls if c.target in _COMPUTES}
        held: list[str] = []
        for line in code[code.index("def call(") :].splitlines():
            if source := _SOURCE.search(line):
                held = [name.strip() for name in source.group(1).split(",")]
            elif (called := _KERNEL.search(line.split("#")[0])) and "assert_size_stride" not in line:
                op, extern, loop = called.groups()
                kind = op or extern or _plain(loop)
                bytes_there = "uint8_t" in types.get(loop or "", "")
                precision = "uint8" if (op or "").startswith(_ON_BYTES) or bytes_there else "float32"
                if loop and not bytes_there and not set(held) & computing:
                    continue  # a loop that copies constants
                yield kind, precision, [name for name in held if name in computing]
                held = []


_COMPUTES = frozenset(
    f"aten.{name}"
    for name in (
        "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "add.Tensor", "add_.Tensor",
        "avg_pool2d.default", "batch_norm.default", "cat.default", "clamp.default", "conv1d.default",
        "conv2d.default", "conv3d.default", "conv_transpose1d.default", "conv_transpose2d.input", "div.Tensor",
        "hardsigmoid.default", "hardswish.default", "hardswish_.default", "hardtanh.default", "hardtanh_.default",
        "leaky_relu.default", "linear.default", "matmul.default", "max_pool1d.default", "max_pool2d.default",
        "mean.dim", "mul.Tensor", "relu.default", "relu6.default", "relu6_.default", "relu_.default",
        "sigmoid.default", "silu.default", "softmax.int", "sub.Tensor",
    )
)  # fmt: skip
"""Ops that compute and have integer kernels somewhere, as `isobit.engines.base.COMPUTES` lists them for ONNX."""


def _plain(loop: str) -> str:
    """The name of a loop without its number."""
    return re.sub(r"_\d+$", "", loop)


def _compile(module: Any, tensors: Sequence[Tensor]) -> _Compiled:
    import torch._inductor
    from torch._inductor.graph import GraphLowering

    codes: list[str] = []
    with warnings.catch_warnings(), patch.object(GraphLowering, "save_output_code", codes.append):
        warnings.simplefilter("ignore")  # of the compiler about its own code
        run = torch._inductor.compile(module, list(tensors), options={"freezing": True})
    return _Compiled(run, codes[-1] if codes else "")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
