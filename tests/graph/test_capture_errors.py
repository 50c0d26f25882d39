"""What cannot be captured is refused with the line of the user's code and with what to do."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import CaptureError, ModelError
from isobit.graph.capture import capture


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if y.sum() > 0:  # the gate
            y = y * 2
        return self.head(y)


class Baked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(torch.arange(int(x.shape[0])).tolist())
        return self.fc(x).reshape(n, 2, 2)


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 16) + 1


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * 2 if x.shape[0] > 8 else y


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().mean())


def test_data_dependent_branch_names_line_and_parts() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Gated(), torch.zeros(1, 4))
    text = str(caught.value)
    assert "if y.sum() > 0:  # the gate" in text
    assert f"{Path(__file__).name}:" in text
    assert "model.features and model.head" in text
    assert "plug them back" in text


def test_the_parts_of_it_can_be_captured_and_plugged_back() -> None:
    net = Gated()
    other = Gated()
    other.load_state_dict(net.state_dict())
    other.features = capture(net.features, torch.zeros(1, 4))
    other.head = capture(net.head, torch.zeros(1, 4))
    x = torch.randn(5, 4)
    assert torch.equal(other(x), net(x))
    assert list(other.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("net", [Counted(), Baked()], ids=["choice", "length"])
def test_a_baked_batch_size_is_refused(net: nn.Module) -> None:
    with pytest.raises(CaptureError, match="baked in"):
        capture(net, torch.zeros(1, 4))


def test_a_baked_batch_size_names_its_line() -> None:
    with pytest.raises(
        CaptureError, match=r"baked in at .*test_capture_errors\.py:\d+: n = len\(torch[\s\S]*batch = 13 only"
    ):
        capture(Baked(), torch.zeros(1, 4))


def test_a_network_for_one_batch_size_says_so() -> None:
    with pytest.raises(CaptureError, match=r"(?s)works with 2 samples only.*x\.reshape\(1, 16\).*dynamic_batch=False"):
        capture(OneSize(), torch.zeros(2, 2, 4))
    x = torch.randn(2, 2, 4)
    assert torch.equal(capture(OneSize(), x, dynamic_batch=False)(x), OneSize()(x))


@pytest.mark.parametrize("check", [True, False])
def test_an_example_that_does_not_fit_gives_its_shape(check: bool) -> None:
    with pytest.raises(CaptureError, match=r"\(1, 5\) float32"):
        capture(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 5), check=check)


def test_a_single_layer_is_a_network() -> None:
    for net, shape in ((nn.Linear(4, 4), (1, 4)), (nn.BatchNorm2d(3), (1, 3, 2, 2)), (nn.ReLU(), (1, 4))):
        captured = capture(net, torch.zeros(shape))
        x = torch.randn(4, *shape[1:])
        assert torch.equal(captured.train()(x), net.train()(x))
        assert list(captured.state_dict()) == list(net.state_dict())
        for key, value in net.state_dict().items():
            assert torch.equal(captured.state_dict()[key], value)


def test_too_few_inputs() -> None:
    with pytest.raises(CaptureError, match="does not fit the forward of Bilinear"):
        capture(nn.Bilinear(2, 2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(
    "example", [(), 3, torch.tensor(1.0), torch.zeros(0, 4)], ids=["none", "int", "scalar", "empty"]
)
def test_examples_without_samples(example: object) -> None:
    with pytest.raises(CaptureError, match="the example"):
        capture(nn.Linear(4, 4), example)  # type: ignore[arg-type]


def test_not_a_module() -> None:
    with pytest.raises(ModelError, match=r"expected an nn\.Module, got function"):
        capture(F.relu, torch.zeros(1, 4))  # type: ignore[arg-type]


def test_wrapped_networks_are_refused_by_name() -> None:
    net = nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"torch\.compile"):
        capture(torch.compile(net, backend="eager"), torch.zeros(1, 4))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"model\.module"):
        capture(nn.DataParallel(net), torch.zeros(1, 4))


def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(ModelError, match=r"weight.*run it once"):
        capture(nn.LazyLinear(4), torch.zeros(1, 4))


def test_a_network_that_cannot_be_copied() -> None:
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo: object) -> "Stuck":
            raise RuntimeError("no")

    with pytest.raises(ModelError, match="deep-copied"):
        capture(Stuck(4, 4), torch.zeros(1, 4))


def test_leaving_torch_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"(?s)numpy\(\)\.mean"):
        capture(Numpy(), torch.zeros(1, 4))


def test_refusals_name_the_module_and_leave_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), Gated())
    with pytest.raises(
        CaptureError, match=r"in model\.1 \(Gated\)[\s\S]*such as model\.0, .*; model\.1 stays as it is"
    ):
        capture(net, torch.zeros(1, 4))
    assert capfd.readouterr() == ("", "")


def test_a_choice_by_batch_size_is_noted_where_the_check_cannot_see_it() -> None:
    class Large(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] > 64 else x

    captured = capture(Large(4, 4), torch.zeros(1, 4))
    (note,) = captured.record.notes
    assert "batch <= 64" in note
    assert "return x * 2 if x.shape[0] > 64 else x" in note


def test_a_part_whose_name_a_graph_module_needs() -> None:
    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.code(x)

    with pytest.raises(ModelError, match=r"Auto\.code has a name that .* needs: rename it"):
        capture(Auto(), torch.zeros(1, 4))
