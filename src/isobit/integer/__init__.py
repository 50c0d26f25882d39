"""The integer-only reference: the bridge between a simulation and an engine."""

from isobit.integer.bounds import accumulating, overflow_risks
from isobit.integer.difference import first_difference, quantized_tensors
from isobit.integer.interpreter import Reference, ReferenceRun, run_reference

__all__ = [
    "Reference",
    "ReferenceRun",
    "accumulating",
    "first_difference",
    "overflow_risks",
    "quantized_tensors",
    "run_reference",
]
