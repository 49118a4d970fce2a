"""A report that could not be written leaves its run finished, and is written later, out of the run's own files."""

from __future__ import annotations

import shutil

import pytest
import tiny_clip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import PROBE

import eval as evaluation
import train
from clip_ood.errors import ConfigError
from clip_ood.experiments.commands import features
from clip_ood.report import comparison, run_page
from clip_ood.report.compare import show

pytestmark = pytest.mark.slow

REPORTED = {"figures": True, "report": True}


@pytest.fixture
def failing(monkeypatch):
    """No report can be written."""

    def fails(path, *arguments, **values):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(run_page, "write_page", fails)
        yield patch


def train_(root, name, *options, **keys):
    config = tiny_clip.config(root, name, PROBE, evaluation=REPORTED, **keys)
    train.main(["--config", config, *options])
    return root / "runs" / name


def whole(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tfevents" not in path.name}


@pytest.fixture(scope="module")
def finished(root):
    return train_(root, "finished")


def test_a_report_that_fails_leaves_the_run_finished_and_is_had_later(root, finished, failing, capsys):
    with pytest.raises(ConfigError, match=r"failed has no report yet: python eval\.py --report .*failed writes it"):
        train_(root, "failed")
    run, said = root / "runs" / "failed", capsys.readouterr()
    assert "its report could not be written: " in said.err and "report.html: No space left on device" in said.err
    assert "knn" in said.out and "Results: " in said.out
    assert {path.name for path in whole(run)} == {path.name for path in whole(finished)} - {"report.html"}
    with pytest.raises(ConfigError, match=r"There is no unfinished run .* eval\.py --report"):
        train.main(["--config", str(root / "failed.yaml"), "--resume"])
    failing.undo()
    before = whole(run)
    evaluation.main(["--report", str(run)])
    written = (run / "report.html").read_bytes()
    assert written.replace(b"failed", b"finished") == (finished / "report.html").read_bytes()
    assert {path: content for path, content in whole(run).items() if path.name != "report.html"} == before


def test_every_seed_is_run_and_has_its_report_later(root, failing):
    with pytest.raises(ConfigError, match="has no report yet"):
        train_(root, "seeds", "--seeds", "1", "2")
    run = root / "runs" / "seeds"
    assert tiny_clip.results(run)["seeds"] == [1, 2] and not list(run.rglob("report.html"))
    failing.undo()
    evaluation.main(["--report", str(run)])
    assert len(list(run.rglob("report.html"))) == 3


def test_a_run_that_is_replaced_goes_though_the_report_fails(root, finished, failing):
    run = root / "runs" / "replaced"
    shutil.copytree(finished, run)
    with pytest.raises(ConfigError, match="has no report yet"):
        train_(root, "replaced", "--overwrite")
    assert (run / "config.yaml").is_file() and not list((root / "runs").glob(".*"))


def test_a_report_is_missing_at_the_next_command(root, finished, capsys):
    """As where the run was killed between its results and its report."""
    run = root / "runs" / "killed"
    shutil.copytree(finished, run)
    (run / "report.html").unlink()
    train_(root, "killed")  # goes to killed-2
    assert f"{run} has no report yet: python eval.py --report {run} writes it" in capsys.readouterr().out
    show([str(run), str(finished)])
    assert f"{run} has no report yet" in capsys.readouterr().out
    assert comparison.open_run(str(run))


def test_figures_that_fail_leave_the_run_finished_and_are_drawn_later(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.subplots", lambda *_, **__: 1 / 0)
        with pytest.raises(ConfigError, match="has no report yet"):
            train_(root, "figures")
    run = root / "runs" / "figures"
    assert (run / "config.yaml").is_file() and tiny_clip.results(run)["rows"]
    assert not _images(run)
    evaluation.main(["--report", str(run)])
    assert {"ood/near/histograms", "ood/near/curves"} <= _images(run)


def _images(run):
    return set(EventAccumulator(str(run), {"images": 0}).Reload().Tags()["images"])


@pytest.mark.parametrize(
    ("place", "told"), [("data", "is no finished run: it lacks"), ("attacked", "is an attack, whose pictures")]
)
def test_what_has_no_report_is_told(root, place, told):
    attacked = root / "attacked"
    attacked.mkdir(exist_ok=True)
    (attacked / "config.yaml").touch()
    (attacked / "results.json").write_text('{"kind": "attack", "rows": []}')
    with pytest.raises(ConfigError, match=told):
        evaluation.main(["--report", str(root / place)])


@pytest.mark.parametrize("option", ["--report", "--compare", "--summary"])
def test_a_run_whose_name_is_not_utf8_is_named(option, finished, tmp_path):
    run = tmp_path / "r\udcff"
    shutil.copytree(finished, run)
    runs = [str(run)] if option == "--report" else [str(run), str(finished)]
    with pytest.raises(ConfigError, match=r"holds bytes that are not UTF-8.*rename it"):
        evaluation.main([option, *runs])


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_scores_that_are_lost_are_named_and_the_way_out_works(harm, finished, root, tmp_path):
    run = train_(root, harm)
    content = (run / "scores.parquet").read_bytes()
    (run / "scores.parquet").unlink()
    if harm == "damaged":
        (run / "scores.parquet").write_text("no table")
    for main, options in (
        (evaluation.main, ["--report", str(run)]),
        (evaluation.main, ["--compare", str(run), str(finished)]),
        (features.main, ["export", "--run", str(run), "--out", str(tmp_path / "e.parquet")]),
    ):
        with pytest.raises(ConfigError, match=rf"scores\.parquet is {harm}.*Remove the results\.json in its folder"):
            main(options)
    (run / "results.json").unlink()
    train_(root, harm, "--resume")
    assert (run / "scores.parquet").read_bytes() == content
