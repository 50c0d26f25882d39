"""Powell's method against closed forms and scipy's."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize, rosen

from isobit.core.powell import powell

Array = NDArray[np.float64]


def quadratic(condition: float) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    return basis @ np.diag(np.geomspace(1, condition, 5)) @ basis.T, generator.normal(size=5)


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_a_quadratic_has_its_minimum_where_the_gradient_is_zero(condition: float) -> None:
    a, target = quadratic(condition)
    found, value, spent = powell(
        lambda x: float((x - target) @ a @ (x - target)), np.zeros(5), step=0.5, evaluations=2000, tolerance=1e-12
    )
    np.testing.assert_allclose(found, target, atol=1e-3)
    assert value < 1e-5
    assert spent < 4000


def test_about_as_good_as_scipy_with_as_many_evaluations() -> None:
    start = np.array([-1.2, 1.0, 0.8])
    theirs = minimize(rosen, start, method="Powell", options={"maxfev": 800})
    _, value, spent = powell(lambda x: float(rosen(x)), start, step=0.3, evaluations=800, tolerance=0.0)
    assert spent <= 800
    assert value < max(theirs.fun, 1e-2)


@pytest.mark.parametrize("evaluations", [1, 2, 7, 30])
def test_never_more_evaluations_and_never_worse_than_the_start(evaluations: int) -> None:
    calls: list[float] = []

    def bumpy(x: Array) -> float:
        calls.append(float(np.abs(x - 0.3).sum() + np.sin(40 * x).sum()))
        return calls[-1]

    found, value, spent = powell(bumpy, np.zeros(4), step=1.0, evaluations=evaluations)
    assert spent == len(calls) <= evaluations
    assert value == min(calls) <= calls[0]
    assert float(np.abs(found - 0.3).sum() + np.sin(40 * found).sum()) == value


def test_a_flat_function_ends_at_once() -> None:
    found, value, spent = powell(lambda _: 2.0, np.ones(3), step=1.0, evaluations=1000)
    assert found.tolist() == [1.0, 1.0, 1.0]
    assert value == 2.0
    assert spent < 40
