"""A matrix of runs: which there are, which are done again, and the table."""

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isobit.algorithms.training import Hardware
from isobit.benchmark.matrix import Axes, Matrix, markdown, run_matrix, runs
from isobit.benchmark.workers import Done, Job
from isobit.core.errors import SettingError, UnknownNameError, UnsupportedError
from isobit.recipes.codec import encode, read_recipe
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


def test_unsynchronized_folding_is_a_value_of_the_axis_where_there_are_several_processes(tmp_path: Path) -> None:
    base = matrix(bn_fold=(4, "4*"))
    two = replace(base, recipe=replace(base.recipe, hardware=Hardware(accelerator="cpu", devices=2)))
    usual, apart = runs(two)
    assert apart.name == "lsq-w4a4-academic-fold4star-seed0"
    assert apart.recipe.quantization == replace(usual.recipe.quantization, bn_synchronized=False)
    outcome = run_matrix(two, tmp_path, workers=writing)
    assert [line.split(" | ")[3] for line in markdown(outcome.records).splitlines()[2:]] == ["4", "4*"]
    four = replace(apart.recipe, hardware=Hardware(accelerator="cpu", devices=4))
    assert usual.recipe.same_result(replace(usual.recipe, hardware=four.hardware))
    assert not apart.recipe.same_result(four)


@pytest.mark.parametrize(
    ("axes", "error", "says"),
    [
        ({"method": ("lsqq",)}, UnknownNameError, "did you mean 'lsq'"),
        ({"target": ("tensorRT",)}, UnknownNameError, "did you mean 'tensorrt'"),
        ({"bits": (9,)}, SettingError, "1 to 8 bits, got 9"),
        ({"bn_fold": (5,)}, SettingError, "bn_fold has to be one of -1, 0, 1, 2, 3, 4"),
        ({"bn_fold": ("3*",)}, SettingError, r"a number or '4\*', got '3\*'"),
        ({"bn_fold": ("4*",)}, SettingError, r"several processes alone: set recipe.hardware.devices"),
    ],
)
def test_a_cell_that_cannot_be_made_is_an_error_before_any_run(
    axes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        run_matrix(matrix(**axes), tmp_path, workers=no_workers)


def no_workers(jobs: Sequence[Job]) -> Generator[Done]:
    raise AssertionError(f"{[job.name for job in jobs]} were run")
    yield


def writing(jobs: Sequence[Job]) -> Generator[Done]:
    """Writes the records that the runs would write, the last one first."""
    for job in reversed(jobs):
        folder = Path(job.folder)
        recipe = read_recipe(TrainingRecipe, folder / "matrix_recipe.json")
        q = recipe.quantization
        assert q is not None
        assert job.command[-3:] == (str(folder / "matrix_recipe.json"), "-o", job.folder)
        found = {"not_converged": "", "last": 90.0 + q.seed, "best": 91.0 + q.seed, "seconds": 10.0}
        if q.method == "dorefa":
            found = {"not_converged": "the loss became nan", "last": None, "best": None, "seconds": 1.0}
        (folder / "record.json").write_text(json.dumps({"recipe": encode(recipe), **found}))
        yield Done(job.name)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    def killed(jobs: Sequence[Job]) -> Generator[Done]:
        for number, done in enumerate(writing(jobs)):
            if number == 3:
                raise KeyboardInterrupt
            yield done

    wanted = matrix(method=("lsq", "dorefa"), seed=(0, 2))
    with pytest.raises(KeyboardInterrupt):
        run_matrix(wanted, tmp_path, workers=killed)
    asked: list[str] = []

    def asking(jobs: Sequence[Job]) -> Generator[Done]:
        asked.extend(job.name for job in jobs)
        yield from writing(jobs)

    outcome = run_matrix(wanted, tmp_path, workers=asking)
    assert asked == []  # the fourth was written before the kill
    assert not outcome.failed
    assert [r["run"] for r in outcome.records] == [run.name for run in runs(wanted)]
    assert run_matrix(wanted, tmp_path, workers=no_workers) == outcome
    assert json.loads((tmp_path / "records.json").read_text()) == outcome.records


def test_one_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    def failing(jobs: Sequence[Job]) -> Generator[Done]:
        first, *others = jobs
        yield Done(first.name, "LSQ is not defined for 1 signed bit")
        lost, *others = others
        yield Done(lost.name)  # says that it is done, and wrote nothing here
        yield from writing(others)

    wanted, steps = matrix(seed=(0, 1, 2, 3)), []
    outcome = run_matrix(wanted, tmp_path, workers=failing, progress=lambda _, done, total: steps.append((done, total)))
    assert [r["run"] for r in outcome.records] == ["lsq-w4a4-academic-seed2", "lsq-w4a4-academic-seed3"]
    assert outcome.failed["lsq-w4a4-academic-seed0"] == "LSQ is not defined for 1 signed bit"
    assert "need a folder that all of them share" in outcome.failed["lsq-w4a4-academic-seed1"]
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    again = run_matrix(wanted, tmp_path, workers=writing)
    assert len(again.records) == 4 and not again.failed


def test_the_folder_of_another_matrix_is_refused(tmp_path: Path) -> None:
    run_matrix(matrix(), tmp_path, workers=writing)
    other = Matrix(recipe=TrainingRecipe(network="b.py:b", data="d", evaluation="e"), axes=Axes(method=("lsq",)))
    with pytest.raises(SettingError, match="holds the result of another recipe"):
        run_matrix(other, tmp_path, workers=no_workers)
    record = tmp_path / "lsq-w4a4-academic-seed0" / "record.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "recipe": {**found["recipe"], "a_key_of_another_version": 1}}))
    with pytest.raises(SettingError, match="holds the result of another recipe"):
        run_matrix(matrix(), tmp_path, workers=no_workers)


def test_a_record_without_a_key_that_came_later_is_still_its_own(tmp_path: Path) -> None:
    run_matrix(matrix(), tmp_path, workers=writing)
    record = tmp_path / "lsq-w4a4-academic-seed0" / "record.json"
    found = json.loads(record.read_text())
    del found["recipe"]["training"]["label_smoothing"]
    record.write_text(json.dumps(found))
    assert len(run_matrix(matrix(), tmp_path, workers=no_workers).records) == 1


def test_the_table(tmp_path: Path) -> None:
    outcome = run_matrix(matrix(method=("lsq", "dorefa"), seed=(0, 2)), tmp_path, workers=writing)
    assert markdown(outcome.records, float_accuracy=92.5).splitlines() == [
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
