"""The instructions that the CPU has, and the environment that keeps libraries from using the newer ones.

The operating system and the environment tell them, not OpenVINO: the module is the oracle for tests of OpenVINO.
"""

from pathlib import Path

LEVELS: dict[str, tuple[str, dict[str, str]]] = {
    "AVX2": ("avx2", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "AVX512_CORE": ("avx512bw", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}),
    "AVX512_CORE_VNNI": ("avx512_vnni", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1"}),
    "AVX512_CORE_BF16": ("avx512_bf16", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"}),
}
"""Levels by oneDNN's name, ascending: the flag in /proc/cpuinfo that a CPU must have, and the environment variables
that limit torch and MKL to the same level."""
NATIVE_BF16 = {"avx512_bf16", "amx_bf16"}
VNNI = {"avx512_vnni", "avx_vnni"}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's instructions, as Linux names them; empty where it is no x86 CPU under Linux."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def environment_of(level: str) -> dict[str, str]:
    """The environment in which every library of a process, and of its children, stays at `level`."""
    return {"ONEDNN_MAX_CPU_ISA": level, **LEVELS[level][1]}


def expected_bf16(level: str | None) -> str | None:
    """The precision that the hint `bf16` leads to at `level` on this CPU, which has AVX-512; None without a kernel.

    Without a level, the CPU's own instructions count.
    """
    order = list(LEVELS)
    if level is None or level not in order:
        return "bf16" if NATIVE_BF16 & cpu_flags() else "emulated bf16"
    if order.index(level) >= order.index("AVX512_CORE_BF16"):
        return "bf16"
    return "emulated bf16" if order.index(level) >= order.index("AVX512_CORE") else None


def int8_saturates(level: str | None) -> bool:
    """Whether products of bytes overflow 16 bits at `level` on this CPU: so they do on x86 without VNNI."""
    flags = cpu_flags()
    return bool(flags) and (level in ("AVX2", "AVX512_CORE") or not VNNI & flags)
