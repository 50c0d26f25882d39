"""Cross-entropy: the range for a classifier's logits, judged by what softmax makes of them.

Clipping the largest logit damages the answer more than its squared error says (white paper of Nagel et al. 2021,
arXiv:2106.08295, section 3.1).
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.granularity import PerTensor, expand, scale_shape
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.range_error import has_free_ends
from isobit.observers.seen_range import SeenRange


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropy:
    """Settings of the cross-entropy observer, for logits alone.

    `axis` is that of the classes: -1 for (n, classes), 1 for the (n, classes, height, width) of segmentation.
    `samples` vectors of logits are kept and `steps` shrink factors tried.

    >>> observer = CrossEntropy().build(Scheme(bits=8))
    >>> observer.see(torch.tensor([[8.0, 0.1, -9.0], [0.2, 7.0, -90.0]]))
    >>> bool(observer.qparams().scale * 127 < 90)
    True
    """

    axis: int = -1
    samples: int = 256
    steps: int = 100

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SettingError(f"samples has to be at least 1, got {self.samples!r}")
        if self.steps < 2:
            raise SettingError(f"steps has to be at least 2, got {self.steps!r}")

    def build(self, scheme: Scheme) -> "CrossEntropyObserver":
        """An observer that has seen nothing."""
        return CrossEntropyObserver(scheme, self)


def cross_entropy(probabilities: Tensor, quantized: Tensor) -> Tensor:
    """H(p, softmax(ẑ)) = -Σ p log softmax(ẑ), the mean over all vectors, a float64 scalar.

    Shapes: probabilities p = softmax(z) and quantized ẑ (samples, classes).
    """
    logs = quantized.log_softmax(-1).clamp_(min=-1e30)  # 0 · -inf would be NaN
    return -(probabilities * logs).sum(-1, dtype=torch.float64).mean().nan_to_num(nan=torch.inf)


def content_keys(rows: Tensor, blocks: Tensor) -> Tensor:
    """A 64-bit key for each row, (rows,), made of the bits of its values and of the scales they belong to.

    Keeping the rows with the smallest keys keeps a random sample that no order or split of the batches changes.
    """
    place = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    bits = rows.contiguous().view(torch.int32).to(torch.int64)
    return _mix(_mix(_mix(bits) + _mix(blocks + 1) * 31 + place * 0x1E3779B97F4A7C15).sum(1))


def _mix(x: Tensor) -> Tensor:
    """A mixer of 64 bits in the manner of SplitMix64; the masks make the shifts logical, as an int64 has a sign."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * 0x3F58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * 0x14D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@final
class CrossEntropyObserver:
    """argmin over the factors f of H(softmax(z), softmax(ẑ)), with the range f · [low, high] of each scale.

    f = 1, 1 - 1/steps, …, 1/steps, the largest of equals. Scales depend on each other through the softmax, so that
    all shrink by the same f. A range with a zero point, or a codebook, then shrinks at one end at a time from the best.
    """

    def __init__(self, scheme: Scheme, settings: CrossEntropy) -> None:
        self._seen = SeenRange(scheme)
        self._settings = settings
        self._keys = torch.empty(0, dtype=torch.int64)
        self._logits = torch.empty(0, 0)
        self._blocks = torch.empty(0, 0, dtype=torch.int64)

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        if not -x.dim() <= self._settings.axis < x.dim():
            raise SettingError(
                f"logits of {x.dim()} dimensions have no axis {self._settings.axis}: set axis to that of the classes"
            )
        if self._seen.see(x) is None:
            return
        granularity = self._seen.scheme.granularity
        shape = scale_shape(tuple(x.shape), granularity)
        scales = torch.arange(len(self._seen.low), device=x.device).reshape(shape)
        blocks = expand(scales, x.dim(), granularity).expand(x.shape)
        logits, blocks = self._vectors(x.detach().float()), self._vectors(blocks)
        if len(self._logits) and logits.shape[1] != self._logits.shape[1]:
            raise SettingError(f"logits of {logits.shape[1]} classes after logits of {self._logits.shape[1]}")
        keys = content_keys(logits, blocks)
        if len(self._logits):
            keys = torch.cat([self._keys, keys])
            logits = torch.cat([self._logits, logits])
            blocks = torch.cat([self._blocks, blocks])
        order = keys.argsort(stable=True)[: self._settings.samples]
        self._keys, self._logits, self._blocks = keys[order], logits[order], blocks[order]

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        low, high = self._seen.low.double().clamp(max=0), self._seen.high.double().clamp(min=0)
        steps = self._settings.steps
        factors = torch.arange(steps, 0, -1, device=low.device, dtype=torch.float64) / steps
        best = self._best(low, high, factors, factors)
        if has_free_ends(self._seen.scheme):
            best = self._best(low, high, best[0], torch.cat([best[1], factors]))
            best = self._best(low, high, torch.cat([best[0], factors]), best[1])
        return self._seen.qparams(low * best[0], high * best[1])

    def _best(self, low: Tensor, high: Tensor, low_factors: Tensor, high_factors: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of factors of least cross-entropy, each of shape (1,), the first of equals."""
        many = max(len(low_factors), len(high_factors))
        low_factors, high_factors = low_factors.expand(many), high_factors.expand(many)
        probabilities = self._logits.softmax(-1)
        losses = [
            cross_entropy(probabilities, self._quantize(self._seen.qparams(low * f, high * g)))
            for f, g in zip(low_factors, high_factors, strict=True)
        ]
        best = torch.stack(losses).argmin()[None]
        return low_factors[best], high_factors[best]

    def _quantize(self, parameters: QParams) -> Tensor:
        """The kept logits, each with the scale that it belongs to."""
        scale, zero_point = parameters.scale.flatten(), parameters.zero_point.flatten()
        if len(scale) > 1:
            scale, zero_point = scale[self._blocks], zero_point[self._blocks]
        scheme = replace(parameters.scheme, granularity=PerTensor())  # a scale that broadcasts as it is
        return QParams(scale, zero_point, scheme, parameters.codebook).fake_quantize(self._logits)

    def _vectors(self, x: Tensor) -> Tensor:
        """(samples, classes)."""
        return x.movedim(self._settings.axis, -1).reshape(-1, x.shape[self._settings.axis])
