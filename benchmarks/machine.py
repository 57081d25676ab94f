"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch


def describe() -> str:
    """CPU or GPU, cores, its speed in float32 matrix products, and versions, in one line."""
    cpu = platform.processor() or platform.machine()
    for line in _cpu_info():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    parts = [cpu, f"{os.cpu_count()} cores", f"{matmul_gflops():.0f} GFLOP/s float32"]
    if "avx512_bf16" in "".join(_cpu_info()):
        parts.append(f"{matmul_gflops(torch.bfloat16):.0f} bfloat16")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}"])


def matmul_gflops(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Speed of a square matrix product on the CPU with all of torch's threads."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(12):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best / 1e9


def _cpu_info() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []
