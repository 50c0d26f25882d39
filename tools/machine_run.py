"""Runs an ONNX file on the machine that this runs on: what `machines.py` starts under qemu, without isobit or torch.

Reads net.onnx, names.txt (input names, output names) and inputs.npz in the folder that it is given, and writes
outputs.npz and the optimized graph there.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
inputs, outputs = (line.split(" ") for line in (folder / "names.txt").read_text().split("\n"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
options.optimized_model_filepath = str(folder / "optimized.onnx")
session = onnxruntime.InferenceSession(folder / "net.onnx", options, providers=["CPUExecutionProvider"])
with np.load(folder / "inputs.npz") as given:
    feeds = {name: given[f"arr_{i}"] for i, name in enumerate(inputs)}
np.savez(folder / "outputs.npz", *session.run(outputs, feeds))
