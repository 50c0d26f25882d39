"""GDFQ: a generator learns what a network was trained on (Xu et al., ECCV 2020, arXiv:2003.03603)."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.algorithms.batch_statistics import frozen_copy, watched
from isobit.algorithms.input_range import InputRange, check_range, from_normal, only_input
from isobit.core.errors import UnsupportedError
from isobit.core.progress import Progress, silent


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Gdfq:
    """Settings of the generator's training: CE(T(G(z | y)), y) + `statistics` · (distance to batch norm), by Adam.

    The paper trains it along with the quantized network, 80,000 steps; this is its first phase alone, in which the
    generator learns by itself. `statistics` and the rate are the paper's.
    """

    iterations: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3
    statistics: float = 0.1
    latent: int = 100
    input_range: InputRange = None

    def synthesize(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...],
        *,
        samples: int,
        seed: int = 0,
        progress: Progress = silent,
    ) -> list[Tensor]:
        """Batches of generated images, equally of each class.

        Raises UnsupportedError for a network without batch norm, or that is no classifier of images.
        """
        x = only_input(example)
        if x.dim() != 4:
            raise UnsupportedError(f"gdfq generates images, the network takes {tuple(x.shape)}: use zeroq")
        check_range(self.input_range, int(x.shape[1]))
        frozen = frozen_copy(net, method="gdfq")
        with torch.no_grad():
            logits = frozen(torch.cat([x, x]))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise UnsupportedError("gdfq needs the logits (n, classes) of a classifier: use zeroq for this network")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(self.latent, int(logits.shape[1]), (int(x.shape[1]), *map(int, x.shape[2:])))
            self._train(generator, frozen, progress)
            return self._generated(generator, samples)

    def _train(self, generator: "Generator", net: nn.Module, progress: Progress) -> None:
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))
        with watched(net) as norms:
            for step in range(self.iterations):
                labels = torch.randint(0, generator.classes, (self.batch_size,))
                logits = net(
                    from_normal(generator(torch.randn(self.batch_size, self.latent), labels), self.input_range)
                )
                loss = F.cross_entropy(logits, labels) + self.statistics * distance(norms)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                progress("training a generator", step + 1, self.iterations)

    @torch.no_grad()
    def _generated(self, generator: "Generator", samples: int) -> list[Tensor]:
        """In training mode, as the generator learned: its batch norms take the batch's own statistics."""
        labels = torch.arange(samples) % generator.classes
        labels = labels[torch.randperm(samples)]
        parts = torch.split(labels, self.batch_size)
        if len(parts) > 1 and len(parts[-1]) < self.batch_size:  # a short batch would have statistics of its own
            parts = labels.tensor_split(len(parts))
        return [from_normal(generator(torch.randn(len(y), self.latent), y), self.input_range) for y in parts]


def distance(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ over layers of ‖μ̃ - μ‖² + ‖σ̃ - σ‖² (equation 4), the mean over a layer's channels as in the public code."""
    return torch.stack([mean.square().mean() + std.square().mean() for mean, std in found]).sum()


@final
class Generator(nn.Module):
    """From z (n, latent) and labels (n,) to images (n, channels, height, width) of mean 0 and deviation 1.

    z times the label's embedding, a linear layer to 128 maps of a quarter of the side, then up and 3 x 3 convolutions.
    """

    def __init__(self, latent: int, classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = size
        self.classes = classes
        self.steps = [(-(-height // 2), -(-width // 2)), (height, width)]
        self.start = (-(-height // 4), -(-width // 4))
        self.label = nn.Embedding(classes, latent)
        self.linear = nn.Linear(latent, 128 * self.start[0] * self.start[1])
        self.norms = nn.ModuleList([nn.BatchNorm2d(128), nn.BatchNorm2d(128), nn.BatchNorm2d(64)])
        self.convs = nn.ModuleList([nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 64, 3, padding=1)])
        self.image = nn.Conv2d(64, channels, 3, padding=1)
        self.standard = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        x: Tensor = self.linear(z * self.label(labels)).unflatten(1, (128, *self.start))
        x = self.norms[0](x)
        for size, conv, norm in zip(self.steps, self.convs, self.norms[1:], strict=True):
            x = F.leaky_relu(norm(conv(F.interpolate(x, size=size))), 0.2)
        y: Tensor = self.standard(torch.tanh(self.image(x)))
        return y
