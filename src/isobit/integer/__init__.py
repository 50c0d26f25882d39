"""The integer-only reference: the bridge between a simulation and an engine."""

from isobit.integer.interpreter import Reference, ReferenceRun, run_reference

__all__ = ["Reference", "ReferenceRun", "run_reference"]
