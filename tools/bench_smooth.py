"""SmoothQuant on transformers: right of 450 digits and noise of the output, with and without outlier channels.

    python tools/bench_smooth.py [--targets onnxruntime-x86 tensorrt] [--alphas 0.3 0.5 0.7]

No transformer's published weights are at hand, so a small ViT is trained on the digits here, in a minute. Its inputs of
linear layers are even. Large language models have channels that are a hundred times the others: `planted` gives it
such, by multiplying 2 of 32 channels of each norm by 100 and dividing the weights that read them: the same function.
BERT is random and `bert_tiny` in size; its norms are read by residual sums, so that there is nothing to smooth.
"""

import argparse
import copy
import math
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isobit
from bench_networks import random_network
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.digits import read_digits
from isobit.benchmark.models.vit import Vit

COLUMNS = ("network", "target", "alpha", "noise of the output, dB", "right in simulation", "smoothed", "onnxruntime")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["onnxruntime-x86"])
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    data = [x for x, _ in read_digits("train").batched(64)][:4]
    test = list(read_digits("test").batched(150))
    trained = train()
    generator = torch.Generator().manual_seed(0)
    tokens = [(torch.randint(0, 30522, (16, 32), generator=generator),) for _ in range(4)]
    networks = {
        "ViT, digits": (trained, data, test),
        "ViT, planted": (planted(trained), data, test),
        "BERT, random": (random_network("bert_tiny"), tokens, tokens),
    }
    rows = []
    for name, (net, calibration, evaluation) in networks.items():
        for target in options.targets:
            for alpha in (None, *options.alphas):
                say(f"{name}, {target}, {alpha}")
                model = isobit.quantize(net, calibration, target=target, smooth=alpha)
                report = model.meta["passes"].get("smooth")
                right = f"{accuracy(model, evaluation)[0]} of 450" if evaluation is test else ""
                with tempfile.TemporaryDirectory() as folder:
                    path = isobit.export(model, Path(folder) / "net.onnx").path
                    verdict = isobit.verify(path, model, evaluation, engine="onnxruntime").verdict
                changed = "" if report is None else f"{len(report.changed)} of {len(report.changed + report.left)}"
                rows.append(
                    (name, target, f"{alpha or ''}", f"{noise(model, net, evaluation):.1f}", right, changed, verdict)
                )
    table = Table(title="SmoothQuant at W8A8", columns=COLUMNS, rows=tuple(rows))
    note = f"Float ViT: {accuracy(trained, test)[0]} of 450."
    print(note)
    return finish([table], json_file=options.json, records=rows)


def train(epochs: int = 40) -> Vit:
    """A ViT of two blocks on 1,347 digits."""
    [(x, y)] = read_digits("train").batched(10_000)
    torch.manual_seed(0)
    net = Vit(image=8, patch=2, channels=1, width=32, depth=2, heads=4, expansion=2, classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * (1 + math.cos(math.pi * epoch / epochs))
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def planted(net: Vit) -> Vit:
    """The same function with outlier channels behind each norm of a block."""
    net = copy.deepcopy(net)
    for block in net.blocks:
        for norm, layer in ((block.norm1, block.attention.qkv), (block.norm2, block.fc1)):
            channels = torch.tensor([5, 19])
            norm.weight[channels] *= 100
            norm.bias[channels] *= 100
            layer.weight[:, channels] /= 100
    return net


@torch.no_grad()
def noise(model: nn.Module, net: nn.Module, data: list[tuple[Tensor, ...]]) -> float:
    """Power of the output's error over the output's, in dB."""
    pairs = [(model(x[0]), net(x[0])) for x in data]
    error, power = (
        sum(float(v.square().sum()) for v in vs) for vs in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return 10 * math.log10(error / power)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
