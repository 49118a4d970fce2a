"""A run's detector as a folder: it gives the evaluation's scores, wherever it lies, and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import judged_run
import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_ood import load
from clip_ood.backbones.fingerprint import sha256
from clip_ood.calibration import Calibration
from clip_ood.config.loading import load_config
from clip_ood.detect.manifest import DetectorFolderError, sealed
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.knn import KNN
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.files.pictures import UnreadableImage
from clip_ood.outputs import Outputs


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "probe")


def in_order(root):
    return sorted((root / "data" / "id").rglob("*.png"), key=lambda path: path.relative_to(root / "data/id").as_posix())


@pytest.mark.parametrize("method", judged_run.METHODS)
def test_scores_are_those_of_the_evaluation(root, method):
    run = judged_run.make(root, f"all_{method}", method)
    saved, files = SavedDetector(run), in_order(root)
    expected = judged_run.scores(run)
    backbone = saved.backbone()
    detectors = json.loads((run / "results.json").read_text())["calibration"]["thresholds"]
    assert list(detectors) == saved.columns and len(saved.columns) >= (3 if method == "zero_shot" else 17)
    for column in saved.columns:
        predictor = Predictor(saved, backbone, column)
        for path, prediction in zip(files, predictor(files), strict=True):
            row = expected.get(path.relative_to(root / "data/id").as_posix())
            if row is None:
                continue  # a training image
            # live features of a fine-tuned encoder come in other batches there: the test set's, not the folder's
            tolerance = 1e-4 if method == "finetune" else 1e-6
            assert prediction.score == pytest.approx(row[column], rel=tolerance), (column, path)
            if predictor.by == ("text" if method == "zero_shot" else "head"):  # what scores.parquet predicts by
                assert prediction.predicted_class == row["prediction"]


def test_scores_of_an_encoder_in_half_precision_are_those_of_the_evaluation(root):
    half = {"model": f"local-dir:{root}/clip", "precision": "bf16"}
    run = judged_run.make(root, "half", backbone=half, detectors=["knn", "mcm", "msp", "rmd"])
    expected = judged_run.scores(run)
    for column in ("knn", "mcm", "msp", "rmd"):
        for path, prediction in zip(in_order(root), load(run, column)(in_order(root)), strict=True):
            row = expected.get(path.relative_to(root / "data/id").as_posix())
            assert row is None or prediction.score == pytest.approx(row[column], rel=1e-6)


def test_p_values_and_flags_are_those_of_the_val_scores(root, run):
    val = judged_run.scores(run, "val")
    predictor = load(run, "msp")
    calibration = Calibration(torch.tensor([row["msp"] for row in val.values()], dtype=torch.float32))
    stated = tiny_clip.results(run)["calibration"]
    assert (stated["n"], stated["needed"], stated["default"]) == (len(val), 19, "knn")
    assert stated["thresholds"]["msp"] == predictor.threshold == calibration.threshold(0.95)
    assert stated["expected"] == predictor.expected == calibration.expected(0.95)
    predictions = predictor(in_order(root) + sorted((root / "data" / "far").iterdir()))
    found = torch.tensor([prediction.score for prediction in predictions])
    assert [prediction.p_value for prediction in predictions] == calibration.p_values(found).tolist()
    assert [prediction.is_ood for prediction in predictions] == [
        prediction.p_value <= 0.05 + 1e-12 for prediction in predictions
    ]
    assert any(prediction.is_ood for prediction in load(run, "msp", accept=0.5)(in_order(root)))


def test_paths_pictures_and_tensors_are_the_same_images(root, run):
    predictor = load(run)
    path = in_order(root)[0]
    picture = Image.open(path)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    predictions = predictor([path, str(path), picture, pixels, pixels / 255])
    assert [prediction.path for prediction in predictions] == [str(path)] * 2 + [None] * 3
    assert [prediction.score for prediction in predictions] == pytest.approx([predictions[0].score] * 5, abs=1e-6)
    assert (
        predictor(picture)[0].score == predictor(pixels)[0].score == pytest.approx(predictions[0].score, abs=1e-6)
    )  # a batch of one
    assert predictor([]) == []


def test_what_is_no_image_is_named(root, run, tmp_path):
    predictor = load(run)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for image, error, message in [
        (tmp_path / "broken.png", UnreadableImage, "cannot identify"),
        (tmp_path / "gone.png", FileNotFoundError, "gone.png"),
        (torch.zeros(32, 32), ValueError, r"shape \(3, H, W\), not \(32, 32\)"),
        (torch.full((3, 8, 8), 2.0), ValueError, r"pixels in \[0, 1\], not 2 … 2"),
        (7, TypeError, "not a int"),
    ]:
        with pytest.raises(error, match=message):
            predictor([image])


def moved(root, run, tmp_path, with_encoder):
    """A copy of the detector's folder, with nothing of what the run was made from."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(run / "detector", folder)
    if with_encoder:
        add_encoder(SavedDetector(folder))
    for name in ("data", "features", "clip", "runs"):
        shutil.move(root / name, root / f"{name}_away")
    return folder


@pytest.fixture
def away(root):
    yield
    for name in ("data", "features", "clip", "runs"):
        if (root / f"{name}_away").exists():
            shutil.move(root / f"{name}_away", root / name)


def test_a_folder_with_its_encoder_needs_nothing_else(root, run, tmp_path, away):
    files = [path.relative_to(root / "data") for path in in_order(root)[:11]]
    before = load(run)([root / "data" / path for path in files])
    folder = moved(root, run, tmp_path, with_encoder=True)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".parquet", ".safetensors"}
    after = load(folder)([root / "data_away" / path for path in files])
    assert [prediction.score for prediction in after] == [prediction.score for prediction in before]


def test_an_encoder_that_is_elsewhere_is_asked_for(root, run, tmp_path, away):
    folder = moved(root, run, tmp_path, with_encoder=False)
    with pytest.raises(ValueError, match=r"cannot be had here .* --encoder, .*--with-encoder"):
        load(folder)
    assert load(folder, encoder=str(root / "clip_away")).column == "knn"
    shutil.copytree(root / "clip_away", tmp_path / "other")
    weights = torch.load(tmp_path / "other" / "open_clip_pytorch_model.bin", weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, tmp_path / "other" / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is not the encoder of .* differs in weights"):
        load(folder, encoder=str(tmp_path / "other"))


def test_a_tuned_encoder_travels_with_its_detector(root, tmp_path):
    run = root / "runs" / "all_finetune"
    if not run.is_dir():
        judged_run.make(root, "all_finetune", "finetune")
    assert SavedDetector(run).encoder.in_folder
    assert (run / "detector" / "encoder" / "image_encoder.safetensors").is_file()


def rewritten(folder, **changes):
    path = folder / "detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "bank-00000.safetensors").unlink(), "not whole: bank-00000.safetensors is missing"),
        (
            lambda f: truncate(f / "bank-00000.safetensors"),
            "bank-00000.safetensors is not the file .* truncated or was changed",
        ),
        (lambda f: flip(f / "state.safetensors"), "state.safetensors is not the file"),
        (lambda f: truncate(f / "detector.json"), "detector.json is damaged"),
        (lambda f: rewritten(f, accept=0.5), "detector.json was changed after it was saved"),
        (lambda f: rewritten(f, format=99), r"of format 99 \(clip-ood .*\), and this version reads format 3"),
        (lambda f: (f / "detector.json").write_text("[]"), "detector.json is damaged"),
        (lambda f: (f / "detector.json").unlink(), "holds no detector"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(run, tmp_path, harm, message):
    folder = tmp_path / "copy"
    shutil.copytree(run / "detector", folder)
    harm(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_detector_of_another_version_is_refused(run, tmp_path, monkeypatch):
    from clip_ood.detectors.mahalanobis import RMD

    monkeypatch.setattr(RMD, "_learned", lambda self: ["center", "renamed"])
    with pytest.raises(ValueError, match=r"rmd: its state does not fit this version, which differs in .*renamed"):
        SavedDetector(run).detector("rmd")


def test_a_tampered_folder_is_not_sealed_as_good(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run / "detector", folder)
    flip(folder / "bank-00000.safetensors")
    with pytest.raises(ValueError, match=r"bank-00000\.safetensors is not the file"):
        add_encoder(SavedDetector(folder))


def test_a_head_of_another_width_is_no_fault_of_ours(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run / "detector", folder)
    state = load_file(folder / "state.safetensors")
    save_file(state | {"reference.weight": state["reference.weight"][:, 1:].contiguous()}, folder / "state.safetensors")
    manifest = json.loads((folder / "detector.json").read_text())
    manifest["files"]["state.safetensors"] = sha256(folder / "state.safetensors")
    (folder / "detector.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(DetectorFolderError, match="does not fit its encoder or this version"):
        load(folder)


def test_a_folder_cannot_have_code_run(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run / "detector", folder)
    add_encoder(SavedDetector(folder))
    path = folder / "encoder" / "architecture" / "open_clip_config.json"
    config = json.loads(path.read_text())
    (path.parent / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config["model_cfg"]["text_cfg"] = {
        "hf_tokenizer_name": str(path.parent),
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    path.write_text(json.dumps(config))
    manifest = json.loads((folder / "detector.json").read_text())
    manifest["files"] |= {path.relative_to(folder).as_posix(): sha256(path)}
    (folder / "detector.json").write_text(json.dumps(sealed(manifest)))
    assert load(folder).column == "knn" and not (tmp_path / "ran").exists()
    config["model_cfg"]["vision_cfg"] = {"timm_model_name": "hf-hub:somebody/else"}
    path.write_text(json.dumps(config))
    manifest["files"] |= {path.relative_to(folder).as_posix(): sha256(path)}
    (folder / "detector.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(ValueError, match="must be the name of a timm model"):
        load(folder)


class Own(KNN):
    """A detector of one's own."""

    name = "own"


def test_classes_of_ones_own_must_be_trusted(root):
    run = judged_run.make(root, "own", detectors=[f"{__name__}.Own", "msp"])
    with pytest.raises(ValueError, match=r"Own is a class of somebody's own, and loading it runs its code"):
        load(run)
    trusted = load(run, trust_classes=True)
    assert trusted.column == "Own" and isinstance(trusted.detector, Own)
    assert load(run, "msp").column == "msp"


def test_a_run_of_other_packages_detectors_alone_has_results_and_says_why_it_cannot_judge(root):
    run = judged_run.make(root, "zoo_alone", detectors=[{"name": "pytorch_ood.KNN", "k": 3, "as": "KNN"}])
    assert tiny_clip.results(run)["rows"]
    with pytest.raises(ValueError, match="holds no detector, since none of the run's can be saved"):
        load(run)


def test_only_detectors_that_search_it_read_the_bank(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run / "detector", folder)
    (folder / "bank-00000.safetensors").unlink()
    manifest = json.loads(
        (folder / "detector.json").read_text()
    )  # k-NN, where it predicts classes best, needs the bank, too
    (folder / "detector.json").write_text(json.dumps(sealed(manifest | {"predictor": None})))
    for column in ("msp", "rmd", "vim", "nnguide"):
        assert load(folder, column).column == column


def test_a_bank_in_parts_is_one_bank():
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in (0, 40):
        bank = Bank()
        for rows in torch.arange(start, start + 40).split(16):
            bank.update(Outputs(features=torch.randn(len(rows), 5, generator=generator), indices=rows))
        parts.append(bank.state())
    whole = Bank.restored(parts)
    assert torch.equal(torch.cat(whole.indices), torch.arange(80)) and len(whole) == 80
    rows = torch.cat(whole.chunks)[[3, 71]]
    assert whole.nearest(Outputs(features=rows), 1)[1].tolist() == [[3], [71]]


def test_what_the_run_left_out_is_named(run):
    with pytest.raises(ValueError, match="no detector 'neglabel': needs negative labels"):
        load(run, "neglabel")
    with pytest.raises(ValueError, match=r"no detector 'knm'\. It has knn, mcm"):
        load(run, "knm")


def test_other_packages_detectors_are_left_out_by_name(root):
    run = judged_run.make(root, "zoo", detectors=[{"name": "pytorch_ood.KNN", "k": 3, "as": "KNN"}, "msp"])
    assert SavedDetector(run).columns == ["msp"]
    stated = tiny_clip.results(run)["calibration"]
    assert stated["default"] == "msp" and set(stated["thresholds"]) == {"KNN", "msp"}
    from clip_ood.report.run_page import write_report

    write_report(run, load_benchmark(load_config(str(run / "config.yaml"))))  # shows every detector
    assert "KNN" in (run / "report.html").read_text()
    with pytest.raises(ValueError, match="no detector 'KNN': keeps what it learnt in another package's objects"):
        load(run, "KNN")


def test_too_few_val_images_say_how_many_it_takes(root, run):
    n = tiny_clip.results(run)["calibration"]["n"]
    with pytest.raises(ValueError, match=rf"Accepting 99 % of ID images takes 99 ID images or more .* there are {n}"):
        load(run, accept=0.99)
    few = judged_run.make(root, "few", data={"splits": {"val": 0.2, "test": 0.3}})
    stated = tiny_clip.results(few)["calibration"]
    assert stated["thresholds"] is stated["expected"] is None and stated["n"] < stated["needed"] == 19
    with pytest.raises(ValueError, match="takes 19 ID images"):
        load(few)
    assert load(few, accept=0.8)
    none = judged_run.make(root, "none", data={"splits": {"val": 0.0, "test": 0.3}})
    assert tiny_clip.results(none)["calibration"] is None
    with pytest.raises(ValueError, match="had no ID val images to calibrate on"):
        load(none)


def test_flat_folders_have_no_classes(root):
    run = judged_run.make(
        root, "flat", "zero_shot", data={"id": "id/cat", "splits": {"val": 0.7, "test": 0.1}, "ood": {}}
    )
    prediction = load(run, accept=0.9)(in_order(root)[0])[0]
    assert (prediction.predicted_class, prediction.confidence) == (None, None)


def test_a_run_can_do_without_a_detector(root):
    run = judged_run.make(root, "without", evaluation={"figures": False, "save_detector": False})
    assert not (run / "detector").exists()
    with pytest.raises(ValueError, match=r"was made with evaluation\.save_detector=false"):
        load(run)


def test_a_run_can_hold_its_encoder_from_the_start(root):
    run = judged_run.make(root, "with", evaluation={"figures": False, "with_encoder": True})
    assert SavedDetector(run).encoder.in_folder and not add_encoder(SavedDetector(run))


def test_a_run_over_seeds_has_a_detector_for_each(root):
    run = judged_run.make(root, "seeds", seeds=[1, 2], detectors=["knn", "msp"])
    with pytest.raises(ValueError, match=r"a run for each of several seeds: name one, .*seed-1"):
        load(run)
    assert load(run / "seed-2").column == "knn"
