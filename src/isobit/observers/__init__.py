"""Observers: what range of values a tensor has, and which part of it to quantize.

`OBSERVERS` is the table of all; a new one is a file with settings that have `build(scheme)`, and a line here.
"""

from isobit.observers.aciq import Aciq
from isobit.observers.auto import Auto
from isobit.observers.centroids import Centroids
from isobit.observers.cross_entropy import CrossEntropy
from isobit.observers.histogram import Histogram
from isobit.observers.kl_divergence import KlDivergence
from isobit.observers.mean_abs import MeanAbs
from isobit.observers.mean_std import MeanStd
from isobit.observers.min_max import MinMax
from isobit.observers.moving_average import MovingAverage
from isobit.observers.mse import Mse
from isobit.observers.percentile import Percentile
from isobit.observers.protocol import Observer, ObserverSettings

__all__ = [
    "OBSERVERS",
    "Aciq",
    "Auto",
    "Centroids",
    "CrossEntropy",
    "Histogram",
    "KlDivergence",
    "MeanAbs",
    "MeanStd",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Observer",
    "ObserverSettings",
    "Percentile",
]

OBSERVERS: dict[str, type] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "histogram": Histogram,
    "mse": Mse,
    "kl_divergence": KlDivergence,
    "cross_entropy": CrossEntropy,
    "aciq": Aciq,
    "mean_std": MeanStd,
    "mean_abs": MeanAbs,
    "centroids": Centroids,
    "auto": Auto,
}
