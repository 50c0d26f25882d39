"""Times are found again by what they depend on, and a file that is no cache is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from isobit.analysis.latency_cache import Held, Key, LatencyCache, default_cache, processor
from isobit.core.errors import ArtifactError

KEY = Key(
    engine="e", version="1", instruction_set="VNNI", processor="p", clock="wall", threads=1, batch=1, bits="W8A8",
    layer="abc",
)  # fmt: skip
TIME = Held(ms=0.25, runs=20, in_float=("Conv",), what="Conv 3 × 3")


def test_a_time_is_found_by_all_that_it_depends_on(tmp_path: Path) -> None:
    LatencyCache(tmp_path / "new" / "cache.json").keep({KEY: TIME})
    cache = LatencyCache(tmp_path / "new" / "cache.json")
    assert cache.find(KEY, runs=20) == TIME
    assert cache.find(KEY, runs=21) is None, "it was measured with fewer runs"
    others = {
        "engine": "x", "version": "2", "instruction_set": "AVX2", "processor": "q", "clock": "cpu", "threads": 2,
        "batch": 8, "bits": "float", "layer": "abd",
    }  # fmt: skip
    for name, value in others.items():
        assert cache.find(replace(KEY, **{name: value}), runs=1) is None, name  # type: ignore[arg-type]


def test_two_processes_keep_each_others_times(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    first, second = LatencyCache(path), LatencyCache(path)
    first.keep({KEY: TIME})
    other = replace(KEY, batch=8)
    second.keep({other: TIME})
    assert LatencyCache(path).find(KEY, runs=1) == LatencyCache(path).find(other, runs=1) == TIME
    assert [p.name for p in tmp_path.iterdir()] == ["cache.json"], "no temporary file is left"


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = LatencyCache()
    cache.keep({KEY: TIME})
    assert cache.find(KEY, runs=1) == TIME
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2, "times": {}}', '{"format": 1, "times": {"a": {"ms": "x"}}}', '{"format": 1}']
)
def test_a_file_that_is_no_cache(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cache.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"cache\.json .*Delete it"):
        LatencyCache(path)


def test_where_it_lies_and_on_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "isobit" / "latency.json"
    assert processor()
