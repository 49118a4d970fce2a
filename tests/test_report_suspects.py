"""What a page shows of the suspects of a folder."""

from __future__ import annotations

from types import SimpleNamespace

from clip_ood.folder.files import write_groups, write_suspects
from clip_ood.folder.suspects import GroupMember, Suspect
from clip_ood.report.suspects import SHOWN, answer
from clip_ood.runs.run_folder import GROUPS, SUSPECTS

NOTHING = SimpleNamespace(
    parts={"train": SimpleNamespace(images="id", rows=[])}, images={"id": SimpleNamespace(names=[])}
)


def suspect(rank, group=None, copies=0, copy_of=None):
    about = {
        "image": None,
        "label": None,
        "nearest": "near.png",
        "cosine": 0.5,
        "x": 0.0,
        "y": float(rank),
        "scores": {},
    }
    return Suspect(
        rank=rank, path=f"{rank}.png", score=rank / 100, group=group, copies=copies, copy_of=copy_of, **about
    )


def test_of_a_group_one_image_stands_for_all_and_copies_are_shown_together(tmp_path):
    rows = [suspect(rank, 1) for rank in range(1, 5)] + [suspect(rank) for rank in range(5, 30)]
    rows += [suspect(30, copies=1), suspect(31, copies=1, copy_of="30.png")]
    write_suspects(tmp_path / SUSPECTS, rows)
    write_groups(tmp_path / GROUPS, [GroupMember(1, 4, 2.5, f"{rank}.png", None) for rank in range(1, 5)])
    found = answer(tmp_path, NOTHING)
    assert [each.suspect.rank for each in found.suspects] == [1, *range(5, 5 + SHOWN - 1)]
    assert (found.images, found.sizes, found.copies[0].images) == (31, {1: 4}, 2)
    assert [each.path for each in found.groups[0].some] == ["1.png", "2.png", "3.png", "4.png"]
    assert found.suspects[0].own.missing == "the image set does not list it any more"


def test_a_run_without_suspects_has_no_answer(tmp_path):
    assert answer(tmp_path, NOTHING) is None
