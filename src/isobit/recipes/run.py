"""The record of a run: everything that a quantized model and its measurements say, as the report draws it."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from time import perf_counter
from typing import Any

from torch import fx, nn

from isobit.analysis.analyze import measure, records
from isobit.analysis.cost import cost
from isobit.analysis.findings import findings
from isobit.analysis.layers import quantized_layers
from isobit.core.batches import Data
from isobit.core.progress import Progress, silent
from isobit.core.records import Accuracy, Certificate, Latency, RunRecord
from isobit.engines import ENGINES
from isobit.graph.insert import preparation


def record_run(
    model: fx.GraphModule,
    *,
    net: nn.Module | None = None,
    data: Data | None = None,
    certificates: Sequence[Certificate] = (),
    latency: Sequence[Latency] = (),
    accuracy: Sequence[Accuracy] = (),
    title: str = "",
    network: str = "",
    command: str = "",
    samples: int = 32,
    seconds: float = 0.0,
    progress: Progress = silent,
) -> RunRecord:
    """Analyse a quantized model and put all that is known about it together.

    `net` is the float network it was made from: it gives the name and the float size (else those of the captured
    network, batch norm folded). `data` are inputs to measure errors and distributions on; without it layers have
    costs alone. `samples` bounds the isolated errors (0 for none). `seconds` are those spent before this call.

    Raises SettingError for a model without quantizers, CalibrationError for data that does not fit.
    """
    start = perf_counter()
    profile, plan = preparation(model).profile, preparation(model).plan
    recipe: dict[str, Any] = model.meta.get("recipe", {"target": profile.name})
    layers, costs = quantized_layers(model), cost(model)
    measurement = None
    if data is not None:
        measurement = measure(model, layers, data, samples=samples, progress=progress)
    found = records(model, layers, measurement)
    network = network or (type(net).__name__ if net is not None else "network")
    return RunRecord(
        title=title or f"{network} on {profile.name}",
        network=network,
        target=profile.name,
        target_source=profile.source,
        recipe=recipe,
        seed=int(recipe.get("seed", 0)),
        versions=versions(),
        layers=found,
        float_ops=plan.float_ops,
        ranges=model.meta.get("ranges", ()),
        warnings=findings(model, layers, measurement, lost=lost_share([*accuracy, *_certified(certificates)])),
        accuracy=tuple(accuracy),
        latency=tuple(latency),
        certificates=tuple(certificates),
        float_bytes=costs.float_bytes if net is None else _bytes(net),
        quantized_bytes=costs.quantized_bytes,
        macs=costs.macs,
        bitops=costs.bitops,
        seconds=seconds + perf_counter() - start,
        command=command,
    )


def versions() -> dict[str, str]:
    """The versions that decide a result: isobit, Python, torch, onnx, and the engines that are installed."""
    found = {"python": platform.python_version()} | {name: version(name) for name in ("isobit", "torch", "onnx")}
    for name, engine in ENGINES.items():
        if name != "fake" and not engine().missing():
            found[name] = engine().version().removeprefix(name).strip()
    return found


def lost_share(accuracy: Sequence[Accuracy]) -> float | None:
    """The float accuracy less the lowest of the others, as a share of the samples; None where one is missing."""
    shares = {a.execution: a.right / a.total for a in accuracy if a.total}
    before = shares.pop("float", None)
    return before - min(shares.values()) if before is not None and shares else None


def _certified(certificates: Sequence[Certificate]) -> list[Accuracy]:
    return [a for certificate in certificates for a in certificate.accuracy]


def _bytes(net: nn.Module) -> int:
    """Parameters and floating-point buffers."""
    tensors = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
    return sum(t.numel() * t.element_size() for t in tensors)
