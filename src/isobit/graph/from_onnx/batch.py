"""A file written for one batch size becomes a network for any."""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.core.onnx_file import first_line
from isobit.graph.from_onnx.builder import EXAMPLES, Builder, is_free, rank
from isobit.graph.from_onnx.op import Op

TOLERANCE = 1e-4
"""Largest relative difference between a sample alone and among others: kernels sum in another order."""

_HELP = "export the network with a dynamic batch size (dynamic_shapes or dynamic_axes of torch.onnx.export)"


def fixed_to_free(b: Builder, op: Op, x: fx.Node, wanted: list[int]) -> list[int]:
    """The target of a Reshape with -1 in the place of the batch.

    What lies in front of the batch keeps its size: where the lengths before axis a of `x` make p, the batch of the
    result is the axis before which they make p too. The lengths of the file's own batch say what -1 stood for.
    """
    assert b.batch is not None
    free = [axis for axis in range(rank(x)) if is_free(x, axis)]
    if len(free) != 1:
        raise UnsupportedError(f"the batch is in several of its axes: {_HELP}")
    shape = list(x.meta[EXAMPLES][0].shape)
    shape[free[0]] = shape[free[0]] // b.samples * b.batch
    known = prod(n for n in wanted if n != -1)
    lengths = [prod(shape) // max(known, 1) if n == -1 else n for n in wanted]
    before = prod(shape[: free[0]])
    place = next((i for i, n in enumerate(lengths) if prod(lengths[:i]) == before and n % b.batch == 0), None)
    if place is None or prod(lengths) != prod(shape):
        raise UnsupportedError(f"it mixes the batch of {b.batch} with another axis: {_HELP}")
    found = [-1 if i == place else n for i, n in enumerate(lengths)]
    if found != wanted:
        b.freed.append(op.name)
    return found


def check_freed(b: Builder, network: nn.Module) -> None:
    """Compare the outputs for two batches of the file's size with those for each alone. Raises UnsupportedError."""
    if b.batch is None:
        return
    generator = torch.Generator().manual_seed(0)
    given = [(n.meta[EXAMPLES][0], is_free(n, 0)) for n in b.graph.nodes if n.op == "placeholder"]
    inputs = [_random(x, 2 * b.batch if batched else len(x), generator) for x, batched in given]
    halves = [
        [x[part] if batched else x for x, (_, batched) in zip(inputs, given, strict=True)]
        for part in (slice(b.batch), slice(b.batch, None))
    ]
    try:
        with torch.no_grad():
            both = _outputs(network(*inputs))
            alone = [_outputs(network(*half)) for half in halves]
    except Exception as error:  # of any kind, from torch
        raise UnsupportedError(
            f"it does not run with a batch of {2 * b.batch}: {first_line(error)}; {_HELP}"
        ) from error
    for together, first, second in zip(both, *alone, strict=True):
        apart = torch.cat([first, second]) if together.dim() and len(together) == 2 * len(first) else None
        if apart is None or not _close(together, apart):
            raise UnsupportedError(
                f"the batch of {b.batch} is written into it{f', at {b.freed[0]} first,' if b.freed else ''} in a way "
                f"that cannot be undone: {_HELP}"
            )


def _random(example: Tensor, length: int, generator: torch.Generator) -> Tensor:
    shape = (length, *example.shape[1:])
    whole = not example.dtype.is_floating_point
    made = torch.randint(0, 2, shape, generator=generator) if whole else torch.randn(shape, generator=generator)
    return made.to(example.dtype)


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = torch.isfinite(b)
    scale = float(b[finite].abs().max()) if bool(finite.any()) else 1.0
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * max(scale, 1e-6), equal_nan=True)
