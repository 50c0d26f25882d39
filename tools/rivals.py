"""Quantize a float network with another tool: of ONNX Runtime, OpenVINO, PyTorch, LiteRT, ExecuTorch, AMD or NVIDIA.

    PYTHON tools/rivals.py METHOD float.onnx images.npy OUT [--limit 64] [--batch 1] [--core 0]

PYTHON is one that has the tool (`pip install onnxruntime onnx`, `pip install nncf openvino onnx onnxruntime`, or
`pip install torch torchao`, or `pip install torch litert-torch ai-edge-quantizer`): isobit is not imported. Quark and
ModelOpt need an environment each: `pip install amd-quark onnx==1.22.0 onnxruntime onnxscript …`, `nvidia-modelopt` with
`--no-deps` and what it imports, each behind a PyTorch without CUDA; for ExecuTorch that of `isobit engines`.
OUT is an ONNX file, an OpenVINO one (.xml) for `nncf-openvino`, a LiteRT one for `ai-edge` and `edge-int8`, and one of
torch.export (.pt2) for `torchao-x86` and `executorch-xnnpack`. These two and `ai-edge` start from such a file instead
of ONNX, `edge-int8` from float.pt2 beside float.onnx. The last line printed is JSON: seconds, CPU seconds and peak
memory of the quantization, imports and reading of the data not counted, and of the whole process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

Arrays = Any
Job = Callable[[Path, Arrays, Path], Callable[[], None]]


def onnxruntime_static(method: str) -> Job:
    """`quantize_static` as QDQ with per-channel int8 weights; activations are uint8, asymmetric."""

    def job(model: Path, batches: Arrays, out: Path, *, per_channel: bool = True) -> Callable[[], None]:
        from onnxruntime import disable_telemetry_events
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        disable_telemetry_events()
        reader = _reader(batches, _input_name(model))

        def run() -> None:
            quantize_static(
                str(model),
                str(out),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )

        return run

    return job


def onnxruntime_per_tensor(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """The same with MinMax and one scale for a whole weight."""
    job: Any = onnxruntime_static("MinMax")
    run: Callable[[], None] = job(model, batches, out, per_channel=False)
    return run


def onnxruntime_defaults(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """`quantize_static` with nothing said: QDQ, signed bytes on both sides, one scale for a whole weight."""
    from onnxruntime import disable_telemetry_events
    from onnxruntime.quantization import quantize_static

    disable_telemetry_events()
    reader = _reader(batches, _input_name(model))
    return lambda: quantize_static(str(model), str(out), reader)


def nncf_on_onnx(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """`nncf.quantize` with its defaults on the ONNX file."""
    os.environ.setdefault("NNCF_CI", "1")  # it reports usage over the network unless told not to
    import nncf
    import onnx

    name = _input_name(model)
    samples = nncf.Dataset(batches, lambda x: {name: x})

    def run() -> None:
        onnx.save(nncf.quantize(onnx.load(model), samples, subset_size=len(batches)), out)

    return run


def nncf_on_openvino(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """`nncf.quantize` with its defaults on the file as OpenVINO reads it."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    samples = nncf.Dataset(batches)

    def run() -> None:
        network = openvino.Core().read_model(str(model))
        openvino.save_model(nncf.quantize(network, samples, subset_size=len(batches)), str(out), compress_to_fp16=False)

    return run


def ai_edge(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """litert-torch's conversion of a .pt2 file at this batch, ai-edge-quantizer's static int8, float at both ends."""
    import litert_torch
    import torch
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ai_edge_quantizer.utils import tfl_interpreter_utils

    program = torch.export.load(model)
    plain = out.with_suffix(".float.tflite")

    def run() -> None:
        litert_torch.convert(program.module(), (torch.from_numpy(batches[0]),)).export(str(plain))
        signatures = tfl_interpreter_utils.create_tfl_interpreter(str(plain)).get_signature_list()
        key, ends = next(iter(signatures.items()))
        job = quantizer.Quantizer(str(plain))
        job.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            job.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
        seen = job.calibrate({key: [{ends["inputs"][0]: x} for x in batches]}, num_threads=1)
        job.quantize(seen).export_model(str(out), overwrite=True)

    return run


def torchao_x86(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """torchao's PT2E quantization of a .pt2 file for inductor on x86, with its defaults."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    program = torch.export.load(model)

    def run() -> None:
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(), quantizer)
        with torch.no_grad():
            for x in batches:
                prepared(torch.from_numpy(x))
        two = torch.from_numpy(batches[0]).expand(2, -1, -1, -1).contiguous()
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        torch.export.save(torch.export.export(convert_pt2e(prepared), (two,), dynamic_shapes=dynamic), out)

    return run


def executorch_xnnpack(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """ExecuTorch's own PT2E quantizer for XNNPACK on a .pt2 file: signed bytes, one scale a channel for weights."""
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = torch.export.load(model)

    def run() -> None:
        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        prepared = prepare_pt2e(program.module(), quantizer)
        with torch.no_grad():
            for x in batches:
                prepared(torch.from_numpy(x))
        two = torch.from_numpy(batches[0]).expand(2, -1, -1, -1).contiguous()
        converted = torch.export.export(convert_pt2e(prepared), (two,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(converted, out, extra_files=AS_IT_IS)

    return run


AS_IT_IS = {"isobit.json": json.dumps({"raised": "{}"})}
"""What isobit's worker for ExecuTorch wants to know of a file: its integers are not shifted."""


def quark(name: str) -> Job:
    """AMD Quark with one of its named configurations."""

    def job(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
        from quark.onnx import ModelQuantizer
        from quark.onnx.quantization.config import Config, get_default_config

        config = Config(global_quant_config=get_default_config(name))
        reader = _reader(batches, _input_name(model))
        return lambda: ModelQuantizer(config).quantize_model(str(model), str(out), reader)

    return job


def modelopt(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """NVIDIA ModelOpt's int8 with its defaults, but for floats of 32 bits between the quantizers."""
    import numpy as np
    from modelopt.onnx.quantization import quantize

    data = {_input_name(model): np.concatenate(batches)}
    return lambda: quantize(
        onnx_path=str(model),
        quantize_mode="int8",
        calibration_data=data,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )


def edge(model: Path, batches: Arrays, out: Path) -> Callable[[], None]:
    """litert-torch, then ai-edge-quantizer's static recipe: int8 weights and activations, int8 in and out."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    program = torch.export.load(model.with_suffix(".pt2"))
    floats = out.with_suffix(".float.tflite")
    litert_torch.convert(program.module(), (torch.from_numpy(batches[0]),)).export(str(floats))
    ((signature, ends),) = Interpreter(str(floats)).get_signature_list().items()
    samples = {signature: [{ends["inputs"][0]: x} for x in batches]}

    def run() -> None:
        job = quantizer.Quantizer(str(floats))
        job.load_quantization_recipe(recipe.static_wi8_ai8())
        job.quantize(job.calibrate(samples)).export_model(str(out), overwrite=True)

    return run


METHODS: dict[str, Job] = {
    "ort-minmax": onnxruntime_static("MinMax"),
    "ort-percentile": onnxruntime_static("Percentile"),
    "ort-entropy": onnxruntime_static("Entropy"),
    "ort-per-tensor": onnxruntime_per_tensor,
    "ort-defaults": onnxruntime_defaults,
    "nncf-onnx": nncf_on_onnx,
    "nncf-openvino": nncf_on_openvino,
    "ai-edge": ai_edge,
    "torchao-x86": torchao_x86,
    "executorch-xnnpack": executorch_xnnpack,
    "quark-xint8": quark("XINT8"),
    "quark-a8w8": quark("A8W8"),
    "modelopt-int8": modelopt,
    "edge-int8": edge,
}
SUFFIX = {"nncf-openvino": ".xml", "edge-int8": ".tflite"}


PACKAGES = {
    "ort": ("onnxruntime",), "nncf": ("nncf",), "quark": ("amd-quark",), "modelopt": ("nvidia-modelopt",),
    "edge": ("litert-torch", "ai-edge-quantizer"), "ai": ("litert-torch", "ai-edge-quantizer"), "torchao": ("torchao",),
    "executorch": ("executorch", "torchao"),
}  # fmt: skip


def _input_name(model: Path) -> str:
    import onnx

    return str(onnx.load(model, load_external_data=False).graph.input[0].name)


def _reader(batches: Arrays, name: str) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(({name: x} for x in self.left), None)

    return Reader()


def memory(key: str) -> float:
    """MB of this process, by its key in /proc: VmRSS now, VmHWM at its highest. Unlike getrusage, not its parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def pin(core: int | None) -> None:
    """Stay on one core, before any library counts them."""
    if core is not None:
        os.sched_setaffinity(0, {core})
        os.environ["OMP_NUM_THREADS"] = "1"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="float32 array (n, channels, height, width)")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=64, help="how many images")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--core", type=int)
    options = parser.parse_args(arguments)
    pin(options.core)
    import numpy as np

    images = np.load(options.images, mmap_mode="r", allow_pickle=False)[: options.limit]
    batches = [np.ascontiguousarray(images[i : i + options.batch]) for i in range(0, len(images), options.batch)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        run = METHODS[options.method](options.model.resolve(), batches, options.out.resolve())
        before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
        run()
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    packages = PACKAGES[options.method.split("-")[0]]
    result = {
        **spent,
        "peak_mb": memory("VmHWM"),
        "before_mb": before,
        "process_wall": time.perf_counter() - STARTED,
        "process_cpu": time.process_time(),
        "version": ", ".join(f"{p} {version(p)}" for p in packages),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
