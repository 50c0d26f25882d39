"""Quantizers: small modules that declare their grid. A new one costs a file and a line in this table."""

from isobit.quantizers.dynamic import Dynamic, DynamicQuantizer
from isobit.quantizers.fixed import Fixed, FixedQuantizer
from isobit.quantizers.lsq import Lsq, LsqQuantizer
from isobit.quantizers.protocol import Quantizer, QuantizerSettings, Role

QUANTIZERS: dict[str, type[QuantizerSettings]] = {
    "fixed": Fixed,
    "dynamic": Dynamic,
    "lsq": Lsq,
}

__all__ = [
    "QUANTIZERS",
    "Dynamic",
    "DynamicQuantizer",
    "Fixed",
    "FixedQuantizer",
    "Lsq",
    "LsqQuantizer",
    "Quantizer",
    "QuantizerSettings",
    "Role",
]
