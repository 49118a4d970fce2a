"""Runs and predictions on images in a bucket or behind URLs are those on the same files here, bit for bit."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path

import judged_run
import pytest
import tiny_clip
from storage_servers import BUCKET, s3_server, web_server

import eval as evaluation
from clip_ood import load
from clip_ood.data import bucket_tree, inputs
from clip_ood.errors import UserError
from clip_ood.files.remote import listing
from clip_ood.files.remote.address import Address

pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[test]'")
pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[test]'")
pytestmark = [pytest.mark.extras, pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.fixture(scope="module")
def s3(run):
    with s3_server() as server:
        for name in ("id", "near"):
            server.put_folder(run.parents[1] / "data" / name, name)
        server.put("odd/not.png", b"no picture")
        yield server


@pytest.mark.parametrize("workers", [0, 2])
def test_predictions_are_those_of_local_files(workers, run, tmp_path):
    near, found = run.parents[1] / "data" / "near", {}
    for name, place in {"here": near, "there": f"s3://{BUCKET}/near"}.items():
        out, odd = tmp_path / f"{name}.csv", tmp_path / name
        judged_run.judged("--run", run, place, "--out", out, "--workers", workers, "--copy-ood", odd, "--accept", 0.5)
        rows = judged_run.read(out)
        assert all(row["path"] == f"{place}/{Path(row['path']).name}" for row in rows) and rows
        aside = {each.name: each.read_bytes() for each in odd.rglob("*.png")}
        found[name] = [row | {"path": Path(row["path"]).name} for row in rows], aside
    assert found["here"] == found["there"] and found["here"][1]


def test_python_takes_addresses(run):
    near = run.parents[1] / "data" / "near"
    names, predictor = sorted(path.name for path in near.iterdir()), load(run)
    here = predictor([str(near / name) for name in names])
    there = predictor([f"s3://{BUCKET}/near/{name}" for name in names])
    assert [(each.score, each.p_value, each.is_ood) for each in here] == [
        (each.score, each.p_value, each.is_ood) for each in there
    ]
    assert there[0].path == f"s3://{BUCKET}/near/{names[0]}"


def test_a_run_scores_as_on_local_files(run, tmp_path, monkeypatch):
    """And features are found again by what was listed, without reading an image."""
    from werkzeug.serving import WSGIRequestHandler

    data, rows = run.parents[1] / "data", {}
    clip = {"model": f"local-dir:{run.parents[1]}/clip"}
    for name, root in {"here": str(data), "there": f"s3://{BUCKET}"}.items():
        keys = {"root": root, "id": "id", "ood": {"near": "near"}, "batch_size": 8}
        config = tiny_clip.config(tmp_path, name, {"zero_shot": {}}, data=keys, backbone=clip)
        evaluation.main(["--config", config, f"--features_root={tmp_path}/features_{name}", "--data.num_workers=1"])
        rows[name] = tiny_clip.results(tmp_path / "runs" / name)["rows"]
    assert rows["here"] == rows["there"] and rows["here"]
    asked = []
    monkeypatch.setattr(WSGIRequestHandler, "log_request", lambda handler, *_: asked.append(handler.path))
    bucket_tree._listed.cache_clear()
    evaluation.main(["--config", config, f"--features_root={tmp_path}/features_there", "--overwrite"])
    assert asked and not [path for path in asked if path.endswith(".png")]


def test_objects_that_vanish_are_counted(run, tmp_path, s3, monkeypatch):
    near = run.parents[1] / "data" / "near"
    s3.put_folder(near, "vanishing")
    s3.put("vanishing/not.png", b"no picture")
    listed = list(listing.files_below(Address("s3", f"{BUCKET}/vanishing")))
    monkeypatch.setattr(inputs, "files_below", lambda address: iter(listed))
    first = min(path.name for path in near.iterdir())
    s3.remove(f"vanishing/{first}")
    out = tmp_path / "out.csv"
    judged_run.judged("--run", run, f"s3://{BUCKET}/vanishing", "--out", out)
    lost = {Path(each["path"]).name: each["reason"] for each in judged_run.read(Path(f"{out}.unreadable.csv"))}
    assert lost[first] == "it is gone since it was listed" and set(lost) == {first, "not.png"}
    assert len(judged_run.read(out)) == len(listed) - 2


def test_a_signature_is_written_nowhere(run, tmp_path):
    with web_server(run.parents[1] / "data" / "near") as web:
        name = sorted(path.name for path in (run.parents[1] / "data" / "near").iterdir())[0]
        web.signed[f"/{name}"] = "X-Amz-Signature=S3CR3T"
        out = tmp_path / "out.jsonl"
        judged_run.judged("--run", run, f"{web.url}/{name}?X-Amz-Signature=S3CR3T", "--out", out)
        assert json.loads(out.read_text())["path"] == f"{web.url}/{name}"
        with pytest.raises(UserError, match=r"refuses it \(403\)") as error:
            judged_run.judged("--run", run, f"{web.url}/{name}?X-Amz-Signature=WR0NG", "--out", tmp_path / "x.csv")
    written = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    assert written and not [each for each in written if b"S3CR3T" in each] and "WR0NG" not in str(error.value)


def test_the_commands_of_the_page_are_run(run, tmp_path, s3, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    near = run.parents[1] / "data" / "near"
    s3.put_folder(near, "new")
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
        for path in near.iterdir():
            file.write(path, f"may/{path.name}")
    s3.put("new.zip", (tmp_path / "new.zip").read_bytes())
    s3.put("list.txt", "".join(f"s3://{BUCKET}/near/{path.name}\n" for path in near.iterdir()).encode())
    page = (tiny_clip.PROJECT / "docs" / "buckets.md").read_text()
    commands = re.findall(r"^python detect\.py (--run runs/demo s3://.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        judged_run.judged(*shlex.split(command))
    assert len(judged_run.read(tmp_path / "predictions.csv")) == len(list(near.iterdir()))
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 2 * len(list(near.iterdir()))
