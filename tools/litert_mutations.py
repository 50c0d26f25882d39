"""Changes of LiteRT files for `tools/fuzz_files.py`: fields get what they should not, objects swap, bytes flip."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from isobit.core.litert_file import read_litert, serialized

NUMBERS = (0, 1, -1, 2, 7, 127, 255, 4096, (1 << 31) - 1, -(1 << 31))
REALS = (0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf"))

Change = Callable[[Any, Random], str]


def change_number(model: Any, rng: Random) -> str:
    """One number of an object."""
    holder, key = rng.choice([(o, k) for o in objects(model) for k, v in vars(o).items() if _is_number(v)])
    value = rng.choice(REALS if isinstance(getattr(holder, key), float) else NUMBERS)
    old = getattr(holder, key)
    setattr(holder, key, bool(value) if isinstance(old, bool) else value)
    return f"{type(holder).__name__}.{key} = {value}"


def change_list(model: Any, rng: Random) -> str:
    """One number of a list, or its length."""
    holder, key = rng.choice([(o, k) for o in objects(model) for k, v in vars(o).items() if _is_list(v)])
    values = [v.item() if hasattr(v, "item") else v for v in getattr(holder, key)]
    match rng.randrange(4):
        case 0 if values:
            values[rng.randrange(len(values))] = rng.choice(REALS if isinstance(values[0], float) else NUMBERS)
        case 1 if values:
            values.pop(rng.randrange(len(values)))
        case 2:
            values = values + values[-1:] * rng.choice((1, 5, 1000))
        case _:
            values = []
    setattr(holder, key, np.asarray(values, np.float32) if key == "scale" else values)
    return f"{type(holder).__name__}.{key}, {len(values)} long"


def swap_objects(model: Any, rng: Random) -> str:
    """Two ops, tensors or options change places."""
    graph = model.subgraphs[0]
    if rng.random() < 0.4:
        a, b = rng.sample(graph.operators, 2)
        a.builtinOptions, b.builtinOptions = b.builtinOptions, a.builtinOptions
        if rng.random() < 0.5:
            a.builtinOptionsType, b.builtinOptionsType = b.builtinOptionsType, a.builtinOptionsType
        return "options of two ops"
    of = rng.choice((graph.operators, graph.tensors, model.buffers))
    i, j = rng.sample(range(len(of)), 2)
    of[i], of[j] = of[j], of[i]
    return "two objects"


def drop_object(model: Any, rng: Random) -> str:
    """An object is missing."""
    graph = model.subgraphs[0]
    of = rng.choice((graph.operators, graph.tensors, model.buffers, model.operatorCodes, model.subgraphs))
    of.pop(rng.randrange(len(of)))
    return "an object less"


def change_data(model: Any, rng: Random) -> str:
    """The numbers of a constant: axes, shapes, pads, weights."""
    buffer = rng.choice([b for b in model.buffers if b.data is not None and len(b.data) >= 4])
    data = np.array(buffer.data, np.uint8)
    value = np.array([rng.choice(NUMBERS)], np.int64).astype(np.int32).view(np.uint8)
    place = 4 * rng.randrange(len(data) // 4)
    data[place : place + 4] = value
    buffer.data = data
    return "numbers of a constant"


CHANGES: tuple[Change, ...] = (change_number, change_number, change_list, change_list, swap_objects, drop_object,
                               change_data)  # fmt: skip


def write_litert(base: Path, seed: int, folder: Path) -> tuple[str, Path]:
    """The file of one seed in a new folder, and what was done to it."""
    rng = Random(seed)
    folder.mkdir(exist_ok=True)
    path = folder / "net.tflite"
    if seed % 5 == 0:
        data = bytearray(base.read_bytes())
        if seed % 10 == 0:
            name, data = "truncated", data[: rng.randrange(len(data))]
        else:
            name = "flipped bytes"
            for _ in range(rng.choice((1, 8, 64))):
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data))
        return name, path
    for _ in range(100):  # some values do not fit their field of the format: another one then
        model = read_litert(base)
        name = rng.choice(CHANGES)(model, rng)
        try:
            path.write_bytes(serialized(model))
        except Exception:
            continue
        return name, path
    raise SystemExit(f"seed {seed} gives no file")


def objects(model: Any) -> list[Any]:
    """Every object of a file."""
    found, waiting = [], [model]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for value in vars(one).values():
            waiting += [v for v in (value if isinstance(value, list) else [value]) if hasattr(v, "Pack")]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _is_list(value: object) -> bool:
    return (
        isinstance(value, (list, np.ndarray)) and not (len(value) and hasattr(value[0], "Pack")) and len(value) < 1000
    )
