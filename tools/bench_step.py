"""Time of a training step, fake-quantized against float, eager and compiled, in interleaved runs of one process.

    python tools/bench_step.py [--batch 128] [--rounds 7] [--no-compile]

CIFAR ResNet-20, LSQ at 4 bits, the academic setting; a step is forward, backward and SGD. The process keeps the memory
that it frees, as `isobit train` does. A number is the median over the rounds of quantized time / float time, with the
lowest and the highest. Where torchao is installed, its PT2E step (8 bits, X86InductorQuantizer) runs in the same
rounds. Exit code 1: a median of isobit above its bar.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import isobit
from bench_output import Table, finish, say
from isobit.benchmark.models import MODELS
from isobit.core.memory import keep_freed_memory

BARS = {"eager": 1.25, "compiled": 1.15}


def stepper(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step of `model`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def networks(batch: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The float network, the fake-quantized one, and data."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    net = MODELS["cifar10_resnet20"]()
    model = isobit.prepare(net, x[:1], target="academic", bits=4, method="lsq")
    isobit.calibrate(model, [x])
    return net.train(), model.train(), x, y


def torchao_network(x: Tensor) -> nn.Module | None:
    """The network as torchao prepares it for quantization-aware training, or None without torchao."""
    try:
        from torchao.quantization.pt2e import move_exported_model_to_train
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError:
        say("torchao is not installed: its step is left out")
        return None
    torch.manual_seed(0)
    exported = torch.export.export(MODELS["cifar10_resnet20"]().train(), (x,), strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    model: nn.Module = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(model)
    return model


def first_error(step: Callable[[], None]) -> str:
    """What a step of another library raises, in one line, or nothing."""
    try:
        step()
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> list[dict[str, float]]:
    """Seconds of three steps of each, round by round in turns, after a warm-up."""
    for step in steps.values():
        step()
        step()
    found = []
    for _ in range(rounds):
        times = {}
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(3):
                step()
            times[name] = (time.perf_counter() - start) / 3
        found.append(times)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    net, model, x, y = networks(options.batch)
    notes: list[str] = []
    steps = {"eager float": stepper(net, x, y), "eager quantized": stepper(model, x, y)}
    if not options.no_compile:
        float_too, quantized_too, _, _ = networks(options.batch)
        steps["compiled float"] = stepper(torch.compile(float_too), x, y)
        steps["compiled quantized"] = stepper(torch.compile(quantized_too), x, y)
    if (rival := torchao_network(x)) is not None:
        steps["eager torchao"] = stepper(rival, x, y)
        compiled = None if options.no_compile else torchao_network(x)
        if compiled is not None:
            steps["compiled torchao"] = stepper(torch.compile(compiled), x, y)
            if failed := first_error(steps["compiled torchao"]):
                del steps["compiled torchao"]
                notes.append(f"torchao's step does not compile: {failed}")
    found = measure(steps, options.rounds)
    rows, missed = [], []
    for way, bar in BARS.items():
        if f"{way} float" not in steps:
            continue
        for name in ("quantized", "torchao"):
            if f"{way} {name}" not in steps:
                continue
            ratios = [t[f"{way} {name}"] / t[f"{way} float"] for t in found]
            ms = [1000 * median(t[f"{way} {which}"] for t in found) for which in ("float", name)]
            middle, ours = median(ratios), name == "quantized"
            spread = f"{middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            who = "isobit, LSQ W4A4" if ours else "torchao PT2E, W8A8"
            rows.append((way, who, f"{ms[0]:.0f}", f"{ms[1]:.0f}", spread, f"{bar}" if ours else ""))
            missed += [f"{way}: {middle:.2f}, bar {bar}"] if ours and middle > bar else []
    columns = ("", "", "float ms", "quantized ms", "quantized / float", "bar")
    table = Table(
        title=f"Training step, ResNet-20, batch {options.batch}", columns=columns, rows=tuple(rows), notes=tuple(notes)
    )
    return finish([table], json_file=None, records=[], failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
