"""All benchmarks, a line each: what was measured, what is wanted. Machines are noisy: read ratios, not seconds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import torch

NAMES = (
    "typo",
    "extraction",
    "processes",
    "probe",
    "sweep",
    "fine_tune",
    "attack",
    "detect",
    "rmd",
    "knn",
    "knn_memory",
    "peers",
    "metrics",
    "intervals",
    "evaluation",
    "store",
)

print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}", flush=True)
for name in NAMES:
    subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)
if torch.cuda.is_available():
    subprocess.run([sys.executable, "-m", "bench.gpu"], check=True)
else:
    print("No GPU here: bench.gpu is left out")
