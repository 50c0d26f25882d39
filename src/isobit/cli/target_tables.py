"""Targets as tables: the overview, and one in full."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from rich import box
from rich.table import Table

from isobit.cli.output import facts
from isobit.core.grid import Uniform
from isobit.engines import ENGINES
from isobit.targets import Placement, Profile
from isobit.targets.profile import in_words


def overview(profiles: Iterable[Profile]) -> Table:
    """One row for each target."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", style="bold", no_wrap=True)
    table.add_column("hardware")
    table.add_column("weights")
    table.add_column("activations")
    table.add_column("verified", no_wrap=True)
    for p in profiles:
        table.add_row(p.name, p.vendor, str(p.weight), p.activations, _verified(p))
    table.caption = (
        "verified: on the target's own engine, or by the integer reference alone, with its files run on other engines"
    )
    return table


def details(p: Profile) -> Table:
    """All of one target."""
    return facts(
        [
            ("target", p.name),
            ("hardware", p.vendor),
            ("source", p.source),
            ("assumed", p.assumed or "nothing"),
            ("weights", str(p.weight)),
            ("activations", p.activations),
            ("widths", f"{in_words(p.widths)} bits"),
            ("signed activations in files", _signed(p)),
            ("biases", _biases(p)),
            ("first, last layer", "as all others" if p.edge_bits is None else f"at least {p.edge_bits} bits"),
            ("batch norm", "folded into the layer before" if p.fold_bn else "kept as an op of its own"),
            *_placement(p.placement),
            ("fused", _fusions(p) or "nothing"),
            ("products in files", type(p.form).__name__),
            ("arithmetic", [f"{f.name}: {_word(getattr(p.arithmetic, f.name))}" for f in fields(p.arithmetic)]),
            ("formats", ", ".join(p.formats)),
            ("verified", _verified(p)),
            ("files run on", [_engine(e) for e in p.engines]),
        ]
    )


def as_json(p: Profile) -> dict[str, Any]:
    """One target for programs; schemes and arithmetic as isobit writes them."""
    placement = {
        "inputs": sorted(p.placement.inputs),
        "outputs": sorted(p.placement.outputs),
        "shared": sorted(p.placement.shared),
        "every_consumer": p.placement.every_consumer,
        "conv_feeds_add": p.placement.conv_feeds_add,
        "network_output": p.placement.network_output,
    }
    return {
        "name": p.name,
        "vendor": p.vendor,
        "source": p.source,
        "assumed": p.assumed,
        "weight": {"scheme": str(p.weight), "bits": p.weight.bits},
        "activation": {"scheme": p.activations, "bits": None if p.ranges == "none" else p.activation.bits},
        "widths": list(p.widths),
        "bias_bits": p.bias_bits,
        "edge_bits": p.edge_bits,
        "signed_bytes": p.signed_bytes,
        "fold_bn": p.fold_bn,
        "placement": placement,
        "fusions": [list(pair) for pair in sorted(p.fusions)],
        "form": str(p.form),
        "arithmetic": str(p.arithmetic),
        "engines": list(p.engines),
        "own_engine": p.own_engine,
        "formats": list(p.formats),
    }


def _placement(p: Placement) -> list[tuple[str, str]]:
    return [
        ("quantized inputs", ", ".join(sorted(p.inputs))),
        ("quantized outputs", ", ".join(sorted(p.outputs)) or "none"),
        ("one scale through", ", ".join(sorted(p.shared)) or "none"),
        ("residual branch", "stays in float" if not p.every_consumer else "reads the quantized tensor"),
        ("conv before add", "not rounded in between" if p.conv_feeds_add else "rounded in between"),
        ("network's output", "quantized" if p.network_output else "float"),
    ]


def _fusions(p: Profile) -> list[str]:
    """`conv + batch_norm, relu`: an op, and what may follow it without a rounding in between."""
    after: dict[str, list[str]] = {}
    for op, follower in sorted(p.fusions):
        after.setdefault(op, []).append(follower)
    return [f"{op} + {', '.join(followers)}" for op, followers in after.items()]


def _word(value: object) -> str:
    """A rule by its name and settings, `FloatMultiplier`; a number as it is."""
    return str(value).removesuffix("()")


def _signed(p: Profile) -> str:
    if not isinstance(p.activation.grid, Uniform):
        return (
            "float16, cast from and to float32" if p.ranges == "cast" else "float32, looked up in a table of the levels"
        )
    return "as they are" if p.signed_bytes else "unsigned, by half of the levels higher"


def _biases(p: Profile) -> str:
    if p.ranges == "cast":
        return "float16"
    if p.bias_bits is None:
        return "float"
    scale = (
        "a power of two as scale" if not isinstance(p.weight.grid, Uniform) else "scale of the input times the weight's"
    )
    return f"int{p.bias_bits}, {scale}"


def _verified(p: Profile) -> str:
    return "by reference" if p.own_engine is None else f"on {_engine(p.own_engine)}"


def _engine(name: str) -> str:
    return name if not ENGINES[name]().missing() else f"{name} (not installed)"
