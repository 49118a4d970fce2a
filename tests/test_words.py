"""The nearest words of a vocabulary name the images that a run ranks, and new ones."""

from __future__ import annotations

import csv
import json
import shutil

import judged_run
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image

import detect
import train
from clip_ood import load
from clip_ood.detect.manifest import MANIFEST, DetectorFolderError
from clip_ood.detect.save import hashes, seal
from clip_ood.detect.vocabulary_file import FILE, read_vocabulary, write_vocabulary
from clip_ood.errors import UserError
from clip_ood.files.records import Unfit
from clip_ood.folder.files import read_suspects, write_suspects
from clip_ood.texts.vocabulary import Vocabulary

WORDS = ["=sum", "fox fur", "kite (toy)", "moss", "Ölbild"]


@pytest.fixture(scope="module")
def run(root):
    (root / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return judged_run.cross_fitted(
        root, "named", detectors=["knn"], data={"vocabulary": f"{root}/words.txt"}, evaluation={"cross_fit": 4}
    )


@pytest.fixture(scope="module")
def cosines(root):
    """A function from an image's file to its cosines to all words, by open_clip alone."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokens = open_clip.get_tokenizer(f"local-dir:{root}/clip")([f"a photo of a {word}." for word in WORDS])

    @torch.inference_mode()
    def of(path):
        image = model.eval().encode_image(transform(Image.open(path))[None], normalize=True)
        return (image @ model.encode_text(tokens, normalize=True).T)[0].numpy()

    return of


def test_suspects_are_named_by_their_nearest_words(root, run, cosines):
    found = list(read_suspects(run / "suspects.csv"))
    assert len({each.words for each in found}) > 1
    for each in found[:10]:
        of = cosines(root / "data/id" / each.path)
        assert each.words == ", ".join(WORDS[place] for place in np.argsort(-of)[:3])
    assert tiny_clip.results(run)["suspects"]["vocabulary"] == 5
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f'<span class="words">{found[0].words}</span>' in page and "nearest of 5 (data.vocabulary)" in page


def test_new_images_are_named(root, run, cosines, tmp_path):
    image = root / "data/near/0.png"
    of = cosines(image)
    first = load(run, words=2, nearest=1)(image)[0]
    assert [each.word for each in first.words] == [WORDS[place] for place in np.argsort(-of)[:2]]
    assert [each.cosine for each in first.words] == pytest.approx(np.sort(of)[:-3:-1], abs=1e-4)
    assert len(first.nearest) == 1 and load(run)(image)[0].words is None
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        judged_run.judged("--run", run, root / "data/near", "--words", 2, "--out", tmp_path / name)
    lines = [json.loads(row["words"]) for row in judged_run.read(tmp_path / "out.csv")]
    assert [each["word"] for each in lines[0]] == [each.word for each in first.words]
    assert lines == [json.loads(line)["words"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == pq.read_table(tmp_path / "out.parquet")["words"].to_pylist()


def test_a_run_without_words_and_too_many_are_told(root, run):
    with pytest.raises(UserError, match="words = 6, expected 1 to 5"):
        load(run, words=6)
    bare = judged_run.cross_fitted(root, "bare", detectors=["knn"])
    assert not (bare / "detector" / FILE).exists() and next(read_suspects(bare / "suspects.csv")).words is None
    with pytest.raises(UserError, match=r"holds no words .* data\.vocabulary \(imagenet, wordnet or a file of words\)"):
        load(bare, words=1)
    shutil.move(root / "clip", root / "away")
    try:
        with pytest.raises(UserError, match="holds no words"):  # before the encoder is loaded
            detect.main(["--run", str(bare), str(root / "data/near"), "--words", "1"])
    finally:
        shutil.move(root / "away", root / "clip")


def test_a_vocabulary_comes_back_and_another_file_is_refused(tmp_path):
    for dtype in (torch.float16, torch.float32):
        vocabulary = Vocabulary(("a", "b, c"), torch.randn(2, 3).to(dtype))
        write_vocabulary(tmp_path, vocabulary)
        found = read_vocabulary(tmp_path / FILE)
        assert found.words == vocabulary.words and torch.equal(found.embeddings, vocabulary.embeddings)
    write_vocabulary(tmp_path, Vocabulary(("a",), torch.tensor([[torch.nan]])))
    with pytest.raises(Unfit, match="not finite"):
        read_vocabulary(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"PAR1 and more")
    with pytest.raises(Unfit):
        read_vocabulary(tmp_path / FILE)
    pq.write_table(pq.read_table(run_of_no_words(tmp_path)), tmp_path / FILE)
    with pytest.raises(Unfit, match="other columns"):
        read_vocabulary(tmp_path / FILE)


def run_of_no_words(folder):
    import pyarrow as pa

    pq.write_table(pa.table({"word": ["a"]}), folder / "other.parquet")
    return folder / "other.parquet"


def test_words_of_another_width_are_refused_before_an_image_is_judged(run, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(run / "detector", folder)
    write_vocabulary(folder, Vocabulary(("a", "b"), torch.ones(2, 3)))
    manifest = json.loads((folder / MANIFEST).read_text())
    seal(folder, manifest | {"files": hashes(folder, [folder / name for name in manifest["files"]])})
    load(folder)
    with pytest.raises(DetectorFolderError, match="does not fit its encoder"):
        load(folder, words=1)


def test_suspects_of_an_earlier_version_have_no_words(run, tmp_path):
    with (run / "suspects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "words"]
    with (tmp_path / "suspects.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    found = list(read_suspects(tmp_path / "suspects.csv"))
    assert len(found) == 46 and {each.words for each in found} == {None}
    write_suspects(tmp_path / "again.csv", read_suspects(run / "suspects.csv"))
    assert (tmp_path / "again.csv").read_bytes() == (run / "suspects.csv").read_bytes()


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5"])
def test_a_count_that_is_none_is_told(count, capsys):
    with pytest.raises(SystemExit):
        detect.main(["--run", "x", "photos", f"--words={count}"])
    assert f"'{count}' must be a whole number, 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"data": {"vocabulary": "nowhere.txt"}}, r"data\.vocabulary: There is no WordNet .* nowhere\.txt"),
        ({"data": {"vocabulary": "{root}/words.txt"}, "method": "finetune"}, "fine-tuning changes the image encoder"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_told_at_once(root, run, keys, told):
    data = {key: value.format(root=root) for key, value in keys["data"].items()}
    method = judged_run.METHODS[keys.get("method", "linear_probe")]
    config = tiny_clip.config(root, "refused", method)
    with pytest.raises(UserError, match=told):
        train.main(["--config", config, *(f"--data.{key}={value}" for key, value in data.items())])
    assert not (root / "runs/refused").exists()


def test_an_encoder_of_images_names_nothing_and_says_so(root, run, capsys):
    backbone = {"library": "timm", "model": "vit_tiny_patch16_224", "pretrained": None}
    made = judged_run.cross_fitted(
        root, "images_only", detectors=["knn"], data={"vocabulary": f"{root}/words.txt"}, backbone=backbone
    )
    assert "No words name the images (data.vocabulary): vit_tiny_patch16_224" in capsys.readouterr().out
    assert {each.words for each in read_suspects(made / "suspects.csv")} == {None}
