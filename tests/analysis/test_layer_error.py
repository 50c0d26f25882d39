import math

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from analysis.nets import branches, mlp
from isobit.analysis.layer_error import TOGETHER, accumulated, isolated, pieces, ranking, sensitivity
from isobit.analysis.layers import quantized_layers
from isobit.analysis.modes import slots_in_mode
from isobit.analysis.noise import Noise
from isobit.core.errors import CalibrationError
from isobit.graph.insert import slots
from isobit.graph.slots import weight_slot
from isobit.recipes.workflow import quantize


def rounded(x: np.ndarray, model: fx.GraphModule, name: str) -> np.ndarray:
    """x on the grid of a slot, in numpy."""
    grid = next(s for s in slots(model) if s.point == name).grid()
    scale, zero = grid.scale.numpy(), grid.zero_point.numpy()
    if scale.ndim:
        scale, zero = scale[:, None], zero[:, None]
    low, high = grid.scheme.quant_min, grid.scheme.quant_max
    return (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale


def layer(model: fx.GraphModule, name: str) -> tuple[np.ndarray, np.ndarray]:
    module = model.get_submodule(name)
    return module.weight.detach().numpy(), module.bias.detach().numpy()


def sqnr(x: np.ndarray, x_hat: np.ndarray) -> float:
    return float(10 * np.log10((x**2).sum() / ((x - x_hat) ** 2).sum()))


@pytest.mark.parametrize("bits", [8, 4])
def test_two_layers_by_hand(bits: int) -> None:
    """Both errors of linear-relu-linear, recomputed with numpy from the slots' grids."""
    model, data = mlp(bits=bits)
    x = data.numpy()
    (w1, b1), (w2, b2) = layer(model, "0"), layer(model, "2")
    q = {name: lambda v, name=name: rounded(v, model, name) for name in ("input", "1", "2", "0.weight", "2.weight")}

    h = np.maximum(x @ w1.T + b1, 0)
    y = h @ w2.T + b2
    h_all = q["1"](np.maximum(q["input"](x) @ q["0.weight"](w1).T + b1, 0))
    y_all = q["2"](h_all @ q["2.weight"](w2).T + b2)
    found = accumulated(model, [data])
    assert list(found) == ["0", "2"]
    assert found["0"].sqnr_db == pytest.approx(sqnr(h, h_all), abs=2e-3)
    assert found["2"].sqnr_db == pytest.approx(sqnr(y, y_all), abs=2e-3)

    y_first = np.maximum(q["input"](x) @ q["0.weight"](w1).T + b1, 0) @ w2.T + b2
    y_second = q["2"](q["1"](h) @ q["2.weight"](w2).T + b2)
    alone = isolated(model, [data], samples=None)
    assert alone["0"].sqnr_db == pytest.approx(sqnr(y, y_first), abs=2e-3)
    assert alone["2"].sqnr_db == pytest.approx(sqnr(y, y_second), abs=2e-3)
    noise = {"0": ((y - y_first) ** 2).sum(), "2": ((y - y_second) ** 2).sum()}
    assert sensitivity(alone) == pytest.approx({k: v / sum(noise.values()) for k, v in noise.items()}, rel=1e-3)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("target", ["onnxruntime-x86", "openvino-cpu", "tensorrt", "snpe", "academic"])
def test_node_by_node_equals_the_whole_network(target: str) -> None:
    """The last layers' accumulated error is that of the outputs of the model itself, run as a whole."""
    model, x = branches(target)
    with slots_in_mode(model, "float"):
        floats = run(model, x)
    expected = Noise()
    expected.add(floats[0], run(model, x)[0])
    found = accumulated(model, [x])
    assert found["head"].noise == pytest.approx(expected.noise, rel=1e-4)
    assert found["head"].signal == pytest.approx(expected.signal, rel=1e-6)


def test_a_layer_alone_equals_the_network_with_its_own_slots_on() -> None:
    """Where nothing else reads its input, the layer's slots can be switched on by hand and the whole network run."""
    model, x = branches()
    with slots_in_mode(model, "float"):
        floats = run(model, x)
    alone = isolated(model, [x], samples=None)
    stem = [s for s in slots(model) if s.point in ("x", "stem.weight")]
    with slots_in_mode(model, "float"), slots_in_mode(stem, "quantize"):
        quantized = run(model, x)
    expected = Noise()
    for y, y_hat in zip(floats, quantized, strict=True):
        expected.add(y, y_hat)
    assert alone["stem"].noise == pytest.approx(expected.noise, rel=1e-4)


def test_other_readers_of_the_same_tensor_keep_the_float_value() -> None:
    """`x + body(x)`: body alone rounds x for itself, and not for the add."""
    model, x = branches()
    shared = next(s for s in slots(model) if s.point == "relu")
    body, add = weight_slot(model.get_submodule("body")), next(s for s in slots(model) if s.point == "body")
    alone = isolated(model, [x], samples=None)
    with torch.no_grad(), slots_in_mode(model, "float"):
        pooled = model.pool(model.relu(model.stem(x)))
        floats = run(model, x)
        y = pooled + model.body(pooled)
        with slots_in_mode([body], "quantize"):
            y_body = pooled + model.body(shared.quantizer(pooled))
        y_add = shared.quantizer(pooled) + add.quantizer(model.body(pooled))

        def rest(y: Tensor) -> tuple[Tensor, Tensor]:
            y = model.twice(model.relu(model.twice(y)))
            return model.head(y.mean((2, 3))), y

        torch.testing.assert_close(rest(y), floats)
        for name, value in (("body", y_body), ("add", y_add)):
            expected = Noise()
            for a, b in zip(floats, rest(value), strict=True):
                expected.add(a, b)
            assert alone[name].noise == pytest.approx(expected.noise, rel=1e-3), name


def test_nothing_quantized_means_no_noise() -> None:
    model, x = branches()
    for slot in slots(model):
        slot.mode = "float"
    slots(model)[0].mode = "quantize"
    found = isolated(model, [x])
    assert found["stem"].sqnr_db < math.inf
    rest = {name: noise for name, noise in found.items() if name != "stem"}
    assert all(noise.noise == 0.0 and noise.signal > 0.0 for noise in rest.values())
    assert sensitivity(found)["stem"] == 1.0
    assert sensitivity(rest) == dict.fromkeys(rest, 0.0)


def test_layers_of_a_graph() -> None:
    model, _ = branches()
    found = {x.name: x for x in quantized_layers(model)}
    assert list(found) == ["stem", "pool", "body", "add", "twice", "twice:2", "mean", "head"]
    assert [n.name for n in found["stem"].chain] == ["stem", "relu"]
    assert found["pool"].moves
    assert not found["mean"].moves
    assert [len(x.inputs) for x in found.values()] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert [name for name, x in found.items() if x.results] == ["twice:2", "head"]
    assert found["twice"].weight is found["twice:2"].weight
    assert set(isolated(model, [torch.randn(2, 3, 8, 8)])) == set(found) - {"pool"}


def test_a_fused_residual_has_one_quantized_operand() -> None:
    model, _ = branches("openvino-cpu")
    found = {x.name: x for x in quantized_layers(model)}
    assert len(found["add"].inputs) == 1
    assert found["body"].output is found["body"].node


def test_ranking_starts_with_the_worst() -> None:
    low, high, exact = Noise(), Noise(), Noise()
    x = torch.ones(8)
    low.add(x, x * 1.5)
    high.add(x, x * 1.01)
    exact.add(x, x)
    assert ranking({"exact": exact, "high": high, "low": low}) == ["low", "high", "exact"]


def test_more_bits_less_noise() -> None:
    noise = []
    for bits in (2, 4, 8):
        model, x = mlp(bits=bits)
        noise.append(isolated(model, [x])["2"].sqnr_db)
    assert noise == sorted(noise)


def test_splitting_the_data_changes_nothing() -> None:
    model, x = branches()
    whole, parts = accumulated(model, [x]), accumulated(model, [x[:5], x[5:7], x[7:]])
    for name in whole:
        assert parts[name].noise == pytest.approx(whole[name].noise, rel=1e-4)


def test_pieces_are_small_and_stop_at_the_limit() -> None:
    x = torch.arange(50.0)[:, None]
    sizes = [b.size for b in pieces([x[:40], x[40:]], samples=45)]
    assert sizes == [16, 16, 8, 5]
    assert max(sizes) <= TOGETHER
    assert torch.equal(torch.cat([b.inputs[0] for b in pieces([(x, x[:, 0])])]), x)
    assert [b.size for b in pieces([x], samples=3)] == [3]


def test_steps_are_reported() -> None:
    model, x = mlp()
    steps = []
    isolated(model, [x], samples=32, progress=lambda _, done, total: steps.append((done, total)))
    assert steps == [(i + 1, 4) for i in range(4)]


def test_data_that_is_not_finite_names_the_batch() -> None:
    model, x = mlp()
    with pytest.raises(CalibrationError, match="batch 1 of the analysis data holds NaN"):
        accumulated(model, [x, x * math.nan])


def test_a_dynamic_quantizer() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 6)
    model = quantize(net, [x], target="tvm", activation_quantizer="dynamic")
    assert 20 < accumulated(model, [x])["2"].sqnr_db < 60
    assert set(isolated(model, [x])) == {"0", "2"}
