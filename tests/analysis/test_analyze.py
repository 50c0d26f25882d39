import pytest
import torch

from analysis.nets import branches, mlp
from isobit.analysis.analyze import analyze, records
from isobit.analysis.cost import cost
from isobit.analysis.layer_error import accumulated, isolated, sensitivity
from isobit.analysis.layers import quantized_layers
from isobit.benchmark.data.location import data_folder
from isobit.core.records import LayerRecord, from_json, to_json


def test_it_is_its_parts() -> None:
    model, x = branches()
    found = {r.name: r for r in analyze(model, [x], samples=8)}
    noise, alone = accumulated(model, [x]), isolated(model, [x], samples=8)
    costs, shares = {op.name: op for op in cost(model).ops}, sensitivity(alone)
    assert list(found) == [layer.name for layer in quantized_layers(model)]
    for name, record in found.items():
        assert (record.sqnr_db, record.cosine) == (noise[name].sqnr_db, noise[name].cosine)
        if name == "pool":
            assert (record.isolated_db, record.sensitivity) == (None, None)
            continue
        assert (record.isolated_db, record.isolated_cosine) == (alone[name].sqnr_db, alone[name].cosine)
        assert record.sensitivity == shares[name]
        assert record.macs == (costs[name].macs if name in costs else 0)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_tensors_appear_once_at_the_layer_that_makes_them() -> None:
    model, x = branches()
    found = {r.name: [t.name for t in r.tensors] for r in analyze(model, [x], isolated=False)}
    assert found == {
        "stem": ["stem.weight", "x", "relu"],
        "pool": ["pool"],
        "body": ["body.weight", "body"],
        "add": ["add"],
        "twice": ["twice.weight", "relu:2"],
        "twice:2": ["twice:2.weight", "twice:2"],
        "mean": ["mean"],
        "head": ["head.weight", "head"],
    }


def test_without_isolated_errors_or_data() -> None:
    model, x = mlp(bits=4)
    first, second = analyze(model, [x], isolated=False)
    assert (first.isolated_db, first.sensitivity) == (None, None)
    assert first.sqnr_db is not None
    assert (first.op, first.parameters, first.macs, first.weight_bits, first.activation_bits) == (
        "linear",
        112,
        96,
        8,
        8,
    )
    assert (second.parameters, second.macs) == (68, 64)
    bare = records(model, quantized_layers(model))
    assert [(r.name, r.macs, r.sqnr_db, r.tensors) for r in bare] == [("0", 96, None, ()), ("2", 64, None, ())]


def test_bits_of_a_layer_are_those_of_what_it_reads() -> None:
    from isobit.recipes.workflow import quantize

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
    )
    x = torch.randn(64, 6)
    model = quantize(net, [x], target="onnxruntime-x86", layer_bits={"2": [3, 5]})
    assert [(r.weight_bits, r.activation_bits) for r in analyze(model, [x])] == [(8, 8), (3, 5), (8, 8)]


def test_records_survive_json() -> None:
    model, x = branches()
    for record in analyze(model, [x]):
        assert from_json(LayerRecord, to_json(record)) == record


def test_an_exact_layer_is_infinitely_good_and_survives_json() -> None:
    """Weights and inputs that lie on their grids already."""
    from isobit.recipes.workflow import quantize

    net = torch.nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[127.0, -3.0]])
    x = torch.tensor([[0.0, 255.0], [3.0, 7.0]])
    model = quantize(net, [x], target="openvino-cpu")
    (record,) = analyze(model, [x])
    assert record.sqnr_db == record.isolated_db == float("inf")
    assert (record.cosine, record.sensitivity) == (1.0, 0.0)
    assert from_json(LayerRecord, to_json(record)) == record


@pytest.mark.slow
@pytest.mark.skipif(data_folder() is None, reason="needs the data folder with weights")
def test_mobilenet_with_one_scale_per_tensor_blames_a_depthwise_layer() -> None:
    """Nagel et al. 2019 (arXiv:1906.04721), figure 2: the ranges of its depthwise channels differ by orders."""
    from isobit.benchmark.pretrained import pretrained
    from isobit.recipes.workflow import quantize

    row = pretrained("mobilenet_v2_folded")
    data = row.calibration().take(8)
    found = analyze(quantize(row.load(), data, target="snpe", equalize=False, reconstruction="none"), data, samples=4)
    worst = max(found, key=lambda r: r.sensitivity or 0.0)
    assert (worst.name, worst.op) == ("features.1.conv.0.0", "depthwise conv")
    assert worst.sensitivity > 0.5
