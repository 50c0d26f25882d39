"""Each observer once more, in plain numpy on all batches at once: what the contract suite compares with."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, laplace, norm

from isobit.core.grid import AdditivePowersOfTwo, Codebook, MidRise, PowersOfTwo, Uniform
from isobit.core.qparams import QParams
from isobit.core.scheme import PowerOfTwo, Scheme

Array = NDArray[np.float64]

BINS = 512
"""Bins on each side of 0 in all these comparisons, to keep the slow ones short."""


def parameters_of(low: float, high: float, scheme: Scheme) -> tuple[float, int]:
    """Scale and zero point of a range widened to 0; the scheme's sign is settled. A codebook reaches to 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    lowest, highest = (-1, 1) if isinstance(scheme.grid, Codebook) else (scheme.quant_min, scheme.quant_max)
    if scheme.symmetric:
        scale = (max(high, -low) if scheme.signed else high) / max(highest, 1)
    else:
        scale = (high - low) / (highest - lowest)
    scale = 1.0 if scale == 0 else max(scale, 2.0**-100)
    if isinstance(scheme.scale, PowerOfTwo):
        scale = 2.0 ** round(math.log2(scale))
    scale = float(np.float32(scale))
    return scale, 0 if scheme.symmetric else int(np.clip(np.rint(lowest - low / scale), lowest, highest))


def quantize(x: Array, scale: float, zero_point: int, scheme: Scheme) -> Array:
    if not isinstance(scheme.grid, Uniform):
        levels = np.array(scheme.levels, dtype=np.float64)
        return nearest(x, levels * scale, ties_up=isinstance(scheme.grid, MidRise))
    return (np.clip(np.rint(x / scale) + zero_point, scheme.quant_min, scheme.quant_max) - zero_point) * scale


def nearest(x: Array, values: Array, *, ties_up: bool = False) -> Array:
    return values[np.searchsorted((values[1:] + values[:-1]) / 2, x, side="right" if ties_up else "left")]


def even_values(low: float, high: float, scheme: Scheme) -> Array:
    """What a codebook starts with."""
    return np.linspace(min(low, 0.0) if scheme.signed else 0.0, max(high, 0.0), 2**scheme.bits)


def quantize_in(x: Array, low: float, high: float, scheme: Scheme) -> Array:
    if isinstance(scheme.grid, Codebook):
        return nearest(x, even_values(low, high, scheme))
    return quantize(x, *parameters_of(low, high, scheme), scheme)


def quantize_as(q: QParams, x: Array) -> Array:
    if q.codebook is not None:
        return nearest(x, q.codebook.double().numpy() * q.scale.item())
    return quantize(x, q.scale.item(), q.zero_point.item(), q.scheme)


def squared_error(x: Array, low: float, high: float, scheme: Scheme) -> float:
    return float(np.square(x - quantize_in(x, low, high, scheme)).mean())


def width_of(x: Array) -> float:
    return math.ldexp(1.0, math.frexp(float(np.abs(x).max()))[1] - round(math.log2(BINS)))


def assert_range(q: QParams, low: float, high: float) -> None:
    scale, zero_point = parameters_of(low, high, q.scheme)
    np.testing.assert_allclose(q.scale.item(), scale, rtol=1e-6)
    assert q.zero_point.item() == zero_point
    if q.codebook is not None:
        values = even_values(low, high, q.scheme)
        np.testing.assert_allclose(q.codebook.numpy() * q.scale.item(), values, atol=1e-6 * np.abs(values).max())


def check_min_max(q: QParams, batches: list[Array]) -> None:
    x = np.concatenate(batches).ravel()
    assert_range(q, x.min(), x.max())


def check_moving_average(q: QParams, batches: list[Array]) -> None:
    """The closed form: m = 0.9^(n-1) m_1 + Σ 0.1 · 0.9^(n-i) m_i."""
    count = len(batches)
    weights = [0.9 ** (count - 1)] + [0.1 * 0.9 ** (count - 1 - i) for i in range(1, count)]
    low = sum(w * b.min() for w, b in zip(weights, batches, strict=True))
    high = sum(w * b.max() for w, b in zip(weights, batches, strict=True))
    assert_range(q, low, high)


def check_percentile(q: QParams, batches: list[Array]) -> None:
    x = np.concatenate(batches).ravel()
    width = width_of(x)
    if q.scheme.symmetric:
        high = np.quantile(np.abs(x) if q.scheme.signed else np.maximum(x, 0), 0.9999)
        low = -high if q.scheme.signed else 0.0
        grow = width * q.scheme.signed
        narrow = parameters_of(low + grow, high - width, q.scheme)[0]
        wide = parameters_of(low - grow, high + width, q.scheme)[0]
    else:
        low, high = np.quantile(x, [0.00005, 0.99995])
        narrow, wide = (parameters_of(low + d, high - d, q.scheme)[0] for d in (width, -width))
        assert abs(q.zero_point.item() - parameters_of(low, high, q.scheme)[1]) <= 1
    assert narrow * (1 - 1e-6) <= q.scale.item() <= wide * (1 + 1e-6)


def check_mse(q: QParams, batches: list[Array]) -> None:
    """As good as the best of all pairs of 60 lower and 60 upper ends, on the values themselves."""
    x = np.concatenate(batches).ravel()
    factors = np.linspace(1, 1 / 60, 60)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    if q.scheme.symmetric and q.codebook is None:
        ranges = [(low * f, high * f) for f in factors]
    else:
        ranges = [(low * f, high * g) for f in factors[::3] for g in factors[::2]]
    assert_error(q, x, min(squared_error(x, *r, q.scheme) for r in ranges))


def check_histogram(q: QParams, batches: list[Array]) -> None:
    """The path one bin at a time, with the cost of each end counted anew at each step."""
    x = np.concatenate(batches).ravel()
    x_of_path = x
    tied = q.scheme.symmetric and q.codebook is None
    if tied:
        x_of_path = np.abs(x) if q.scheme.signed else np.maximum(x, 0)
    width = width_of(x)
    bins = np.trunc(x_of_path / width)
    numbers, counts = np.unique(bins, return_counts=True)
    middles = numbers + 0.5 * np.sign(numbers) + 0.5 * (numbers == 0)

    def cost(low_end: int, high_end: int) -> float:
        above, below = middles > high_end, middles < low_end
        up = (counts[above] * (middles[above] - high_end) ** 2).sum()
        return float(up + (counts[below] * (low_end - middles[below]) ** 2).sum())

    low_end, high_end = min(int(bins.min()) - 1, 0), int(bins.max()) + 1
    best = math.inf
    while high_end > 0 or low_end < 0:
        low, high = max(low_end * width, min(x.min(), 0)), min(high_end * width, x_of_path.max())
        if tied:
            low = -high if q.scheme.signed else 0.0
        if (high_end - low_end) % 4 == 0:
            best = min(best, squared_error(x, low, high, q.scheme))
        lose_high = cost(low_end, high_end - 1) if high_end > 0 else math.inf
        lose_low = cost(low_end + 1, high_end) if low_end < 0 else math.inf
        low_end, high_end = (low_end, high_end - 1) if lose_high <= lose_low else (low_end + 1, high_end)
    assert_error(q, x, best)


def assert_error(q: QParams, x: Array, best: float) -> None:
    mine = np.square(x - quantize_as(q, x)).mean()
    assert mine <= 1.02 * best


def check_kl_divergence(q: QParams, batches: list[Array]) -> None:
    """TensorRT's loop over the thresholds, with numpy's digitize and scipy's entropy, as its own tool writes it."""
    x, scheme = np.concatenate(batches).ravel(), q.scheme
    one_sided = not scheme.signed
    if not scheme.symmetric:
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        one_sided = max(-low, high) / (high - low) > 2**-0.5
    magnitudes = np.maximum(x, 0) if scheme.symmetric and one_sided else np.abs(x)
    threshold = kl_threshold(magnitudes, width_of(x), scheme, one_sided)
    if scheme.signed and isinstance(scheme.grid, MidRise | Codebook):
        threshold *= (2**scheme.bits - 1) / 2**scheme.bits  # the highest level is in the middle of its group
    if scheme.symmetric:
        assert_range(q, -threshold if scheme.signed else 0.0, threshold)
    else:
        assert_range(q, max(low, -threshold), min(high, threshold))


def kl_threshold(magnitudes: Array, width: float, scheme: Scheme, one_sided: bool) -> float:
    bins = np.bincount(np.trunc(magnitudes / width).astype(int)).astype(float)
    bins[0] = bins[1]
    if isinstance(scheme.grid, PowersOfTwo | AdditivePowersOfTwo):
        levels = np.array([v for v in scheme.levels if v >= 0], dtype=float)
        shares = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2 / levels[-1], [1.0]])
    else:
        shares = np.linspace(0, 1, 2 ** (scheme.bits - (not one_sided)) + 1)
    divergences, thresholds = [], list(range(max(len(shares) - 1, 2), len(bins) + 1))
    for i in thresholds:
        p, sliced = bins[:i].copy(), bins[:i]
        p[-1] += bins[i:].sum()
        group = np.digitize(np.arange(i), shares * i) - 1
        used = sliced > 0
        mass = np.bincount(group, weights=sliced, minlength=len(shares))
        many = np.bincount(group, weights=used, minlength=len(shares))
        spread = np.where(used, mass[group] / np.maximum(many[group], 1), 0)
        allowed = sliced.sum() >= bins[i:].sum() and spread.sum() > 0
        divergences.append(entropy(p, spread) if allowed else math.inf)
    least = min(divergences, default=math.inf)
    if math.isinf(least):
        return float(magnitudes.max())
    last = max(i for i, d in zip(thresholds, divergences, strict=True) if d <= least + 1e-12)
    return float(min(last * width, magnitudes.max()))


def check_cross_entropy(q: QParams, batches: list[Array]) -> None:
    """As good as the best joint factor and the best of a square of factors, on the logits themselves."""
    z = np.concatenate(batches).reshape(-1, batches[0].shape[-1])
    p = softmax(z, axis=-1)

    def loss(quantized: Array) -> float:
        return float(-(p * log_softmax(quantized, axis=-1)).sum(-1).mean())

    factors = np.linspace(1, 0.05, 20)
    pairs = [(f, f) for f in factors]
    if q.codebook is not None or not q.scheme.symmetric:
        pairs += [(f, g) for f in factors[::2] for g in factors[::2]]
    low, high = min(z.min(), 0), max(z.max(), 0)
    losses = [loss(quantize_in(z, low * f, high * g, q.scheme)) for f, g in pairs]
    floor = float(-(p * np.log(p)).sum(-1).mean())
    assert loss(quantize_as(q, z)) - floor <= 1.05 * (min(losses) - floor) + 1e-6


def check_aciq(q: QParams, batches: list[Array]) -> None:
    """The minimum of the closed form, found by scipy, for the likelier distribution of the values themselves."""
    x, scheme = np.concatenate(batches).ravel(), q.scheme
    low, high = x.min(), x.max()
    free = not scheme.symmetric or q.codebook is not None
    x = np.maximum(x, 0) if scheme.symmetric and not scheme.signed else x
    one_sided = x.min() >= 0
    centre = x.mean() if free and not one_sided else 0.0
    away = np.abs(x - centre)
    away = away[away > 0] if one_sided else away
    b, sigma = away.mean(), np.sqrt(np.square(away).mean())
    gauss = norm.logpdf(away, scale=sigma).sum() > laplace.logpdf(away, scale=b).sum()
    levels = even_values(-1, 1, scheme) if q.codebook is not None else np.array(scheme.levels)
    steps = len(levels) - 1
    if scheme.symmetric and scheme.signed and isinstance(scheme.grid, Uniform):
        steps = 2 * max(scheme.quant_max, 1)
    elif one_sided and (free or not scheme.signed):
        steps *= 2

    def error(alpha: float) -> float:
        shape = norm(scale=sigma) if gauss else laplace(scale=b)
        tail = np.linspace(alpha, alpha + 40 * b, 20_001)
        cost = 2 * np.trapezoid(np.square(tail - alpha) * shape.pdf(tail), tail)
        return float(cost + (2 * alpha / max(steps, 1)) ** 2 / 12)

    alpha = minimize_scalar(error, bounds=(0, 30 * b), method="bounded", options={"xatol": 1e-6 * b}).x
    low, high = max(low, centre - alpha), min(high, centre + alpha)
    low = min(low, 0) if one_sided else low
    scale, zero_point = parameters_of(low, high, scheme)
    if not isinstance(scheme.scale, PowerOfTwo):
        np.testing.assert_allclose(q.scale.item(), scale, rtol=0.02)
    else:
        assert abs(math.log2(q.scale.item() / scale)) <= 1
    assert abs(q.zero_point.item() - zero_point) <= 1


def check_auto(q: QParams, batches: list[Array]) -> None:
    """At most the slack above the least error of 60 factors of min-max, which is taken where it is as good as any."""
    x = np.concatenate(batches).ravel()
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    errors = [squared_error(x, low * f, high * f, q.scheme) for f in np.linspace(1, 1 / 60, 60)]
    mine = np.square(x - quantize_as(q, x)).mean()
    assert mine <= 1.1 * 1.02 * min(errors)
    if errors[0] <= min(errors):
        assert_range(q, low, high)


def check_mean_std(q: QParams, batches: list[Array]) -> None:
    x = np.concatenate(batches).ravel()
    assert_range(q, max(x.min(), x.mean() - 3 * x.std()), min(x.max(), x.mean() + 3 * x.std()))


def check_mean_abs(q: QParams, batches: list[Array]) -> None:
    x, scheme = np.concatenate(batches).ravel(), q.scheme
    levels = even_values(-1, 1, scheme) if isinstance(scheme.grid, Codebook) else scheme.levels
    positive = max(1, sum(level > 0 for level in levels))
    reach = 2 * np.abs(x).mean() * math.sqrt(positive)
    if scheme.symmetric:
        assert_range(q, -reach if scheme.signed else 0.0, reach)
        return
    length = reach / positive * (scheme.quant_max - scheme.quant_min)
    low = -length * max(-x.min(), 0.0) / (max(-x.min(), 0.0) + max(x.max(), 0.0))
    assert_range(q, low, low + length)


def check_centroids(q: QParams, batches: list[Array]) -> None:
    """For a codebook a fixed point of Lloyd's iterations: each centroid is the mean of what is nearest to it."""
    if q.codebook is None:
        return check_min_max(q, batches)
    x, centroids = np.concatenate(batches).ravel(), q.codebook.double().numpy()
    x = x if q.scheme.signed else np.maximum(x, 0)
    cluster = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)
    means = np.bincount(cluster, weights=x, minlength=len(centroids)) / np.bincount(cluster, minlength=len(centroids))
    np.testing.assert_allclose(centroids, means, atol=1e-3)
    return None


CHECKS: dict[str, Callable[[QParams, list[Array]], None]] = {
    "min_max": check_min_max,
    "moving_average": check_moving_average,
    "percentile": check_percentile,
    "histogram": check_histogram,
    "mse": check_mse,
    "kl_divergence": check_kl_divergence,
    "cross_entropy": check_cross_entropy,
    "aciq": check_aciq,
    "mean_std": check_mean_std,
    "mean_abs": check_mean_abs,
    "centroids": check_centroids,
    "auto": check_auto,
}
"""By name in `OBSERVERS`: what the parameters have to be, given the batches in float64."""
