"""ZeroQ and GDFQ: what they minimize against numpy, that it falls, and networks that they cannot learn from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isobit
from isobit.algorithms.batch_statistics import frozen_copy, watched
from isobit.algorithms.gdfq import Gdfq, Generator
from isobit.algorithms.gdfq import distance as gdfq_distance
from isobit.algorithms.zeroq import ZeroQ
from isobit.algorithms.zeroq import distance as zeroq_distance
from isobit.core.errors import UnsupportedError


def network() -> nn.Module:
    """Two batch norms with the statistics of smooth images, three classes that these have."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    isobit.recalibrate_batch_norm(net, [smooth(256)])
    return net.eval()


def smooth(count: int) -> Tensor:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(12, 12), mode="bilinear")


def test_what_is_watched_against_numpy() -> None:
    net, x = network(), smooth(7) + 0.3
    frozen = frozen_copy(net, method="test")
    with watched(frozen) as found, torch.no_grad():
        frozen(x)
        frozen(x)  # the list is that of the last forward
    assert len(found) == 2
    y = net[0](x).detach().double().numpy()
    mean, deviation = y.mean((0, 2, 3)), np.sqrt(y.var((0, 2, 3)) + net[1].eps)
    wanted = np.sqrt(net[1].running_var.double().numpy() + net[1].eps)
    np.testing.assert_allclose(found[0][0].numpy(), mean - net[1].running_mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[0][1].numpy(), deviation - wanted, atol=1e-5)
    a, b = (np.concatenate([t.numpy() for t in pair]) for pair in found)
    assert float(zeroq_distance(found)) == pytest.approx((a**2).sum() + (b**2).sum(), rel=1e-5)
    assert float(gdfq_distance(found)) == pytest.approx((a**2).sum() / 8 + (b**2).sum() / 8, rel=1e-5)
    assert not any(m._forward_pre_hooks for m in frozen.modules())


def off(net: nn.Module, x: Tensor) -> float:
    with watched(net) as found, torch.no_grad():
        net(x)
    return float(zeroq_distance(found))


def test_zeroq_gives_batch_norms_what_they_know() -> None:
    net, example = network(), (torch.zeros(1, 3, 12, 12),)
    noise = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = ZeroQ(iterations=150).synthesize(net, example, samples=32)
    assert off(net, found[0]) < 0.05 * off(net, noise)
    assert abs(float(found[0].mean())) < 0.2


def test_the_gradient_of_the_distance_is_that_of_differences() -> None:
    net = frozen_copy(network(), method="test").double()
    x = smooth(4).double().requires_grad_(True)
    with watched(net) as found:
        net(x)
        loss = zeroq_distance(found)
        (gradient,) = torch.autograd.grad(loss, x)
        step = 1e-6 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        losses = []
        for sign in (1, -1):
            net(x.detach() + sign * step)
            losses.append(float(zeroq_distance(found)))
    assert float((gradient * step).sum()) == pytest.approx((losses[0] - losses[1]) / 2, rel=1e-4)


def test_gdfq_learns_classes_and_statistics() -> None:
    net, example = network(), (torch.zeros(1, 3, 12, 12),)
    with torch.no_grad():
        net[8].weight.mul_(8)  # classes that differ
        net[8].bias.copy_(-(net(smooth(256)) - net[8].bias).mean(0))
    few, many = (
        torch.cat(Gdfq(iterations=n, batch_size=15, statistics=10.0).synthesize(net, example, samples=30))
        for n in (1, 40)
    )
    assert off(net, many) < 0.5 * off(net, few)
    with torch.no_grad():
        classes = [len(net(x).argmax(1).unique()) for x in (few, many)]
    assert classes[1] == 3


def test_the_generator_makes_any_size_from_labels() -> None:
    torch.manual_seed(0)
    for size in ((3, 32, 32), (1, 9, 14)):
        generator = Generator(10, 5, size)
        x = generator(torch.randn(4, 10), torch.tensor([0, 1, 2, 3]))
        assert x.shape == (4, *size)
        assert x.mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("method", ["zeroq", "gdfq"])
def test_without_batch_norm_there_is_nothing_to_learn_from(method: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedError, match=r"no batch norm .* use dead_leaves"):
        isobit.synthesize(net, (1, 3, 8, 8), method=method)


def test_gdfq_is_for_classifiers_of_images() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UnsupportedError, match="logits"):
        isobit.synthesize(net, (1, 3, 8, 8), method="gdfq")
    with pytest.raises(UnsupportedError, match="generates images"):
        isobit.synthesize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (1, 3), method="gdfq")
