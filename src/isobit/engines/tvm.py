"""Apache TVM: it takes QDQ files as they are written, and runs quantizers around float operators."""

from isobit.core.arithmetic import FLOAT32
from isobit.engines.apart import WORKERS, Apart
from isobit.engines.environment import Environment

TVM = Environment(
    name="tvm",
    package="apache-tvm",
    requirements=("apache-tvm==0.27.0", "onnx>=1.18", "numpy>=1.26"),
    megabytes=500,
    platforms=("linux-x86_64", "linux-aarch64", "macosx", "win-amd64"),
)


def tvm() -> Apart:
    """TVM on the processor that it runs on. All of its operators compute in float."""
    return Apart(
        name="tvm",
        title="TVM",
        format="onnx",
        arithmetic=FLOAT32,
        environment=TVM,
        worker=WORKERS / "apache_tvm.py",
    )
