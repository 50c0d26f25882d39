"""What the command line says about ranges that were chosen or searched."""

import json
from pathlib import Path

import isobit
from cli.bad_input import invoke
from isobit.cli import rows
from isobit.cli.data import Reading, load_data
from isobit.cli.loading import load_model
from isobit.core.records import JointRangesRecord, RangeChoice, to_json

Q = "quantize nets.py:net -d data.py:good -t onnxruntime-x86 --bits 3 --layer-bits *=3 --observer auto"
Q += " --set joint_ranges=true"


def test_joint_ranges_from_the_command_line(here: Path) -> None:
    del here
    found = json.loads(invoke(f"{Q} --no-verify --json").stdout)
    data = load_data("data.py:good", Reading(), samples=512)
    settings = {"target": "onnxruntime-x86", "bits": 3, "layer_bits": {"*": 3}, "activation_observer": "auto"}
    model = isobit.quantize(load_model("nets.py:net"), data, joint_ranges=True, **settings)  # type: ignore[arg-type]
    assert found["joint_ranges"] == to_json(model.meta["joint_ranges"])
    assert found["ranges"] == [to_json(choice) for choice in model.meta["ranges"]]
    assert found["joint_ranges"]["after"] < found["joint_ranges"]["before"]


def test_rows() -> None:
    assert rows.ranges((), None) == []
    record = JointRangesRecord(
        loss="noise", samples=128, before=0.5, start=0.4, after=0.125, power=2.5, variables=4, evaluations=60
    )
    (chosen, joint) = rows.ranges([RangeChoice(tensor="conv1", reason="mse: 9% less")], record)
    assert chosen == ("ranges chosen", ["conv1: mse: 9% less"])
    assert joint == ("joint ranges", "noise over signal 0.5 to 0.125 in 60 evaluations on 128 samples")
