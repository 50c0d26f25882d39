"""Forward and gradients of every quantizer against its paper's closed form, in float64.

    python tools/gradient_table.py [NAME ...]

The closed forms are in tests/quantizers/closed_forms, one file for each algorithm, written without autograd and without
the code that they check. An error is the largest difference, relative to the largest value of the tensor where that is
above 1. Exit code 1: one is above 1e-12.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from bench_output import Table, finish
from isobit.observers import OBSERVERS

TESTS = Path(__file__).parent.parent / "tests"
BAR = 1e-12


def closed_forms() -> dict[str, ModuleType]:
    """The modules of tests/quantizers/closed_forms by the name of their algorithm."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    names = sorted(p.stem for p in (TESTS / "quantizers" / "closed_forms").glob("[a-z]*.py"))
    return {name: importlib.import_module(f"quantizers.closed_forms.{name}") for name in names}


def errors(form: ModuleType, case: str) -> dict[str, float]:
    """Error of the output and of every gradient for one case; clipped values on both sides are part of the input."""
    settings, scheme, role = form.CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, 5, dtype=torch.float64, generator=generator)
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    quantizer = settings.build(scheme, role=role)
    observer = OBSERVERS[settings.observer]().build(quantizer.scheme)
    observer.see(0.4 * x.float())
    quantizer.calibrate(observer.qparams())
    if callable(start := getattr(quantizer, "start", None)):
        start(0.4 * x.float())
    quantizer.double()
    x.requires_grad_()
    y = quantizer(x)
    parameters = dict(quantizer.named_parameters())
    found = torch.autograd.grad(y, [x, *parameters.values()], upstream, allow_unused=True)
    got: dict[str, Tensor] = {"output": y.detach()}
    for name, value, grad in zip(["x", *parameters], [x, *parameters.values()], found, strict=True):
        got[name] = torch.zeros_like(value) if grad is None else grad
    wanted = form.expected(quantizer, x.detach(), upstream)
    if wanted.keys() != got.keys():
        raise SystemExit(f"{form.__name__}, {case}: the closed form has {sorted(wanted)}, the module {sorted(got)}")
    return {name: _error(value, wanted[name]) for name, value in got.items()}


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        raise SystemExit(f"shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def main(names: list[str]) -> int:
    rows, missed = [], []
    for name, form in closed_forms().items():
        if names and name not in names:
            continue
        found: dict[str, float] = {}
        for case in form.CASES:
            for tensor, error in errors(form, case).items():
                found[tensor] = max(error, found.get(tensor, 0.0))
        output, x = found.pop("output"), found.pop("x")
        learned = ", ".join(f"{tensor} {error:.1e}" for tensor, error in found.items())
        rows.append((name, str(len(form.CASES)), f"{output:.1e}", f"{x:.1e}", learned))
        missed += [f"{name}: {worst:.1e}" for worst in [max(output, x, *found.values())] if worst > BAR]
    columns = ("quantizer", "cases", "output", "gradient to x", "to what is learned")
    return finish([Table(title="Quantizers against closed forms", columns=columns, rows=tuple(rows))],
                  json_file=None, records=[], failed=missed)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
