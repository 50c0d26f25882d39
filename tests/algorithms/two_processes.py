"""A script: train in two processes on the CPU; each writes what it ends with. Arguments: folder, method, settings."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import isobit
from algorithms.blobs import Blobs, evaluation, network, prepared
from isobit.algorithms.training import Hardware, Training, TrainingRecord, train
from isobit.core.files import write_json


def weights(model: nn.Module) -> str:
    """A hash of everything that the model holds."""
    found = hashlib.sha256()
    for key, value in model.state_dict().items():
        found.update(key.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def model_of(method: str) -> nn.Module:
    """LSQ with synchronized statistics, or a method that starts from the weights and leaves them behind."""
    if method == "lsq":
        return prepared(bn_fold=4, bits=8)
    x = next(iter(Blobs().epoch(0)))[0]
    model = isobit.prepare(network(), x, target="tensorrt", bits=2, method=method, bn_fold=-1)
    isobit.calibrate(model, [x])
    return model


def run(folder: Path, method: str, settings: Training, devices: int) -> tuple[nn.Module, TrainingRecord]:
    """Train in this many processes."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")))  # what the processes draw outside of training differs
    model = model_of(method)
    teacher = network() if settings.distills else None
    record = train(
        model, Blobs(), evaluation(), settings, folder=folder, teacher=teacher,
        hardware=Hardware(accelerator="cpu", devices=devices),
    )  # fmt: skip
    return model, record


if __name__ == "__main__":
    place = Path(sys.argv[1])
    model, record = run(place, sys.argv[2], Training(**json.loads(sys.argv[3])), 2)
    found = asdict(record) | {"weights": weights(model)}
    write_json(place.parent / f"rank{os.environ.get('LOCAL_RANK', '0')}.json", found)
