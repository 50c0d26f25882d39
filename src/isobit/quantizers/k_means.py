"""k-means: the weights of a layer share a few learned values (Han et al., ICLR 2016, arXiv:1510.00149, section 3)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerTensor
from isobit.core.grid import Codebook, Uniform
from isobit.core.qparams import QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class KMeans:
    """Settings of weight sharing. It has none: the observer `centroids` finds the clusters."""

    observer: ClassVar[str] = "centroids"

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "KMeansQuantizer":
        """Raises UnsupportedError for activations, and where a codebook cannot follow the scheme."""
        if role != "weight":
            raise UnsupportedError("k-means shares the values of weights: use `lsq` for activations")
        if not (scheme.signed and scheme.symmetric) or scheme.granularity != PerTensor():
            raise UnsupportedError("k-means has one codebook for a layer: use a signed, symmetric, per-tensor scheme")
        if isinstance(scheme.scale, PowerOfTwo) or scheme.narrow:
            raise UnsupportedError("the values of a codebook are free: use a float scale without `narrow`, or `lsq`")
        if scheme.grid not in (Uniform(), Codebook()) or scheme.rounding != HalfEven():
            raise UnsupportedError("k-means takes the nearest centroid: use a uniform grid with rounding to nearest")
        return KMeansQuantizer(replace(scheme, grid=Codebook(), adapt_sign=False))


@final
class KMeansQuantizer(nn.Module):
    """ŵ_i = C_k(i): 2^bits centroids, learned; the clusters k(i) stay as calibration found them.

    Clusters are the weights nearest to a centroid, after Lloyd's iterations from centroids evenly over [min w, max w]
    (equation 2; the start is the paper's best, "linear"). The gradient to C_k is the sum of the members' (equation 3).
    The weights are replaced and get none, so that no optimizer moves them to another cluster: `start` holds
    the centroids that decide. Shapes: w any.
    """

    centroids: nn.Parameter
    start: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.centroids = nn.Parameter(torch.empty(0))
        self.register_buffer("start", torch.empty(0))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the centroids; from an observer without a codebook, values evenly over its range."""
        if qparams.codebook is not None:
            values = qparams.codebook * qparams.scale
        else:
            low, high = (float(bound) for bound in qparams.range())
            values = torch.linspace(low, high, 1 << self.scheme.bits, device=qparams.scale.device)
        self.start = values.detach().clone()
        self.centroids.data = self.start.clone()

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w any; raises CalibrationError before calibration."""
        require_calibrated(self.start)
        middles = (self.start[1:] + self.start[:-1]) / 2
        cluster = torch.searchsorted(middles.to(w.dtype), w.detach().contiguous())
        return self.centroids.index_select(0, cluster.flatten()).reshape(w.shape).to(w.dtype)

    def grid(self) -> QParams:
        """The learned centroids in ascending order, at scale 1."""
        require_calibrated(self.start)
        one = torch.ones((), device=self.start.device)
        codebook = self.centroids.detach().sort().values
        return QParams(one, torch.zeros_like(one, dtype=torch.int32), self.scheme, codebook)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"
