"""Qualcomm's QNN: its simulator of the Hexagon Tensor Processor, through ONNX Runtime's plugin."""

from isobit.core.arithmetic import HEXAGON
from isobit.engines.apart import WORKERS, Apart
from isobit.engines.environment import Environment

QNN = Environment(
    name="qnn",
    package="onnxruntime-qnn",
    requirements=("onnxruntime-qnn==2.7.0", "onnxruntime>=1.24.2", "onnx>=1.18", "numpy>=1.26"),
    megabytes=550,
    platforms=("linux-x86_64", "win-amd64"),
)


def qnn_htp() -> Apart:
    """The simulator of the processor, on x86. It takes QDQ files, and one sample at a time."""
    return Apart(
        name="qnn-htp",
        title="QNN's HTP simulator",
        format="onnx",
        arithmetic=HEXAGON,
        environment=QNN,
        worker=WORKERS / "onnxruntime_qnn.py",
        settings=(("backend", "htp"),),
        simulates="Hexagon HTP, simulated",
    )
