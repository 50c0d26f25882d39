"""Attention in parts computes what PyTorch's attention computes, and where it is not split it says why."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isobit.graph.capture import capture
from isobit.graph.names import names
from isobit.graph.ops import kinds
from isobit.graph.passes import SplitAttention

TOKENS, WIDTH = 5, 8


class Attends(nn.Module):
    """Three linear layers and attention with some settings."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.settings = settings
        self.dropout = settings.get("dropout_p", 0.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = [layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        settings = self.settings | {"dropout_p": self.dropout if self.training else 0.0}
        return F.scaled_dot_product_attention(*heads, attn_mask=mask, **settings)


def split(net: nn.Module, *inputs: Tensor) -> tuple[fx.GraphModule, tuple[str, ...], tuple[str, ...]]:
    model = capture(net, inputs, check=False)
    report = SplitAttention().apply(model)
    return model, report.changed, report.left


def masks() -> dict[str, Tensor]:
    """(2, 1, tokens, tokens): of the second sample's first row no key counts."""
    seen = torch.rand(2, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[1, 0, 0] = False
    seen[:, :, 1] = True
    added = torch.randn(2, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(2))
    return {"seen": seen, "added": added, "hides": torch.where(seen, added, -torch.inf)}


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("mask", [None, "seen", "added", "hides"])
def test_the_parts_are_attention(mask: str | None, scale: float | None) -> None:
    """Compared in float64 with PyTorch's own kernel, rows without a key too."""
    torch.manual_seed(0)
    net = Attends(scale=scale).eval()
    inputs = (torch.randn(2, TOKENS, WIDTH), *(() if mask is None else (masks()[mask],)))
    model, changed, left = split(net, *inputs)
    assert (changed, left) == (("attention",), ())
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    expected = net.double()(*wide)
    torch.testing.assert_close(model.double()(*wide), expected, rtol=1e-10, atol=1e-10)
    assert bool(torch.isfinite(expected).all())
    if mask in ("seen", "hides"):
        assert not expected[1, :, 0].any()


@pytest.mark.parametrize("mask", ["seen", "hides"])
def test_gradients_are_those_of_attention(mask: str) -> None:
    """Finite, too, where no key counts."""
    torch.manual_seed(0)
    net = Attends().double().eval()
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    shown = masks()[mask].double() if mask == "hides" else masks()[mask]
    model, _, _ = split(net, x.detach(), shown)
    grads = [torch.autograd.grad((f(x, shown) ** 2).sum(), x)[0] for f in (net, model)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-9)


def test_what_the_parts_are_called() -> None:
    model, _, _ = split(nn.Sequential(Attends(dropout_p=0.5)).train(), torch.randn(2, TOKENS, WIDTH))
    named, kind = names(model.graph), kinds(model)
    behind = [(named[n], kind[n]) for n in model.graph.nodes if kind[n] in ("matmul", "softmax", "dropout")]
    assert behind == [
        ("0.matmul", "matmul"),
        ("0.attention_weights", "softmax"),
        ("0.attention_dropout", "dropout"),
        ("0.matmul:2", "matmul"),
    ]
    assert not any(type(m).__name__ == "Attention" for m in model.modules())


def test_dropout_drops_in_training_alone() -> None:
    """Weights are dropped and the others doubled: on average the output is that without dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(Attends(dropout_p=0.5))
    x = torch.randn(2, TOKENS, WIDTH)
    model, _, _ = split(net.train(), x)
    calm = model.eval()(x)
    torch.testing.assert_close(calm, net.eval()(x))
    model.train()
    with torch.no_grad():
        mean = torch.stack([model(x) for _ in range(4000)]).mean(0)
    assert not torch.equal(model(x), calm)
    torch.testing.assert_close(mean, calm, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"is_causal": True}, "it has a causal mask of its own"), ({"enable_gqa": True}, "several queries share a key")],
)
def test_what_stays_whole_is_named(settings: dict[str, bool], reason: str) -> None:
    net = Attends(**settings).eval()
    x = torch.randn(2, TOKENS, WIDTH)
    model, changed, left = split(net, x)
    assert (changed, left) == ((), (f"attention: {reason}",))
    torch.testing.assert_close(model(x), net(x))
