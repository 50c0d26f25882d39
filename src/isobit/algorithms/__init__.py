"""Algorithms: what makes a calibrated or trained network better."""

from collections.abc import Mapping

from isobit.algorithms.adaround import AdaRound
from isobit.algorithms.brecq import Brecq
from isobit.algorithms.gptq import Gptq
from isobit.algorithms.qdrop import QDrop
from isobit.algorithms.reconstruction import Reconstructs

RECONSTRUCTIONS: Mapping[str, type[Reconstructs]] = {
    "adaround": AdaRound,
    "brecq": Brecq,
    "gptq": Gptq,
    "qdrop": QDrop,
}
"""An algorithm that reconstructs is a line here."""
