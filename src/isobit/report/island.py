"""The data that the page's script draws: layers and histograms, thinned so that a large network stays small."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from isobit.core.records import Histogram, LayerRecord, RunRecord, TensorRecord
from isobit.report.summary import widths

BINS = 192
"""A histogram is drawn about 500 pixels wide; more bins cannot be seen."""


def page_data(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """For each run its layers, in network order, as plain values that strict JSON holds."""
    return [{"layers": [_layer(layer) for layer in record.layers]} for record in records]


def island(records: Sequence[RunRecord]) -> str:
    r"""`page_data` as JSON that cannot end the script element in which it stands.

    `<`, `>`, `&` and the two Unicode line ends are written as escapes, so a layer named `</script>` is only text.
    """
    text = json.dumps(page_data(records), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def merged(histogram: Histogram, bins: int = BINS) -> Histogram:
    """The same counts in at most `bins` bins: neighbours are added, the last bin may reach past `high`.

    >>> merged(Histogram(low=0.0, high=5.0, counts=(1, 2, 3, 4, 5)), bins=3)
    Histogram(low=0.0, high=6.0, counts=(3, 7, 5))
    """
    counts = histogram.counts
    step = max(1, math.ceil(len(counts) / bins))
    if step == 1:
        return histogram
    joined = tuple(sum(counts[i : i + step]) for i in range(0, len(counts), step))
    width = (histogram.high - histogram.low) / len(counts)
    return Histogram(low=histogram.low, high=histogram.low + width * step * len(joined), counts=joined)


def _layer(layer: LayerRecord) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op": layer.op,
        "bits": widths(layer),
        "parameters": layer.parameters,
        "macs": layer.macs,
        "sqnr": _value(layer.sqnr_db),
        "cosine": _value(layer.cosine, digits=9),
        "isolated": _value(layer.isolated_db),
        "isolatedCosine": _value(layer.isolated_cosine, digits=9),
        "sensitivity": _value(layer.sensitivity),
        "tensors": [_tensor(tensor) for tensor in layer.tensors],
    }


def _tensor(tensor: TensorRecord) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "role": tensor.role,
        "scheme": tensor.scheme,
        "bits": tensor.bits,
        "integers": [tensor.quant_min, tensor.quant_max],
        "clip": [_value(tensor.clip_low), _value(tensor.clip_high)],
        "scale": _spread(tensor.scale),
        "zeroPoint": _spread(tensor.zero_point),
        "clipped": _value(tensor.clipped),
        "histogram": None if tensor.histogram is None else _histogram(tensor.histogram),
    }


def _histogram(histogram: Histogram) -> dict[str, Any] | None:
    if not histogram.counts or not math.isfinite(histogram.low) or not math.isfinite(histogram.high):
        return None
    drawn = merged(histogram)
    return {
        "range": [_value(histogram.low), _value(histogram.high)],
        "low": _value(drawn.low),
        "high": _value(drawn.high),
        "counts": list(drawn.counts),
    }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """How many values there are and their least, median and largest: a page needs no 2,048 scales."""
    if not values:
        return None
    return {
        "count": len(values),
        "low": _value(min(values)),
        "median": _value(statistics.median(values)),
        "high": _value(max(values)),
    }


def _value(value: float | None, digits: int = 6) -> float | str | None:
    """A number to a few digits; what JSON has no number for becomes the text the page shows."""
    if value is None or isinstance(value, int):
        return value
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return float(f"{value:.{digits}g}")
