"""Graph passes. A new one costs a file and a line in this table."""

from isobit.graph.passes.absorb_bias import AbsorbBias
from isobit.graph.passes.equalize import EqualizeLayers
from isobit.graph.passes.fold_bn import FoldBatchNorm
from isobit.graph.passes.fold_bn_in_training import FoldBatchNormInTraining
from isobit.graph.passes.global_pool import UnifyGlobalPool
from isobit.graph.passes.keep_rounding import KeepRounding
from isobit.graph.passes.merge_bn_into_scales import MergeBatchNormIntoScales
from isobit.graph.passes.protocol import Pass, PassReport
from isobit.graph.passes.smooth import SmoothQuant
from isobit.graph.passes.split_attention import SplitAttention
from isobit.graph.passes.split_channels import SplitChannels

PASSES: dict[str, type[Pass]] = {
    "absorb_bias": AbsorbBias,
    "equalize": EqualizeLayers,
    "fold_bn": FoldBatchNorm,
    "fold_bn_in_training": FoldBatchNormInTraining,
    "keep_rounding": KeepRounding,
    "merge_bn_into_scales": MergeBatchNormIntoScales,
    "smooth": SmoothQuant,
    "split_attention": SplitAttention,
    "split_channels": SplitChannels,
    "unify_global_pool": UnifyGlobalPool,
}

__all__ = [
    "PASSES",
    "AbsorbBias",
    "EqualizeLayers",
    "FoldBatchNorm",
    "FoldBatchNormInTraining",
    "KeepRounding",
    "MergeBatchNormIntoScales",
    "Pass",
    "PassReport",
    "SmoothQuant",
    "SplitAttention",
    "SplitChannels",
    "UnifyGlobalPool",
]
