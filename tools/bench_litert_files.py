"""LiteRT files of any origin on both sets of kernels: the verdict, and every inner tensor against the reference.

    python tools/bench_litert_files.py FILE.tflite ...

Inputs are drawn over the range of the file's first quantizer, or normal where its inputs are floats that no quantizer
reads. `differ` counts the values of all quantized tensors, inner ones too, that are not those of the reference.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import isobit
from bench_output import Table, finish, say
from isobit.core.batches import Data
from isobit.core.errors import ArtifactError
from isobit.engines import ENGINES
from isobit.integer import Reference, quantized_tensors
from isobit.integer.files import inputs_of, load_qdq, random_inputs


def data(path: Path) -> Data:
    """Inputs for a file."""
    file = load_qdq(path)
    try:
        return random_inputs(file)
    except ArtifactError:
        shapes = [[size or 1 for size in x.shape] for x in inputs_of(file)]
        generator = torch.Generator().manual_seed(0)
        return [(tuple(torch.randn(shape, generator=generator) for shape in shapes),) for _ in range(16)]


def inner(path: Path, engine: str, given: Data) -> tuple[int, int, int]:
    """Quantized tensors, their values, and how many of these differ, on three batches."""
    file = load_qdq(path)
    names = quantized_tensors(file)
    chosen = ENGINES[engine]()
    session, reference = chosen.load(path, expose=names), Reference(file, chosen.arithmetic)
    total = differ = 0
    for inputs, *_ in list(given)[:3]:
        arrays = [x.numpy() for x in inputs]
        found, expected = session.run(arrays), reference.run(arrays).integers
        for name, values in zip(session.outputs, found, strict=True):
            if name in names:
                total += values.size
                differ += int(np.count_nonzero(values.astype(np.int64) != expected[name].astype(np.int64)))
    return len(names), total, differ


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, notes = [], []
    for path in options.files:
        given = data(path)
        for engine in ("litert", "litert-reference"):
            say(f"{path.name} on {engine}")
            certificate = isobit.verify(path, None, given, engine=engine)
            (proof,) = certificate.comparisons
            first = f"{proof.first.op} {proof.first.name}" if proof.first else ""
            tensors, total, differ = inner(path, engine, given)
            rows.append((
                path.stem, engine, certificate.verdict, f"{proof.equal:,} of {proof.total:,}", str(tensors),
                f"{total:,}", f"{differ:,}", first, str(len(certificate.float_islands)),
            ))  # fmt: skip
        notes += [f"{path.stem}: {finding}" for finding in certificate.findings]
    columns = (
        "file", "engine", "verdict", "outputs equal", "tensors", "values", "differ", "differs first", "ops in float",
    )  # fmt: skip
    return finish(
        [Table(title="LiteRT files", columns=columns, rows=tuple(rows), notes=tuple(notes))], json_file=None, records=[]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
