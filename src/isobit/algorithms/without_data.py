"""Quantization without data: ranges and mean errors from batch norm (Nagel et al. 2019, arXiv:1906.04721)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.input_range import InputRange, check_range, from_normal, only_input
from isobit.algorithms.moments import Moments, moments_in_front, propagated
from isobit.algorithms.synthetic_images import DeadLeaves
from isobit.core.progress import Progress, silent
from isobit.core.qparams import qparams_of_range
from isobit.core.records import CorrectionRecord
from isobit.graph.capture import capture
from isobit.graph.insert import SLOTS
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import tensors_of

SHOWN = 5

SAMPLES = 48
"""Synthetic inputs for the ranges that nothing else tells."""


def invented_inputs(
    net: nn.Module,
    example: tuple[Tensor, ...],
    input_range: InputRange,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Tensor]:
    """Dead leaves for a network of images, normal values for one of anything else. Raises UnsupportedError."""
    x = only_input(example)
    if x.dim() == 4:
        images = DeadLeaves(input_range=input_range)
        return images.synthesize(net, example, samples=samples, seed=seed, progress=progress)
    check_range(input_range, int(x.shape[1]))
    z = torch.randn(samples, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return [from_normal(z.to(x), input_range)]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The batch norms of a captured network, by the layer in front: read them before they are merged."""

    model: fx.GraphModule
    by_layer: Mapping[str, tuple[str, Moments]]

    @staticmethod
    def of(net: nn.Module, example: tuple[Tensor, ...] | Tensor) -> "Statistics":
        """Those of a float network, which is captured unless it is already."""
        captured = net if isinstance(net, fx.GraphModule) and "capture" in net.meta else capture(net, example)
        return Statistics(captured, moments_in_front(captured))

    def known(self, model: fx.GraphModule) -> dict[fx.Node, Moments]:
        """What they say about the tensors of the same network, prepared: with norms merged and channels equalized."""
        passes, scales = model.meta.get("passes", {}), model.meta.get("equalized", {})
        merged = set(passes["fold_bn"].changed) if "fold_bn" in passes else set()
        found = {layer: moments for layer, (norm, moments) in self.by_layer.items() if norm in merged}
        return propagated(model, {k: m.scaled(scales[k]) if k in scales else m for k, m in found.items()})


@torch.no_grad()
def set_ranges(model: fx.GraphModule, known: Mapping[fx.Node, Moments]) -> tuple[str, ...]:
    """Give the activation quantizers of a calibrated model the ranges that are known, in place; the names of these.

    A quantizer that several tensors share gets the union of their ranges, and keeps its own where one is unknown.
    """
    tensors: dict[str, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(f"{SLOTS}."):
            tensors.setdefault(str(node.target), []).append(node.all_input_nodes[0])
    done = []
    for target, nodes in tensors.items():
        slot, found = model.get_submodule(target), [known[n] for n in nodes if n in known]
        if not isinstance(slot, Slot) or len(found) < len(nodes):
            continue
        low, high = min(float(m.low.min()) for m in found), max(float(m.high.max()) for m in found)
        grid = qparams_of_range(torch.tensor(low), torch.tensor(high), slot.quantizer.scheme)  # type: ignore[arg-type]
        slot.quantizer.calibrate(grid)  # type: ignore[operator]
        done.append(slot.point)
    return tuple(done)


def take_statistics(
    model: fx.GraphModule, statistics: Statistics, *, ranges: bool, biases: bool
) -> tuple[CorrectionRecord, ...]:
    """Give a network that synthetic inputs calibrated what its batch norms tell, in place, and note what they do not.

    The result is empty where they tell no mean, so that biases are still to be corrected.
    """
    known = statistics.known(model)
    done = set_ranges(model, known) if ranges else ()
    activations = len(model.get_submodule(SLOTS)._modules)
    notes = [
        f"quantized without data: {len(done)} of {activations} ranges of activations are those of batch norms and "
        f"caps, the others those of {model.meta['samples']} synthetic samples"
    ]
    found: tuple[CorrectionRecord, ...] = ()
    if biases:
        found, left = AnalyticBiasCorrection().apply(model, known)
        if found and left:
            notes.append(
                f"without data, biases of {len(left)} of {len(left) + len(found)} layers are not corrected, because no "
                f"batch norm tells the mean of their input: {', '.join(left[:SHOWN])}"
                + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
            )
    model.meta["notes"] = (*model.meta.get("notes", ()), *notes)
    return found


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyticBiasCorrection:
    """Settings of the correction without data: b ← b - Σ over kernel positions (Ŵ - W) E[x] (equations 14 to 17).

    E[x] is the mean of the layer's input, a clipped normal behind batch norm. There are no settings. Zero padding,
    which makes the mean smaller at borders, counts for nothing, and inputs count as exact.
    """

    @torch.no_grad()
    def apply(
        self, model: fx.GraphModule, known: Mapping[fx.Node, Moments]
    ) -> tuple[tuple[CorrectionRecord, ...], tuple[str, ...]]:
        """Correct a calibrated network in place: by how much, and the layers whose input has no known mean."""
        tensors, found, left = tensors_of(model), [], []
        for node in model.graph.nodes:
            layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            slot = None if layer is None else weight_slot(layer)
            if layer is None or slot is None:
                continue
            moments = known.get(tensors.inputs(node)[0])
            if moments is None or moments.mean is None:
                left.append(str(node.target))
                continue
            assert isinstance(layer.weight, Tensor)
            exact = layer.weight if slot.original is None else slot.original
            lost = slot.grid().fake_quantize(layer.weight) - exact  # type: ignore[union-attr]
            found.append(_corrected(layer, str(node.target), mean_of_output(layer, lost, moments.mean)))
        return tuple(found), tuple(left)


def mean_of_output(layer: nn.Module, weight: Tensor, mean: Tensor) -> Tensor:
    """W E[x], summed over kernel positions: (output channels,), float64. `mean` is that of each input channel."""
    w, mean = weight.double(), mean.double()
    if isinstance(layer, nn.Linear):
        return w @ mean
    groups = int(layer.groups)  # type: ignore[arg-type]
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        w = w.flatten(2).sum(2).view(groups, -1, w.shape[1]).transpose(1, 2)
    else:
        w = w.flatten(2).sum(2).view(groups, -1, w.shape[1])
    return (w @ mean.view(groups, -1, 1)).flatten()


def _corrected(layer: nn.Module, name: str, error: Tensor) -> CorrectionRecord:
    assert isinstance(layer.weight, Tensor)
    if not isinstance(layer.bias, Tensor):
        layer.bias = nn.Parameter(torch.zeros(len(error), dtype=layer.weight.dtype, device=layer.weight.device))
    layer.bias.sub_(error.to(layer.bias))
    return CorrectionRecord(layer=name, largest=float(error.abs().max()), mean=float(error.abs().mean()))
