"""Calibration data that the command line makes by itself: synthetic inputs, and equal draws from each domain."""

from torch import nn

from isobit.algorithms import SYNTHESES
from isobit.algorithms.input_range import InputRange, example_inputs
from isobit.algorithms.without_data import SAMPLES, invented_inputs
from isobit.analysis.calibration_data import balanced
from isobit.benchmark.data.normalization import normalization
from isobit.cli.data import Batches, Reading, load_data
from isobit.core.errors import SettingError
from isobit.core.progress import Progress
from isobit.recipes.workflow import synthesize

NONE = "none"
"""No calibration data: batch norm tells what it can."""

MOST = 64
"""Synthetic samples at most: more say little new, and some take minutes."""


def calibration_data(
    net: nn.Module,
    reference: str,
    reading: Reading,
    *,
    shape: str | None,
    samples: int | None,
    balance: bool,
    seed: int,
    progress: Progress,
) -> Batches:
    """Synthetic batches for `none` or a name of `SYNTHESES`, else the data of that name.

    Raises SettingError where the shape is missing, no shape, or has no use, and what loading data raises.
    """
    method = reference.replace("-", "_")
    if reference == NONE or method in SYNTHESES:
        if balance:
            raise SettingError("--balance draws from data that exist: leave it out")
        return _made(net, reference, reading, shape=shape, samples=samples, seed=seed, progress=progress)
    if shape is not None:
        raise SettingError(f"--input-shape is for data that are made: none, {', '.join(SYNTHESES)}. Leave it out")
    data = load_data(reference, reading, samples=None if balance else samples)
    return _balanced(data, samples, reading.batch_size) if balance else data


def _made(
    net: nn.Module,
    reference: str,
    reading: Reading,
    *,
    shape: str | None,
    samples: int | None,
    seed: int,
    progress: Progress,
) -> Batches:
    example, values = example_of_shape(shape), input_range_of(reading)
    if reference == NONE:
        count = SAMPLES
        made = invented_inputs(net, example_inputs(example), values, seed=seed, progress=progress)
        text = f"no data: batch norm, and {count} synthetic samples"
    else:
        count, method = MOST if samples is None else min(samples, MOST), reference.replace("-", "_")
        made = synthesize(net, example, method=method, samples=count, seed=seed, progress=progress, input_range=values)
        text = f"{count} samples made by {reference}"
    return Batches(lambda: made, text=text, samples=count, batches=len(made))


def example_of_shape(shape: str | None) -> tuple[int, ...]:
    """(1, 3, 224, 224) of `3,224,224`. Raises SettingError."""
    parts = (shape or "").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        given = "none is given" if shape is None else f"got {shape!r}"
        raise SettingError(f"without data, --input-shape has to be the shape of one sample, such as 3,224,224; {given}")
    return (1, *map(int, parts))


def input_range_of(reading: Reading) -> InputRange:
    """The values that pixels 0 and 255 get; None where no normalization is given."""
    if reading.normalize is None:
        return None
    how = normalization(reading.normalize)
    size = how.channels
    mean, std = ([v[0]] * size if len(v) == 1 else list(v) for v in (how.mean, how.std))
    low, high = ([(x / how.divisor - m) / s for m, s in zip(mean, std, strict=True)] for x in (0.0, 255.0))
    return low, high


def _balanced(data: Batches, samples: int | None, batch_size: int) -> Batches:
    """Equally many samples of each domain."""
    chosen = balanced(data, samples=samples, batch_size=batch_size)
    count = sum(batch.size for batch in chosen)
    text = f"{count:,} samples, equally of each domain, of {data.text}"
    return Batches(lambda: chosen, text=text, samples=count, batches=len(chosen))
