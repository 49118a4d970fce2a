"""clip-ood serve: what a server answers and tells of itself, as a process and real clients see it."""

from __future__ import annotations

import json
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import judged_run
import pytest
from judged_run import judged, read
from served import OPTIONS, TOKEN, Served, png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "served", "zero_shot", detectors=["mcm", "knn"])


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("watch") / "stream.safetensors"
    with Served(run, *OPTIONS, "--detector=all", "--watch", file, token=TOKEN) as server:
        yield server


def of_detect(run: Path, paths: list[Path], out: Path, *options: str) -> list[dict]:
    """The lines of detect.py, with their values as JSON has them."""
    judged("--run", run, *paths, "--out", out, *options)
    return [json.loads(line) for line in out.read_text().splitlines()]


# Predictions


def test_a_form_of_files_is_judged_as_detect_does(server, run, images, tmp_path):
    """The same images in the same batches: the same bits, and the same keys."""
    expected = of_detect(run, images, tmp_path / "out.jsonl", "--detector=all")
    got = server.files(images)
    assert got.status_code == 200 and got.headers["content-type"] == "application/json"
    assert got.json()["predictions"] == [line | {"path": Path(line["path"]).name} for line in expected]
    judged("--run", run, *images, "--out", tmp_path / "out.csv")
    assert list(got.json()["predictions"][0]) == list(read(tmp_path / "out.csv")[0])
    assert got.json()["digest"] == json.loads((run / "detector/detector.json").read_text())["digest"]


def test_bytes_and_base64_are_judged_as_files_are(server, images):
    expected = [line for line in server.files(images[:2]).json()["predictions"]]
    raw = server.post(content=images[0].read_bytes(), headers={"content-type": "image/png"}).json()["predictions"]
    octets = {"content-type": "application/octet-stream"}
    other = server.post(content=images[1].read_bytes(), headers=octets).json()["predictions"]
    texts = [b64encode(each.read_bytes()).decode() for each in images[:2]]
    encoded = server.post(json={"images": texts}).json()["predictions"]
    for found in (raw + other, encoded):
        assert [line["path"] for line in found] == [None] * 4
        for line, wanted in zip(found, expected, strict=True):
            assert line["score"] == pytest.approx(wanted["score"], rel=1e-5)  # batches of other sizes
            assert {**line, "score": 0, "confidence": 0, "p_value": 0} == {
                **wanted, "path": None, "score": 0, "confidence": 0, "p_value": 0,
            }  # fmt: skip


def test_many_clients_at_once_share_batches_and_get_their_own_answers(server, images):
    expected = {each.name: server.files([each]).json()["predictions"][0]["score"] for each in images}
    before = server.figures()

    def ask(number: int) -> tuple[str, dict]:
        each = images[number % len(images)]
        return each.name, server.files([each]).json()["predictions"][0]

    with ThreadPoolExecutor(16) as pool:
        for name, line in pool.map(ask, range(160)):
            assert line["path"] == name and line["score"] == pytest.approx(expected[name], rel=1e-5)
    after = server.figures()
    batches, judged_images = (
        after[f"clip_ood_batch_images_{each}"] - before[f"clip_ood_batch_images_{each}"] for each in ("count", "sum")
    )
    assert judged_images == 160 and batches < 160


def test_an_image_that_cannot_be_read_leaves_the_others(server, images, tmp_path):
    (odd := tmp_path / "odd.png").write_bytes(b"no image")
    (huge := tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    (large := tmp_path / "large.png").write_bytes(png(600, 500))
    lines = server.files([images[0], odd, huge, large, images[1]]).json()["predictions"]
    assert [line["path"] for line in lines] == [images[0].name] * 2 + ["odd.png", "huge.png", "large.png"] + [
        images[1].name
    ] * 2
    told = [line["error"] for line in lines if "error" in line]
    assert len(told) == 3 and told[0].startswith("UnidentifiedImageError") and "pixels" in told[1]
    assert "600 × 500 pixels, and at most 250,000 are taken" in told[2]
    (only,) = server.post(json={"images": ["http://127.0.0.1/a.png"]}).json()["predictions"]
    assert "not base64" in only["error"]


# What it tells of itself


def test_the_detector_is_named_and_the_routes_are_described(server, run):
    told = server.client.get("/version").json()
    assert told["detectors"] == ["mcm", "knn"] and told["digest"] and told["versions"]["torch"]
    described = server.client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/health", "/ready", "/version", "/metrics"}
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html") and "<script" not in page.text
    assert all(f" {path}</code>" in page.text for path in described["paths"])
    assert "Judges images: files of a form" in page.text and "<code>multipart/form-data</code>" in page.text
    assert set(described["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data", "application/json", "application/octet-stream", "image/*",
    }  # fmt: skip


def test_figures_count_images_and_watch_the_stream(server, images):
    before = server.figures()
    lines = [line for line in server.files(images).json()["predictions"] if line["detector"] == "mcm"]
    server.post(content=b"no image", headers={"content-type": "image/png"})
    after = server.figures()

    def new(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    flagged = sum(line["is_ood"] for line in lines)
    assert new("clip_ood_images_total mcm ood") == flagged and new("clip_ood_images_total mcm id") == 9 - flagged
    assert new("clip_ood_p_value_count mcm") == 9 and new("clip_ood_unreadable_images_total") == 1
    assert new("clip_ood_p_value_bucket mcm 0.1") == sum(line["p_value"] <= 0.1 for line in lines)
    ood, others = (after.get(f"clip_ood_images_total mcm {each}", 0) for each in ("ood", "id"))
    assert after["clip_ood_flagged_share mcm"] == pytest.approx(ood / (ood + others))
    assert new("clip_ood_predict_seconds_count") == 2 and after["clip_ood_waiting_images"] == 0
    assert new("clip_ood_watch_images") == 9 and after["clip_ood_watch_alarm"] in (0, 1)
    assert after["clip_ood_watch_log_martingale_highest"] >= after["clip_ood_watch_log_martingale"]
    assert after["clip_ood_watch_log_limit"] == pytest.approx(4.605, abs=1e-3)
