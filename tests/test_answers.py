"""What a command says of an error: a line of what a user can mend, a traceback and a plea of what is a fault of the project's own."""

from __future__ import annotations

import re
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest
import torch

from clip_ood.command_line import OURS, answer, guarded
from clip_ood.detect.manifest import DetectorFolderError
from clip_ood.detectors import neighbours
from clip_ood.dotted_paths import importable
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.models import initial_head


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error",
    [UserError("mend it"), ConfigError("mend it"), DetectorFolderError("mend it"), OSError(0, "mend it", "a.csv")],
)
def test_what_a_user_can_mend_is_a_line(error, capsys):
    with pytest.raises(SystemExit) as ended:
        guarded(raising(error))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and "mend it" in said and OURS not in said


FAULTS = {
    "of a builtin": lambda: list(zip([1], [1, 2], strict=True)),
    "of a library": lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "a ValueError": lambda: int("no number"),
    "a key": lambda: {}["gone"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_keeps_its_traceback_and_asks_to_be_reported(fault):
    ours = FunctionType(
        FAULTS[fault].__code__, globals() | {"__name__": "clip_ood.part"}, closure=FAULTS[fault].__closure__
    )
    with pytest.raises(Exception) as raised:
        guarded(ours)
    assert answer(raised.value) is None and raised.value.__notes__[-1] == OURS


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_code_of_the_users_own_is_not_called_ours(fault):
    with pytest.raises(Exception) as raised:
        guarded(FAULTS[fault])
    note = raised.value.__notes__[-1]
    assert re.fullmatch(rf"This was raised in {re.escape(__file__)}, line \d+, .*: mend it there\.", note)


def test_a_fault_in_a_run_of_a_study_is_no_run_that_cannot_be_done(monkeypatch):
    from clip_ood.experiments.study import conduct as conducting

    config = SimpleNamespace(data=SimpleNamespace(decisions=None))
    plan = SimpleNamespace(runs={"a": config, "b": config}, folder=Path("nowhere"))
    monkeypatch.setattr(conducting, "state", lambda plan, run: conducting.State.MISSING)
    monkeypatch.setattr(conducting, "_run", lambda *_: list(zip([1], [1, 2], strict=True)))
    with pytest.raises(ValueError, match="longer"):
        conducting.conduct(plan)


def test_a_head_of_another_width_is_told(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save({"class_names": ["a", "b"], "state_dict": {"head.linear.weight": torch.zeros(2, 3)}}, path)
    with pytest.raises(UserError, match=r"last\.ckpt holds no head of this encoder's width: .*linear\.weight"):
        initial_head(str(tmp_path / "run"), 0, None, 32, None, {"class_names": ("a", "b")})


@pytest.mark.parametrize(
    ("named", "imported"),
    [
        ("datamodules.extraction", "clip_ood.datamodules.extraction"),
        ("callbacks.mine", "callbacks.mine"),
        ("configs.mine.scores", "configs.mine.scores"),
        ("my_scores", "my_scores"),
        ("clip_ood.detectors.knn", "clip_ood.detectors.knn"),
    ],
)
def test_a_module_of_the_project_has_one_name(named, imported):
    assert importable(named) == imported


@pytest.mark.parametrize(
    ("bfloat16", "amx", "dtype"), [(False, False, None), (True, False, torch.bfloat16), (False, True, torch.bfloat16)]
)
def test_neighbours_are_searched_in_half_precision_where_a_cpu_has_it(monkeypatch, bfloat16, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert neighbours.low_precision("cpu") == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((6, 0), None), ((7, 0), torch.float16), ((9, 0), torch.float16)])
def test_neighbours_are_searched_in_half_precision_where_a_gpu_has_tensor_cores(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert neighbours.low_precision("cuda") == dtype and neighbours.low_precision("mps") is None
