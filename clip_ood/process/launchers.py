"""Determines the number of processes from the Trainer's keys; a launcher counts only if it has started as many.

Variables of launchers remain in the environment after they are done: in a shell of salloc, in a container, or in a script that
another training has started. Lightning and torch believe them, whatever the number of processes. A script therefore removes,
before either is imported, every such variable of a launcher that has not started exactly the requested processes; Lightning then
starts those itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from clip_ood.errors import ConfigError

PARENT = "CLIP_OOD_PARENT"  # the process whose Trainer starts the others
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
BY_HAND = ("NODE_RANK", *ADDRESS)  # what several nodes need without a launcher
RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE")
SLURM = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
PREFIXES = ("TORCHELASTIC_", "JSM_NAMESPACE_", "OMPI_", "PMI_", "PMIX_")


@dataclass(frozen=True)
class Launcher:
    """A launcher that started this process as one of several: its name, the variable that identifies it, and all its variables.

    A name that ends in _ stands for all variables that begin so.
    """

    name: str
    processes: int
    sign: str
    variables: tuple[str, ...]


def settle(trainer: Mapping[str, Any]) -> None:
    """Removes the variables of launchers that did not start the processes which the Trainer's keys ask for.

    Raises: ConfigError if a launcher started several processes, but not as many, and for several nodes without a launcher.
    """
    found, nodes = _launchers(os.environ), trainer.get("num_nodes", 1)
    wanted = processes(trainer) if found else nodes  # torch is asked for `auto` only if a launcher was found
    launcher = next((each for each in found if each.processes == wanted), None)
    if launcher is None and found and wanted > 1:
        raise ConfigError(_other_number(found[0], wanted))
    if launcher is None and nodes > 1:
        _check_by_hand(nodes)
    kept = launcher.variables if launcher else BY_HAND if nodes > 1 else ()
    for name in list(os.environ):
        if _among(name, (*RANK, *ADDRESS, *SLURM, *PREFIXES)) and not _among(name, kept):
            del os.environ[name]
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # if another process has died, a message says so without C++ frames
    if launcher is None:
        os.environ[PARENT] = str(os.getpid())
    elif launcher.name == "srun":
        _agree(wanted, nodes)


def started_by() -> int | None:
    """Returns the process that has started this one as one of several beside itself, or None.

    Raises: SystemExit if that process has died already, so that none waits for this one.
    """
    if os.environ.get("LOCAL_RANK", "0") in ("", "0") or not (parent := os.environ.get(PARENT, "")).isdecimal():
        return None
    if int(parent) == os.getppid():
        return int(parent)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        sys.exit(f"error: the first process of the run ({parent}) has died.")
    except PermissionError:
        pass  # another user's process has this number now
    return None


def processes(trainer: Mapping[str, Any]) -> int:
    """Returns the number of processes that the Trainer's keys ask for, on all nodes. Only `auto` and -1 ask torch for devices."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:
        devices = [each for each in devices.split(",") if each]
    if isinstance(devices, list):
        count = len(devices)
    else:
        count = _available(trainer) if str(devices) in ("auto", "-1") else int(devices)
    return count * trainer.get("num_nodes", 1)


def _available(trainer: Mapping[str, Any]) -> int:
    if trainer.get("accelerator") in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _launchers(environment: Mapping[str, str]) -> list[Launcher]:
    """Returns the launchers that say they started this process as one of several."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else 0

    def whole(*names: str) -> bool:
        return all(environment.get(name) for name in names)

    torch = ("RANK", "LOCAL_RANK", "WORLD_SIZE", *ADDRESS)
    found = []
    if number(PARENT) == os.getppid() and whole("LOCAL_RANK", "WORLD_SIZE", *ADDRESS):
        found.append(Launcher("Lightning", number("WORLD_SIZE"), PARENT, (*RANK, *ADDRESS)))
    elif whole("TORCHELASTIC_RUN_ID", *torch):
        variables = (*RANK, *ADDRESS, "TORCHELASTIC_")
        found.append(Launcher("torchrun", number("WORLD_SIZE"), "TORCHELASTIC_RUN_ID", variables))
    if whole("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"):
        found.append(Launcher("srun", _step(number, environment), "SLURM_PROCID", (*SLURM, *ADDRESS)))
    if whole("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK"):
        variables = ("JSM_NAMESPACE_", *ADDRESS)
        found.append(Launcher("jsrun", number("JSM_NAMESPACE_SIZE"), "JSM_NAMESPACE_LOCAL_RANK", variables))
    if find_spec("mpi4py"):  # otherwise Lightning does not ask MPI
        size = "OMPI_COMM_WORLD_SIZE" if whole("OMPI_COMM_WORLD_SIZE") else "PMI_SIZE"
        found.append(Launcher("mpirun", number(size), size, ("OMPI_", "PMI_", "PMIX_")))
    return [each for each in found if each.processes > 1]


def _step(number: Callable[[str], int], environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of the srun step that this process belongs to.

    A batch script, and the shell of salloc, belong to no step, though they see the number of tasks that a step may have.
    """
    if "SLURM_STEP_NUM_TASKS" in environment:
        return number("SLURM_STEP_NUM_TASKS")
    return 1 if environment.get("ENVIRONMENT") == "BATCH" else number("SLURM_NTASKS")


def _agree(wanted: int, nodes: int) -> None:
    """Tells Lightning about a step of srun what it will ask for: the tasks of each node, and a job name that is not interactive.

    Raises: ConfigError for another number of nodes.
    """
    spread = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or str(nodes)
    if spread != str(nodes):
        raise ConfigError(
            f"srun has started {wanted} processes on {spread} nodes, and trainer.num_nodes is {nodes}: set trainer.num_nodes={spread}, "
            "and trainer.devices to the processes of each node"
        )
    os.environ.update(SLURM_NTASKS_PER_NODE=str(wanted // nodes), SLURM_NNODES=spread, SLURM_JOB_NAME="clip-ood")


def _check_by_hand(nodes: int) -> None:
    if missing := [name for name in BY_HAND if not os.environ.get(name)]:
        raise ConfigError(
            f"trainer.num_nodes={nodes} needs somebody who starts the command on every node: torchrun or srun; or start it there "
            f"yourself with NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment (not set: {', '.join(missing)})"
        )


def _among(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.startswith(tuple(each for each in names if each.endswith("_")))


def _other_number(launcher: Launcher, wanted: int) -> str:
    return (
        f"{launcher.name} has started {launcher.processes} processes, and the Trainer's keys ask for {wanted} (trainer.devices × "
        f"trainer.num_nodes): give both the same number. If {launcher.name} has started nothing, unset {launcher.sign}, which says so"
    )
