"""Which integer instructions this processor has: they decide whether pairs of products can saturate."""

import os
import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_LEVELS = (("avx2", "AVX2"), ("avx512bw", "AVX512"), ("avx_vnni", "AVX2-VNNI"), ("avx512_vnni", "AVX512-VNNI"))
# Highest level and AMX that each value of ONEDNN_MAX_CPU_ISA allows (oneDNN developer guide, "CPU dispatcher control").
_ONEDNN = {
    "SSE41": ((), False),
    "AVX": ((), False),
    "AVX2": (("AVX2",), False),
    "AVX2_VNNI": (("AVX2", "AVX2-VNNI"), False),
    "AVX2_VNNI_2": (("AVX2", "AVX2-VNNI"), False),
    "AVX512_CORE": (("AVX2", "AVX512"), False),
    "AVX512_CORE_VNNI": (("AVX2", "AVX512", "AVX2-VNNI", "AVX512-VNNI"), False),
    "AVX512_CORE_BF16": (("AVX2", "AVX512", "AVX2-VNNI", "AVX512-VNNI"), False),
    "AVX512_CORE_FP16": (("AVX2", "AVX512", "AVX2-VNNI", "AVX512-VNNI"), False),
}


def instruction_set(*, onednn: bool = True, cpuinfo: Path = _CPUINFO) -> str:
    """The instructions that decide integer arithmetic, such as `AVX512-VNNI, AMX`.

    `onednn` says that the engine computes with oneDNN, whose environment variable ONEDNN_MAX_CPU_ISA then lowers
    what is used; ONNX Runtime's own kernels do not read it.
    """
    machine = platform.machine()
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    if match is None:
        return f"{machine}, instructions unknown"
    flags = set(match.group(1).split())
    if {"asimd", "neon"} & flags:
        return ", ".join(["NEON", *(n for f, n in (("asimddp", "dot product"), ("i8mm", "I8MM")) if f in flags)])
    allowed = {name for flag, name in _LEVELS if flag in flags}
    amx = "amx_int8" in flags
    if onednn and (limit := _ONEDNN.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper())) is not None:
        allowed, amx = allowed & set(limit[0]), False
    best = [name for _, name in _LEVELS if name in allowed][-1:] or ["SSE4.1"]
    return ", ".join([*best, *(["AMX"] if amx else [])])


def saturates_pairs(instructions: str) -> bool:
    """Whether u8 · s8 products are summed in pairs of 16 bits with saturation (x86 `vpmaddubsw`, before VNNI).

    >>> saturates_pairs("AVX2"), saturates_pairs("AVX512-VNNI, AMX"), saturates_pairs("NEON, dot product")
    (True, False, False)
    """
    return instructions.split(",", maxsplit=1)[0] in ("SSE4.1", "AVX2", "AVX512")
