"""Small networks that stress the capture, each with an example input of one sample or two."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.alias = self.block[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.block(self.block(x)))


class OwnConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3) * 0.2), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=1)


class SamePadConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        return self.act(x)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same, self.norm, self.channels = OwnConv(), SamePadConv(4, 4, 3), NormAct(4), ChannelNorm(4)
        self.w = nn.Parameter(torch.randn(5, 4))
        self.gamma, self.beta = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(self.norm(self.same(self.conv(x))))
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training, 0.1, 1e-3)
        x = F.dropout(F.relu6(x), 0.25, self.training)
        x = F.dropout2d(x, 0.25, training=self.training)
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self.w)


class DropAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.dropout = nn.Linear(8, 24), 0.3

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return y.transpose(1, 2).flatten(2)


class Heads(nn.Module):
    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.act(y)
        y = y + z.sigmoid()
        y.mul_(self.scale).add_(1.0)
        y[:, :2] = z[:, :2] * 2
        y[:, 3, 0].fill_(0.5)
        F.hardswish(y, inplace=True)
        return torch.relu_(y - 0.1)


class ViewInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) * 1.0
        y.view(-1, 2, 2).add_(1.0)
        return y * 2


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 1), nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [2, 1], dim=1)
        y = torch.cat([self.left(a), self.right(b)], dim=1)
        lo, hi = y.chunk(2, dim=1)
        return torch.stack([lo, hi], 1).mean((3, 4))


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1)) >= self.p
        return x * keep / (1 - self.p)


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop_path, self.dropout = nn.Linear(4, 4), DropPath(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.dropout(self.fc(x)))


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.constant = nn.Linear(4, 4), torch.arange(4.0)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)), persistent=False)
        self.register_buffer("table", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ self.mask + self.table * self.constant + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> dict[str, object]:
        y = self.fc(x) if scale is None else self.fc(x) * scale
        return {"y": y, "pair": (y + 1, [y.sum(-1)]), "none": None}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.fc = nn.LSTM(4, 5, batch_first=True), nn.GRU(5, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x)
        z, _ = self.gru(y)
        return self.fc(z) + h.sum()


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.embedding(ids), self.embedding.weight)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")
        self.up, self.down = nn.Upsample(scale_factor=2.0), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.pool, self.flatten, self.prelu = nn.MaxPool2d(2), nn.Flatten(), nn.PReLU()
        self.pad, self.norm = nn.ZeroPad2d(1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.norm(self.pad(self.down(self.up(self.conv(x))))))
        return self.flatten(self.pool(x)) + F.interpolate(x, scale_factor=0.5).flatten(1)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.old = nn.utils.spectral_norm(nn.Linear(4, 4))
        self.new = parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.new(self.old(x))


class Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return x.reshape(x.size(0) * 5, 4).view(x.size(0), -1)[:, 0:8]


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    ids: bool = False


CASES = {
    "residual": Case(Residual, ((1, 3, 6, 6),)),
    "shared": Case(Shared, ((1, 3, 6, 6),)),
    "functional": Case(Functional, ((2, 3, 8, 8),)),
    "attention": Case(lambda: nn.Sequential(nn.Linear(8, 8), DropAttention()), ((1, 5, 8),)),
    "multihead": Case(lambda: Heads(need_weights=False), ((1, 5, 8),)),
    "multihead_weights": Case(lambda: Heads(need_weights=True), ((1, 5, 8),)),
    "cross_attention": Case(Cross, ((1, 5, 8), (1, 7, 8))),
    "encoder": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ((1, 5, 8),)),
    "in_place": Case(InPlace, ((1, 3, 6, 6),)),
    "view_in_place": Case(ViewInPlace, ((1, 4),)),
    "branches": Case(Branches, ((1, 3, 4, 4),)),
    "drop_path": Case(Stochastic, ((1, 4),)),
    "buffers": Case(Buffers, ((1, 4),)),
    "outputs": Case(Outputs, ((1, 4),)),
    "outputs_two_inputs": Case(Outputs, ((1, 4), (1, 4))),
    "recurrent": Case(Recurrent, ((1, 6, 4),)),
    "tied_embedding": Case(Embedded, ((1, 6),), ids=True),
    "pooled": Case(Pooled, ((1, 3, 4, 4),)),
    "normed": Case(Normed, ((1, 4),)),
    "shapes": Case(Shapes, ((1, 4, 4),)),
}


def inputs(case: Case, batch: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(s[0] if batch is None else batch, *s[1:]) for s in case.shapes]
    if case.ids:
        return tuple(torch.randint(0, 10, s, generator=generator) for s in shapes)
    return tuple(torch.randn(s, generator=generator) for s in shapes)
