"""Which instructions the CPU has, and how its libraries are kept from using the newer ones.

Told from the operating system and the environment, not from OpenVINO: it is the oracle for what OpenVINO is said to do.
"""

from pathlib import Path

LEVELS: dict[str, tuple[str, dict[str, str]]] = {
    "AVX2": ("avx2", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "AVX512_CORE": ("avx512bw", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}),
    "AVX512_CORE_VNNI": ("avx512_vnni", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1"}),
    "AVX512_CORE_BF16": ("avx512_bf16", {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"}),
}
"""By oneDNN's name, ascending: the flag in /proc/cpuinfo that a CPU must have, and what limits torch and MKL alike."""
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
    """What a wish for bf16 comes to at `level` on this CPU, which has AVX-512; None where OpenVINO has no kernel.

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
