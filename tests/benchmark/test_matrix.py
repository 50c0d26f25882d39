"""A matrix of runs: which there are, which are done again, and the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from isobit.benchmark.matrix import Axes, Matrix, Run, markdown, run_matrix, runs
from isobit.core.errors import IsobitError, SettingError, UnknownNameError, UnsupportedError
from isobit.recipes.codec import encode
from isobit.recipes.recipe import Recipe
from isobit.recipes.training import TrainingRecipe

RECIPE = TrainingRecipe(network="net.py:net", data="digits:train", evaluation="digits:test")


def matrix(**axes: Any) -> Matrix:
    return Matrix(recipe=RECIPE, axes=Axes(**{"method": ("lsq",), **axes}))


def test_every_combination_once() -> None:
    found = runs(matrix(method=("lsq", "pact"), bits=(4, (2, 8)), target=("academic", "tensorrt"), seed=(0, 1, 2)))
    assert len(found) == len({run.name for run in found}) == 24
    last = found[-1]
    assert last.name == "pact-w2a8-tensorrt-seed2"
    assert last.recipe.quantization == Recipe(
        target="tensorrt", method="pact", weight_bits=2, activation_bits=8, seed=2
    )
    assert last.recipe.training.seed == 2
    assert [run.name for run in runs(matrix(bn_fold=(-1, 4)))] == [
        "lsq-w4a4-academic-fold-1-seed0",
        "lsq-w4a4-academic-fold4-seed0",
    ]


@pytest.mark.parametrize(
    ("axes", "error", "says"),
    [
        ({"method": ("lsqq",)}, UnknownNameError, "did you mean 'lsq'"),
        ({"target": ("tensorRT",)}, UnknownNameError, "did you mean 'tensorrt'"),
        ({"bits": (9,)}, SettingError, "1 to 8 bits, got 9"),
        ({"bn_fold": (5,)}, SettingError, "bn_fold has to be one of -1, 0, 1, 2, 3, 4"),
    ],
)
def test_a_cell_that_cannot_be_made_is_an_error_before_any_run(
    axes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        run_matrix(matrix(**axes), tmp_path, worker=no_worker)


def no_worker(run: Run, folder: Path) -> None:
    raise AssertionError(f"{run.name} was run")


def writing(run: Run, folder: Path) -> None:
    q = run.recipe.quantization
    assert q is not None
    found = {"not_converged": "", "last": 90.0 + q.seed, "best": 91.0 + q.seed, "seconds": 10.0}
    if q.method == "dorefa":
        found = {"not_converged": "the loss became nan", "last": None, "best": None, "seconds": 1.0}
    (folder / "record.json").write_text(json.dumps({"recipe": encode(run.recipe), **found}))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    done = []

    def counting(run: Run, folder: Path) -> None:
        if len(done) == 3:
            raise IsobitError("killed")
        writing(run, folder)
        done.append(run.name)

    wanted = matrix(method=("lsq", "dorefa"), seed=(0, 2))
    with pytest.raises(IsobitError, match="killed"):
        run_matrix(wanted, tmp_path, worker=counting)
    records = run_matrix(wanted, tmp_path, worker=writing)
    assert [r["run"] for r in records] == [run.name for run in runs(wanted)]
    assert run_matrix(wanted, tmp_path, worker=no_worker) == records
    assert json.loads((tmp_path / "records.json").read_text()) == records


def test_the_folder_of_another_matrix_is_refused(tmp_path: Path) -> None:
    run_matrix(matrix(), tmp_path, worker=writing)
    other = Matrix(recipe=TrainingRecipe(network="b.py:b", data="d", evaluation="e"), axes=Axes(method=("lsq",)))
    with pytest.raises(SettingError, match="holds the result of another recipe"):
        run_matrix(other, tmp_path, worker=no_worker)


def test_the_table(tmp_path: Path) -> None:
    records = run_matrix(matrix(method=("lsq", "dorefa"), seed=(0, 2)), tmp_path, worker=writing)
    assert markdown(records, float_accuracy=92.5).splitlines() == [
        "| method | bits | target | folding | last | best | float - last | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| lsq | W4A4 | academic | target's | 91.00 ± 1.00 | 92.00 ± 1.00 | 1.50 | 10 |",
        "| dorefa | W4A4 | academic | target's | NC | NC | | |",
    ]


def test_a_recipe_names_quantizers_once() -> None:
    with pytest.raises(SettingError, match="give either method, or"):
        Recipe(target="academic", method="lsq", weight_quantizer="lsq")
    with pytest.raises(UnsupportedError, match="1 signed bit"):
        Recipe(target="academic", method="lsq", weight_bits=1).preparing().weight.build(
            Recipe(target="academic", weight_bits=1).profile().weight, role="weight"
        )
