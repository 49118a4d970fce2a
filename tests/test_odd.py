"""Which share of labelled odd images is flagged: by a run's threshold, by detect.py --odd, and by the detector that they choose."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import judged_run
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch

import detect
from clip_ood import load
from clip_ood.detect.odd import flagged_by_leave_one_out, most_flagging
from clip_ood.errors import ConfigError, UserError
from clip_ood.metrics.intervals import clopper_pearson, share_told
from clip_ood.runs.files import read_results
from clip_ood.runs.results_table import remarks


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_by_leave_one_out_is_that_of_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(9, 4, generator=generator) < torch.tensor([0.5, 0.6, 0.4, 0.6])
    patterns, found = Counter(tuple(row) for row in flags.tolist()), 0
    for image in range(9):
        others = torch.cat([flags[:image], flags[image + 1 :]]).sum(dim=0)
        best = int((others == others.max()).nonzero()[0])  # of equal ones the first
        found += int(flags[image, best])
    assert flagged_by_leave_one_out(patterns) == found
    assert flags.sum(dim=0)[most_flagging(patterns)] == flags.sum(dim=0).max() >= found


@pytest.mark.slow
def test_a_run_says_how_many_images_of_each_set_its_threshold_flags(run, tmp_path):
    results, of_set = tiny_clip.results(run), {}
    for column, threshold in results["calibration"]["thresholds"].items():
        scores = [row[column] for row in judged_run.scores(run, "ood").values()]
        flagged = sum(score < threshold for score in scores)
        assert results["calibration"]["flagged"][column] == {"near": flagged}
        of_set[column] = f"near {share_told(flagged, len(scores))}"
    lines = [line for line in remarks(results) if line.startswith("At the threshold that accepts 95 %")]
    assert lines == [f"At the threshold that accepts 95 % of new ID images, knn flags: {of_set['knn']}"]
    content = json.loads((run / "results.json").read_text())
    content["calibration"]["flagged"]["knn"]["near"] = 10
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="says that more images of 'near' are flagged than the table has"):
        read_results(tmp_path / "results.json")
    assert not any("At the threshold" in line for line in remarks(results | {"calibration": None}))


@pytest.mark.slow
def test_detect_gives_the_share_of_odd_images_with_its_interval(root, run, capsys):
    odd = sorted((root / "data" / "far").iterdir())
    judged_run.judged("--run", run, "--odd", root / "data" / "far", "--detector", "knn,msp,rmd")
    said, patterns = capsys.readouterr().err, Counter()
    flags = {name: [each.is_ood for each in load(run, name)(odd)] for name in ("knn", "msp", "rmd")}
    for name, flagged in flags.items():
        low, high = clopper_pearson(sum(flagged), len(odd))
        assert f"Clopper and Pearson: {100 * low:.1f} to {100 * high:.1f} %): {name} below" in said
    patterns.update(zip(*flags.values(), strict=True))
    assert f"the choice flags {share_told(flagged_by_leave_one_out(patterns), len(odd))}" in said
    judged_run.judged("--run", run, root / "data" / "far", "--detector", "knn,msp,rmd")
    assert "Clopper" not in capsys.readouterr().err
    for wrong in (["--odd", root / "data" / "far", "--fdr", "0.2"], ["--odd", "--with-encoder"]):
        with pytest.raises(ConfigError, match="--odd says how many"):
            detect.main([str(each) for each in ("--run", run, *wrong)])


@pytest.mark.slow
def test_copies_of_id_images_are_no_odd_images(root, run, tmp_path, capsys):
    odd = Path(shutil.copytree(root / "data" / "far", tmp_path / "odd"))
    judged_run.judged("--run", run, "--odd", odd, "--detector", "knn,msp,rmd")
    alone = [line for line in capsys.readouterr().err.splitlines() if "images judged" in line or "flags most" in line]
    for number, path in enumerate(pq.read_table(run / "detector" / "bank.parquet")["path"].to_pylist()[:2]):
        shutil.copy(root / "data" / "id" / path, odd / f"{number}_copy.png")
    judged_run.judged("--run", run, "--odd", odd, "--detector", "knn,msp,rmd")
    said = capsys.readouterr().err
    total = len(list(odd.iterdir()))
    assert f"2 of the {total} images judged are copies of ID images of the run" in said
    assert "left out of the shares below" in said and all(line in said for line in alone) and len(alone) == 4
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(odd / "0_copy.png", only)
    judged_run.judged("--run", run, "--odd", only, "--detector", "knn,msp,rmd")
    said = capsys.readouterr().err
    assert "0 images judged, 0 of them OOD: knn" in said and "flags most" not in said
