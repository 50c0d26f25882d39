"""Capture many networks and hold each against its original; writes docs/capture.md.

python tools/capture_table.py [--out docs/capture.md] [--only NAME ...]

Random weights, small batches. Compared are the outputs in eval mode at another batch size than was traced, the
outputs, gradients and BN statistics of one training step from the same seed, and the keys of state_dict.
torchvision, timm and transformers are optional: their rows are skipped where they are not installed.
"""

import argparse
import copy
import gc
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from isobit.benchmark.models import MODELS
from isobit.core.errors import IsobitError
from isobit.graph.capture import capture

COMMAND = "python tools/capture_table.py"
BATCH = 2


@dataclass(frozen=True)
class Network:
    """A row: how to build the network, and the shape of one sample (token ids where `words` is not 0)."""

    name: str
    source: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    words: int = 0

    def inputs(self, batch: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.words:
            return torch.randint(1, self.words, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


@dataclass
class Row:
    name: str
    source: str
    nodes: str = ""
    seconds: str = ""
    outputs: str = ""
    training: str = ""
    gradients: str = ""
    statistics: str = ""
    keys: str = ""
    note: str = ""


OWN_SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "bert_base": ((16,), 1000),
    "bert_tiny": ((16,), 1000),
    "cifar10_resnet20": ((3, 32, 32), 0),
    "cifar10_resnet32": ((3, 32, 32), 0),
    "cifar10_resnet56": ((3, 32, 32), 0),
    "digits_resnet": ((1, 8, 8), 0),
    "tiny_resnet8": ((3, 32, 32), 0),
    "vit_b16": ((3, 224, 224), 0),
    "vit_tiny": ((3, 224, 224), 0),
}
"""Where a sample of our own network is not a picture of 64 x 64: its shape, and how many words there are."""

TORCHVISION: dict[str, tuple[int, ...]] = {
    "alexnet": (3, 96, 96),
    "vgg11_bn": (3, 64, 64),
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "resnext50_32x4d": (3, 64, 64),
    "squeezenet1_1": (3, 64, 64),
    "mobilenet_v2": (3, 64, 64),
    "mobilenet_v3_large": (3, 64, 64),
    "efficientnet_b0": (3, 64, 64),
    "regnet_y_400mf": (3, 64, 64),
    "shufflenet_v2_x1_0": (3, 64, 64),
    "mnasnet1_0": (3, 64, 64),
    "densenet121": (3, 64, 64),
    "googlenet": (3, 96, 96),
    "inception_v3": (3, 299, 299),
    "convnext_tiny": (3, 64, 64),
    "vit_b_32": (3, 224, 224),
    "swin_t": (3, 224, 224),
    "maxvit_t": (3, 224, 224),
    "deeplabv3_mobilenet_v3_large": (3, 64, 64),
    "lraspp_mobilenet_v3_large": (3, 64, 64),
    "r3d_18": (3, 4, 32, 32),
}

TIMM: dict[str, tuple[int, ...]] = {
    "resnet26d": (3, 64, 64),
    "mobilenetv3_small_100": (3, 64, 64),
    "tf_efficientnet_lite0": (3, 64, 64),
    "repvgg_a0": (3, 64, 64),
    "ghostnet_100": (3, 64, 64),
    "convnext_atto": (3, 64, 64),
    "vit_tiny_patch16_224": (3, 224, 224),
    "deit_tiny_distilled_patch16_224": (3, 224, 224),
    "swin_tiny_patch4_window7_224": (3, 224, 224),
    "mobilevit_xs": (3, 256, 256),
    "levit_128s": (3, 224, 224),
    "mixer_s32_224": (3, 224, 224),
}
"""With drop_path_rate 0.1 where the network takes one."""


def own() -> Iterator[Network]:
    for name, build in MODELS.items():
        shape, words = OWN_SHAPES.get(name, ((3, 64, 64), 0))
        yield Network(name, "isobit", build, shape, words)


def torchvision_networks() -> Iterator[Network]:
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):  # installed without its compiled part: the import registers fakes for these
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_torchvision_ops"] = library
    from torchvision import models

    for name, shape in TORCHVISION.items():
        extra: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "inception_v3":
            extra["aux_logits"] = False
        if name.startswith(("deeplab", "lraspp")):
            extra = {"weights_backbone": None}
        yield Network(name, "torchvision", lambda n=name, e=extra: models.get_model(n, **e), shape)
    detector = models.detection.fasterrcnn_resnet50_fpn
    plain = {"weights": None, "weights_backbone": None}
    yield Network("fasterrcnn_resnet50_fpn, backbone", "torchvision", lambda: detector(**plain).backbone)


def timm_networks() -> Iterator[Network]:
    import timm

    for name, shape in TIMM.items():
        yield Network(name, "timm", lambda n=name: _timm(timm.create_model, n), shape)


def _timm(create: Callable[..., nn.Module], name: str) -> nn.Module:
    try:
        return create(name, drop_path_rate=0.1)
    except TypeError:
        return create(name)


def transformers_networks() -> Iterator[Network]:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    for kind in ("sdpa", "eager"):
        config = BertConfig(vocab_size=1000, attn_implementation=kind, **small)
        yield Network(f"BertModel ({kind})", "transformers", lambda c=config: BertModel(c), (16,), 1000)
    config = BertConfig(vocab_size=1000, attn_implementation="sdpa", **small)
    make = BertForSequenceClassification
    yield Network("BertForSequenceClassification", "transformers", lambda: make(config), (16,), 1000)


SOURCES: dict[str, Callable[[], Iterator[Network]]] = {
    "isobit": own,
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "transformers": transformers_networks,
}


def tensors(out: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]


def difference(left: list[Tensor], right: list[Tensor]) -> str:
    """`equal`, or the largest difference relative to the largest value."""
    if [x.shape for x in left] != [x.shape for x in right]:
        return "different shapes"
    if all(torch.equal(a, b) for a, b in zip(left, right, strict=True)):
        return "equal"
    size = max(float(b.abs().max()) for b in right if b.numel()) or 1.0
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in zip(left, right, strict=True) if a.numel())
    return f"{worst / size:.1g}"


def training_step(net: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    net.train()
    torch.manual_seed(1)
    out = tensors(net(x))
    sum((y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in out).backward()
    return [y.detach() for y in out], {k: p.grad for k, p in net.named_parameters() if p.grad is not None}


def examine(network: Network) -> Row:
    torch.manual_seed(0)
    row = Row(network.name, network.source)
    net = network.build()
    start = time.process_time()
    try:
        captured = capture(net, network.inputs(1, 0))
    except IsobitError as error:
        row.note = "refused: " + str(error).replace("\n", " ").replace("|", "/")
        return row
    row.seconds = f"{time.process_time() - start:.1f}"
    calls = [n for n in captured.graph.nodes if n.op == "call_module"]
    row.nodes = f"{len(captured.graph.nodes)} ({len(calls)})"
    notes = list(captured.record.notes)
    row.keys = "equal" if list(captured.state_dict()) == list(net.state_dict()) else "different"
    x = network.inputs(BATCH, 1)
    with torch.no_grad():
        row.outputs = difference(tensors(captured.eval()(x)), tensors(net.eval()(x)))
    twin = copy.deepcopy(captured)
    del captured
    try:
        want, gradients = training_step(net, x)
        got, other = training_step(twin, x)
    except Exception as error:
        row.training = f"{type(error).__name__}: {error}"
        return row
    row.training = difference(got, want)
    if set(gradients) != set(other):
        row.gradients = f"{len(set(gradients) ^ set(other))} parameters without one"
    else:
        row.gradients = difference([other[k] for k in gradients], list(gradients.values()))
    buffers = {
        k: b for k, b in net.named_buffers() if k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    mine = dict(twin.named_buffers())
    row.statistics = difference([mine[k] for k in buffers], list(buffers.values())) if buffers else "none"
    row.note = "; ".join(n.replace(str(Path.cwd()) + "/", "").replace("|", "/") for n in notes)
    return row


def rows(only: list[str]) -> Iterator[Row]:
    for source, networks in SOURCES.items():
        if source != "isobit" and importlib.util.find_spec(source) is None:
            yield Row("all", source, note=f"skipped: {source} is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for network in networks():
                if only and network.name not in only:
                    continue
                yield examine(network)
                gc.collect()


def page(table: list[Row]) -> str:
    good = [r for r in table if {r.outputs, r.training, r.gradients, r.statistics, r.keys} <= {"equal", "none"}]
    tried = [r for r in table if not r.note.startswith("skipped")]
    lines = [
        "# Captured networks",
        "",
        f"`{COMMAND}` (torch {torch.__version__}, {torch.get_num_threads()} thread) captures these networks with "
        "random weights and holds each against its original, so every number below can be repeated.",
        "",
        f"{len(good)} of {len(tried)}: equal bits of outputs, gradients and BN statistics, in eval and in "
        "train mode, and equal keys. A row with another entry says in its note why.",
        "",
        "- *nodes*: of the graph; in brackets those that call a module of the network",
        f"- *eval*: outputs at a batch of {BATCH} (another was traced); *train*: one step, dropout on",
        "- *gradients*: of all parameters after that training step; *BN*: running statistics after it",
        "- `equal` means the same bits; a number is the largest difference, relative to the largest value",
        "- *s*: processor seconds for the capture, its check included",
        "",
        "| network | source | nodes | s | eval | train | gradients | BN | keys | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in table:
        cells = (r.name, r.source, r.nodes, r.seconds, r.outputs, r.training, r.gradients, r.statistics, r.keys, r.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/capture.md"))
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    table = []
    for row in rows(options.only):
        table.append(row)
        print(*(v for v in vars(row).values() if v), sep=" | ", flush=True)
    options.out.write_text(page(table))


if __name__ == "__main__":
    main()
