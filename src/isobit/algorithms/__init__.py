"""Algorithms: what makes a calibrated or trained network better."""

from collections.abc import Mapping

from isobit.algorithms.adaround import AdaRound
from isobit.algorithms.brecq import Brecq
from isobit.algorithms.gdfq import Gdfq
from isobit.algorithms.gptq import Gptq
from isobit.algorithms.qdrop import QDrop
from isobit.algorithms.reconstruction import Reconstructs
from isobit.algorithms.synthesis import Synthesizes
from isobit.algorithms.synthetic_images import DeadLeaves
from isobit.algorithms.zeroq import ZeroQ

RECONSTRUCTIONS: Mapping[str, type[Reconstructs]] = {
    "adaround": AdaRound,
    "brecq": Brecq,
    "gptq": Gptq,
    "qdrop": QDrop,
}
"""An algorithm that reconstructs is a line here."""

SYNTHESES: Mapping[str, type[Synthesizes]] = {
    "dead_leaves": DeadLeaves,
    "gdfq": Gdfq,
    "zeroq": ZeroQ,
}
"""What makes inputs without data is a line here."""
