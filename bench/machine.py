"""Tells what a machine is, and takes out of a text whose machine it is."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from clip_ood.versions import versions

PATH = re.compile(r"(?<![\w/.])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\":;,()\[\]{}<>|]+)+[/\\]?")


def describe() -> dict[str, Any]:
    """Returns the cards with their memory, what drives them, the CPU and the versions; nothing that names the machine or its user."""
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "cards": [{"name": each.name, "memory_gib": round(each.total_memory / 2**30, 1)} for each in found],
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if found else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if found and has_nccl else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions("lightning"),
    }


def nameless(text: str) -> str:
    """Returns a text without absolute paths, and without the names of this machine and its user.

    >>> nameless("OSError: /home/me/runs/x.ckpt is full")
    'OSError: <path> is full'
    """
    return without(PATH.sub("<path>", text), [platform.node(), platform.node().partition(".")[0], *_user()])


def without(text: str, names: Iterable[str]) -> str:
    """Returns a text with <name> in the place of each of the names, wherever one is a word of its own."""
    for name in filter(None, names):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text)
    return text


def _user() -> list[str]:
    try:
        return [getpass.getuser()]
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return []


def _driver() -> str | None:
    """Returns the version of NVIDIA's driver, or None where its program is missing or does not answer."""
    if not (program := shutil.which("nvidia-smi")):
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split()
    return told[0] if told else None


def _cpu() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8", errors="replace").splitlines() if known.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
