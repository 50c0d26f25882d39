"""Top-1 against scikit-learn's count."""

import pytest
import torch
from torch import nn

from isobit.analysis.accuracy import accuracy
from isobit.core.errors import CalibrationError


def test_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 4), torch.randn(103, 5), torch.randint(0, 4, (103,))
    data = list(zip(x.split(10), y.split(10), strict=True))
    right, total = accuracy(model, data)
    assert (right, total) == (metrics.accuracy_score(y, model(x).argmax(1), normalize=False), 103)


def test_runs_in_eval_mode_and_restores_each_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
    model.train()
    model[0].eval()
    data = [(torch.eye(3), torch.arange(3))]
    assert accuracy(model, data) == (3, 3)  # dropout would lose some
    assert [m.training for m in model.modules()] == [True, False, True]
    assert model[0].num_batches_tracked == 0


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(CalibrationError, match="no labels"):
        accuracy(model, [torch.zeros(2, 3)])
    assert model.training


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"\(2,\) for labels of shape \(3,\)"):
        accuracy(nn.Identity(), [(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))])
