"""Sessions of the latency bench: files of any tool, loaded alike, where `isobit.engines` would not load them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from isobit.core.pt2_program import module_of
from isobit.core.records import Kernel
from isobit.engines.pt2 import read_program, with_sign


@final
class OpenVinoModel:
    """A file in OpenVINO with any precision hint, also an .xml: what `isobit.engines` does not load."""

    def __init__(self, path: Path, hint: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = core.compile_model(core.read_model(str(path)), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
        self._request = compiled.create_infer_request()

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("output",)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._request.infer(list(inputs), share_inputs=True)
        return [np.array(self._request.get_output_tensor(0).data)]

    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def float_islands(self) -> tuple[str, ...]:
        return ()


@final
class LiteRtModel:
    """A file in LiteRT with XNNPACK, whoever made it: `isobit.engines` checks files first, and knows not all."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("output",)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        (want,), (x,) = self._interpreter.get_input_details(), inputs
        if tuple(want["shape"]) != x.shape:
            self._interpreter.resize_tensor_input(want["index"], x.shape, strict=True)
            self._interpreter.allocate_tensors()
        self._interpreter.set_tensor(want["index"], x)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])]

    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def float_islands(self) -> tuple[str, ...]:
        return ()


@final
class CompiledProgram:
    """A file of torch.export in PyTorch's compiler with its weights frozen, whoever made it.

    isobit's own are made unsigned first, as its engine does.
    """

    def __init__(self, path: Path, *, own: bool) -> None:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  # its ops are in the files

        if own:
            program = with_sign(read_program(path), signed=False).program
            self._module: Any = module_of(program, outputs=program.outputs)
        else:
            self._module = torch.export.load(path).module()
        self._compiled: dict[tuple[int, ...], Any] = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("output",)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        from torch import _inductor

        (x,) = (torch.from_numpy(x) for x in inputs)
        with torch.no_grad():
            if tuple(x.shape) not in self._compiled:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler about its own code
                    compiled = _inductor.compile(self._module, [x], options={"freezing": True})
                self._compiled[tuple(x.shape)] = compiled
            y = self._compiled[tuple(x.shape)](x)
        return [(y if isinstance(y, torch.Tensor) else y[0]).numpy()]

    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def float_islands(self) -> tuple[str, ...]:
        return ()
