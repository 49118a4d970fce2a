"""The number of processes is the Trainer's: variables of launchers that started others, or nothing, decide nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import tiny_clip

import train
from clip_ood.errors import ConfigError
from clip_ood.process import launchers
from clip_ood.process.launchers import PARENT, settle
from clip_ood.process.ranks import is_first

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"}
BATCH = SALLOC | {
    "ENVIRONMENT": "BATCH",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
}
TASK = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
STEP = TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}
ADDRESS = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}
TORCH = ADDRESS | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0"}
ELASTIC = TORCH | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
LSF = {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "f", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_RANK": "1"}
LSF |= {"JSM_NAMESPACE_SIZE": "2"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_RANK": "1"}
PBS = {"PBS_JOBID": "7", "PBS_NP": "4", "PBS_TASKNUM": "2"}
STRAY = {
    "salloc": SALLOC,
    "batch script": BATCH,
    "a task of several": TASK,
    "a step of several": STEP,
    "a rank": {"RANK": "1"},
    "a local rank": {"LOCAL_RANK": "1"},
    "a world": {"WORLD_SIZE": "4"},
    "an address": ADDRESS,
    "torch": TORCH,
    "torchrun": ELASTIC,
    "a node": {"NODE_RANK": "1", "GROUP_RANK": "1"},
    "LSF": LSF,
    "MPI": MPI,
    "PBS": PBS,
    "nonsense": {"RANK": "abc", "LOCAL_RANK": "", "WORLD_SIZE": "x", "SLURM_NTASKS": "2(x3)", "SLURM_PROCID": "-1"},
    "all": PBS | MPI | LSF | STEP | ELASTIC | SALLOC,
}
LEFT = (
    "TORCH_CPP",
    "PBS_",
    "LSB_",
    "SLURM_J",
    "SLURM_STEP",
    "SLURM_NNODES",
    "ENVIRONMENT",
    "CLIP_OOD",
)  # say nothing to anyone


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, and gives those of launchers that are left after `settle`."""
    for name in list(os.environ):
        if name.startswith((*launchers.RANK, *launchers.ADDRESS, "SLURM_", *launchers.PREFIXES)):
            monkeypatch.delenv(name)

    def settled(variables, **trainer):
        before = dict(os.environ)
        try:
            os.environ.update(variables)
            settle(trainer)
            added = {name: value for name, value in os.environ.items() if before.get(name) != value}
            return {name: value for name, value in added.items() if not name.startswith(LEFT)}, is_first()
        finally:
            os.environ.clear()
            os.environ.update(before)

    return settled


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("devices", [1, "auto", [0], "1"])
def test_one_process_hears_no_launcher(stray, devices, environment):
    assert environment(STRAY[stray], devices=devices, accelerator="cpu") == ({}, True)


@pytest.mark.parametrize(
    "stray", ["salloc", "batch script", "a rank", "a local rank", "a world", "an address", "torch", "MPI", "PBS"]
)
def test_two_processes_are_started_by_lightning_where_nobody_has_started_two(stray, environment):
    assert environment(STRAY[stray], devices=2, accelerator="cpu") == ({}, True)


@pytest.mark.parametrize(
    ("variables", "trainer"),
    [
        (ELASTIC, {"devices": 2}),
        (ELASTIC | {"WORLD_SIZE": "4"}, {"devices": 2, "num_nodes": 2}),
        (ELASTIC | {"WORLD_SIZE": "3"}, {"devices": [0, 1, 2]}),
        (LSF, {"devices": "2"}),
        (TORCH | {PARENT: str(os.getppid())}, {"devices": 2}),  # started by Lightning
    ],
    ids=["torchrun", "two nodes", "a list", "jsrun", "Lightning"],
)
def test_the_launcher_of_just_these_processes_is_heard(variables, trainer, environment):
    left, first = environment(variables | SALLOC, accelerator="cpu", **trainer)
    told = {name: value for name, value in variables.items() if not name.startswith(LEFT)}
    assert left == told and not first


@pytest.mark.parametrize(
    "task", [TASK, STEP | {"SLURM_NTASKS": "2"}, STEP | {"RANK": "0", "LOCAL_RANK": "0", "SLURM_JOB_NAME": "bash"}]
)
def test_srun_is_heard_whatever_its_job_is_called(task, environment, monkeypatch):
    from lightning.fabric.plugins.environments import SLURMEnvironment

    seen = []
    agree = launchers._agree
    monkeypatch.setattr(
        launchers,
        "_agree",
        lambda *about: (agree(*about), seen.append((SLURMEnvironment.detect(), SLURMEnvironment().global_rank()))),
    )
    left, first = environment(task, devices=2, accelerator="cpu")
    assert seen == [(True, 1)] and not first and left["SLURM_PROCID"] == "1" and "RANK" not in left
    assert left["SLURM_NTASKS_PER_NODE"] == "2"  # without which Lightning refuses


@pytest.mark.parametrize(
    ("variables", "trainer", "message"),
    [
        (
            ELASTIC | {"WORLD_SIZE": "3"},
            {"devices": 2},
            "torchrun has started 3 processes, .*ask for 2.*unset TORCHELASTIC_RUN_ID",
        ),
        (
            STEP | {"SLURM_STEP_NUM_TASKS": "4"},
            {"devices": 2},
            "srun has started 4 processes, .*ask for 2.*unset SLURM_PROCID",
        ),
        (
            STEP | {"SLURM_NNODES": "2"},
            {"devices": 2},
            r"on 2 nodes, and trainer\.num_nodes is 1: set trainer\.num_nodes=2",
        ),
        (LSF, {"devices": 4}, "jsrun has started 2 processes"),
        (
            {},
            {"devices": 2, "num_nodes": 2},
            r"num_nodes=2 needs .*torchrun or srun.*not set: NODE_RANK, MASTER_ADDR, MASTER_PORT",
        ),
        (ADDRESS, {"num_nodes": 2}, r"not set: NODE_RANK\)"),
    ],
)
def test_another_number_is_one_line(variables, trainer, message, environment):
    with pytest.raises(ConfigError, match=message) as error:
        environment(variables, accelerator="cpu", **trainer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("node", ["0", "1"])
def test_nodes_that_are_started_by_hand_know_each_other(node, environment):
    given = ADDRESS | {"NODE_RANK": node}
    left, first = environment(given | {"RANK": "3", "SLURM_NTASKS": "9"}, devices=2, num_nodes=2, accelerator="cpu")
    assert left == given and first == (node == "0")


# Whole commands


PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}


def configured(root, name, splits=0.0):
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near"},
        "splits": {"val": splits, "test": 0.3},
        "batch_size": 8,
    }
    return tiny_clip.config(root, name, PROBE, data=data)


def begun(root, name, variables, *options, splits=0.0):
    environment = {key: value for key, value in os.environ.items() if key not in (*launchers.RANK, PARENT)}
    command = [sys.executable, "train.py", "--config", configured(root, name, splits), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return forked.Popen(command, cwd=PROJECT, env=environment | {"OMP_NUM_THREADS": "1"} | variables, **pipes)


def ended(process, status=0):
    try:
        out, error = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise AssertionError(process.communicate()) from None
    assert process.returncode == status, out + error
    return out + error


def rows(root, name):
    found = json.loads((root / "runs" / name / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "intervals"} for row in found]


@pytest.fixture(scope="module")
def alone(root):
    ended(begun(root, "alone", {}, splits=0.4))
    return rows(root, "alone")


@pytest.mark.parametrize("stray", ["salloc", "all", "nonsense"])
def test_a_run_and_its_judging_need_no_launcher(stray, root, alone):
    ended(begun(root, stray, STRAY[stray], splits=0.4))
    assert rows(root, stray) == alone
    assert list((root / "runs" / stray).glob("events*"))  # the first process logs
    if stray != "all":
        return  # detect.py settles what is left in the environment as train.py does
    command = [
        sys.executable,
        "detect.py",
        "--run",
        root / "runs" / stray,
        "--accept",
        "0.5",
        root / "data" / "near" / "1.png",
    ]
    done = forked.run(command, cwd=PROJECT, env=os.environ | STRAY[stray], timeout=120)
    assert done.returncode == 0 and "1 images judged" in done.stderr, done.stderr


def test_two_processes_of_lightnings_own_in_an_allocation(root):
    ended(begun(root, "own_two", TORCH | BATCH, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert rows(root, "own_two")


def test_two_tasks_of_srun_are_one_run(root):
    tasks = [
        TASK | {"SLURM_PROCID": str(each), "SLURM_LOCALID": str(each), "SLURM_NODELIST": "127.0.0.1"} for each in (0, 1)
    ]
    for process in [begun(root, "srun", task, "--trainer.devices=2") for task in tasks]:
        ended(process)
    train.main(["--config", configured(root, "srun_alone")])
    keys = ("detector", "ood", "n_id", "n_ood")
    assert [[row[key] for key in keys] for row in rows(root, "srun")] == [
        [row[key] for key in keys] for row in rows(root, "srun_alone")
    ]


def test_two_tasks_with_a_run_each(root, alone):
    tasks = [TASK | {"SLURM_PROCID": str(each), "SLURM_LOCALID": str(each)} for each in (0, 1)]
    for process in [begun(root, f"each_{number}", task, splits=0.4) for number, task in enumerate(tasks)]:
        ended(process)
    assert rows(root, "each_0") == rows(root, "each_1") == alone


def test_mpi_is_not_started_where_it_has_started_nothing(tmp_path):
    """Lightning asks mpi4py how many processes there are, which starts MPI and, where MPI cannot start, ends this process."""
    package = tmp_path / "mpi4py"
    package.mkdir()
    package.joinpath("__init__.py").write_text("")
    package.joinpath("MPI.py").write_text("import os; os._exit(99)")
    script = (
        "from clip_ood.experiments.trainer import new_trainer; new_trainer({'logger': False}, {'accelerator': 'cpu'})"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith(launchers.PREFIXES)}
    done = subprocess.run([sys.executable, "-c", script], env=variables | {"PYTHONPATH": f"{tmp_path}:{PROJECT}"})
    assert done.returncode == 0
