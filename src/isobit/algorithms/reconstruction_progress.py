"""What a reconstruction has done so far, in a file from which an interrupted one goes on."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, fx

from isobit.algorithms.activation_cache import ActivationCache
from isobit.core.checkpoint import load_checkpoint, save_checkpoint
from isobit.core.errors import ArtifactError
from isobit.core.qparams import QParams
from isobit.core.records import SegmentRecord
from isobit.graph.insert import slots
from isobit.graph.segments import Segment
from isobit.graph.slots import Slot, weight_slot

FORMAT = 2
"""Of what is written for a segment; a file of another format is of another run."""


@final
class Done:
    """The segments that are done: their weights, the steps of both, and the records.

    Without a path nothing is written. Raises ArtifactError where the file is of another network, other data or other
    settings.
    """

    def __init__(self, path: Path | None, model: fx.GraphModule, inputs: ActivationCache, settings: Any) -> None:
        self.path = path
        self._segments: list[dict[str, Any]] = []
        if path is None:
            return
        self._key = _fingerprint(model, inputs, settings)
        if path.is_file():
            held = load_checkpoint(path)
            if held["key"] != self._key:
                raise ArtifactError(
                    f"{path} was left by another quantization: of another network, with other data or settings. Delete "
                    "it, or do that one again to finish it"
                )
            self._segments = held["segments"]

    @property
    def records(self) -> tuple[SegmentRecord, ...]:
        """Of all segments so far."""
        return tuple(SegmentRecord(**{**s["record"], "layers": tuple(s["record"]["layers"])}) for s in self._segments)

    def restore(self, model: fx.GraphModule, number: int) -> bool:
        """Put what was learned into the model; false where this segment is not done yet."""
        if number >= len(self._segments):
            return False
        held = self._segments[number]
        with torch.no_grad():
            for name, weight in held["weights"].items():
                replace_weight(model, name, weight)
            for name, scale in held["scales"].items():
                rescale(_slot(model, name), scale)
            for name, scale in held["weight_scales"].items():
                rescale(weight_slot_of(model, name), scale)
        return True

    def add(self, model: fx.GraphModule, part: Segment, record: SegmentRecord) -> None:
        """A segment is done."""
        activations = {str(n.target) for n in part.nodes if n.op == "call_module"}
        scales = {}
        for name in sorted(activations):
            module = model.get_submodule(name)
            if isinstance(module, Slot) and isinstance(grid := module.grid(), QParams):
                scales[name] = grid.scale
        weights = {name: model.get_parameter(f"{name}.weight").detach() for name in part.layers}
        steps = {name: weight_slot_of(model, name).grid() for name in part.layers}
        weight_scales = {name: grid.scale for name, grid in steps.items() if isinstance(grid, QParams)}
        held = {"record": asdict(record), "weights": weights, "scales": scales, "weight_scales": weight_scales}
        self._segments.append(held)
        if self.path is not None:
            save_checkpoint(self.path, {"key": self._key, "segments": self._segments})


@torch.no_grad()
def replace_weight(model: fx.GraphModule, name: str, weight: Tensor) -> None:
    """Give a layer another weight; in float mode its slot shows the one it had."""
    slot, own = weight_slot(model.get_submodule(name)), model.get_parameter(f"{name}.weight")
    assert slot is not None
    slot.original = own.detach().clone() if slot.original is None else slot.original
    own.copy_(weight)


def rescale(slot: Slot, scale: Tensor) -> None:
    """Give a static quantizer another scale."""
    grid = slot.grid()
    assert isinstance(grid, QParams)
    slot.quantizer.calibrate(QParams(scale.clone(), grid.zero_point, grid.scheme, grid.codebook))  # type: ignore[operator]


def weight_slot_of(model: fx.GraphModule, name: str) -> Slot:
    """The slot of a quantized layer's weight, by the layer's name."""
    found = weight_slot(model.get_submodule(name))
    assert found is not None
    return found


def _slot(model: fx.GraphModule, name: str) -> Slot:
    found = model.get_submodule(name)
    assert isinstance(found, Slot)
    return found


def _fingerprint(model: fx.GraphModule, inputs: ActivationCache, settings: Any) -> str:
    """SHA-256 over what decides the result."""
    digest = hashlib.sha256(f"{FORMAT} {json.dumps(asdict(settings), sort_keys=True)}".encode())
    for slot in slots(model):
        digest.update(f"{slot.point} {slot.grid()}".encode())
    for name, tensor in [*model.state_dict().items(), *inputs.tensors()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
