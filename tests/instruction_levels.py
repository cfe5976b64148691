"""Runs tests at several levels of CPU instructions: python -m tests.instruction_levels [arguments of pytest].

OpenVINO and torch choose other kernels on CPUs with fewer instructions. Environment variables hold their libraries to a
level, in every child process too. Levels that this CPU does not reach are skipped by name. The exit code is 0 if the
tests passed at every level that was run.

It cannot show everything: OpenVINO's products in float32 go through MLAS, which no variable limits, and instructions
that the CPU lacks (bf16, AMX) are not emulated. On a CPU with AVX2 alone OpenVINO drops a hint for bf16; here, at the
level AVX2, it has no kernel for it instead.
"""

import os
import subprocess
import sys
import time

from tests.support.instructions import LEVELS, cpu_flags, environment_of

RUN = ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", None)
"""None is the CPU as it is."""
LIMITS = {name for level in LEVELS for name in environment_of(level)}


def main(arguments: list[str]) -> int:
    own = {name: value for name, value in os.environ.items() if name not in LIMITS}
    results: list[tuple[str, str, float]] = []
    for level in RUN:
        if level is not None and LEVELS[level][0] not in cpu_flags():
            results.append((level, "skipped: this CPU does not reach it", 0.0))
            continue
        name = level or "no limit"
        print(f"\n=== {name}", flush=True)
        start = time.monotonic()
        limits = environment_of(level) if level else {}
        code = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=own | limits, check=False).returncode
        results.append((name, "passed" if code == 0 else f"FAILED with exit code {code}", time.monotonic() - start))
    print(f"\n{'level':18} {'seconds':>8}  result")
    for name, result, seconds in results:
        print(f"{name:18} {seconds:8.0f}  {result}")
    return int(any(result.startswith("FAILED") for _, result, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
