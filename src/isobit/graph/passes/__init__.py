"""Graph passes. A new one costs a file and a line in this table."""

from isobit.graph.passes.fold_bn import FoldBatchNorm
from isobit.graph.passes.global_pool import UnifyGlobalPool
from isobit.graph.passes.protocol import Pass, PassReport

PASSES: dict[str, type[Pass]] = {"fold_bn": FoldBatchNorm, "unify_global_pool": UnifyGlobalPool}

__all__ = ["PASSES", "FoldBatchNorm", "Pass", "PassReport", "UnifyGlobalPool"]
