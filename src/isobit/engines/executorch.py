"""ExecuTorch on CPUs: XNNPACK's integer kernels, in an environment of its own."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from isobit.core.arithmetic import EXECUTORCH as ARITHMETIC
from isobit.core.errors import EngineError, UnsupportedError
from isobit.core.pt2_program import module_of, saved
from isobit.engines.apart import WORKERS, Apart
from isobit.engines.environment import Environment
from isobit.engines.pt2 import example_of, read_program, with_sign

EXECUTORCH = Environment(
    name="executorch",
    package="executorch",
    torch="torch==2.13.0",
    requirements=("numpy>=2.0", "flatbuffers", "ruamel.yaml", "pyyaml", "tabulate", "packaging", "setuptools"),
    bare=("executorch==1.5.1", "torchao==0.18.0"),  # they ask for coremltools, pandas and scikit-learn besides
    megabytes=1250,
    platforms=("linux-x86_64", "linux-aarch64", "macosx", "win-amd64"),
)


def executorch() -> Apart:
    """XNNPACK's kernels. Each batch size is lowered by itself, which takes seconds."""
    return Apart(
        name="executorch",
        title="ExecuTorch",
        format="pt2e",
        arithmetic=ARITHMETIC,
        environment=EXECUTORCH,
        worker=WORKERS / "executorch_xnnpack.py",
        rewrite=for_xnnpack,
    )


def for_xnnpack(path: Path, expose: Sequence[str]) -> bytes:
    """The program with signed bytes, which XNNPACK takes, and the tensors `expose` among its outputs.

    It is written from what isobit read, so that the worker process unpickles nothing of the file. Its metadata say
    how much lower the integers are than in the file. Raises EngineError for what is no PT2 archive.
    """
    program = read_program(path, expose=expose)
    signed = with_sign(program, signed=True)
    outputs = (*program.outputs, *expose)
    example = tuple(torch.from_numpy(x) for x in example_of(program, batch=2))
    dynamic = [bool(i.sizes) and i.sizes[0] is None for i in program.inputs]
    try:
        module = module_of(signed.program, outputs=outputs)
        return saved(module, example, dynamic=dynamic, metadata={"raised": json.dumps(signed.raised)})
    except UnsupportedError as error:
        raise EngineError(str(error)) from error
