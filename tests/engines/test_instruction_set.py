from pathlib import Path

import pytest

from isobit.engines.instruction_set import instruction_set, saturates_pairs

FLAGS = {
    "flags : fpu sse4_1 avx avx2": ("AVX2", True),
    "flags : sse4_1 avx avx2 avx_vnni": ("AVX2-VNNI", False),
    "flags : avx2 avx512f avx512bw": ("AVX512", True),
    "flags : avx2 avx512bw avx512_vnni": ("AVX512-VNNI", False),
    "flags : avx2 avx_vnni avx512bw avx512_vnni amx_tile amx_int8": ("AVX512-VNNI, AMX", False),
    "flags : fpu sse4_1": ("SSE4.1", True),
    "Features : fp asimd evtstrm asimddp i8mm": ("NEON, dot product, I8MM", False),
}


@pytest.mark.parametrize("line", FLAGS)
def test_reads_the_flags(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{line}\n\nprocessor : 1\n{line}\n")
    name, saturates = FLAGS[line]
    assert instruction_set(cpuinfo=path) == name
    assert saturates_pairs(name) is saturates


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("AVX2", "AVX2"),
        ("avx2_vnni", "AVX2-VNNI"),
        ("AVX512_CORE", "AVX512"),
        ("AVX512_CORE_VNNI", "AVX512-VNNI"),
        ("SSE41", "SSE4.1"),
        ("DEFAULT", "AVX512-VNNI, AMX"),
    ],
)
def test_onednn_can_be_limited(limit: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("flags : avx2 avx_vnni avx512bw avx512_vnni amx_int8\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert instruction_set(cpuinfo=path) == expected
    assert instruction_set(onednn=False, cpuinfo=path) == "AVX512-VNNI, AMX"


def test_without_cpuinfo(tmp_path: Path) -> None:
    assert instruction_set(cpuinfo=tmp_path / "nothing").endswith("instructions unknown")
