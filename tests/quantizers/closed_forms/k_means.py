"""Weight sharing as its paper writes it: the nearest centroid, and equation 3. The weights get no gradient."""

import torch
from torch import Tensor

from isobit.core.scheme import Scheme
from isobit.quantizers.k_means import KMeans, KMeansQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    f"s{bits} weight": (KMeans(), Scheme(bits=bits), "weight") for bits in (1, 2, 4, 8)
}


def expected(quantizer: KMeansQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    centroids = quantizer.centroids.detach()
    member = (x.flatten()[:, None] - quantizer.start).abs().argmin(1)
    to_centroids = torch.stack([upstream.flatten()[member == k].sum() for k in range(len(centroids))])
    output = torch.stack([centroids[k] for k in member]).reshape(x.shape)
    return {"output": output, "x": torch.zeros_like(x), "centroids": to_centroids}
