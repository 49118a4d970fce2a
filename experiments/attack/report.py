"""The files of an attack: table (Markdown, CSV), results.json, pictures, and what the loggers of its experiment are given."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from PIL import Image

from clip_ood.experiments.attack.conduct import Found
from clip_ood.experiments.attack.craft import folder_of, looked_at, variants
from clip_ood.experiments.attack.figures import curves, gallery
from clip_ood.experiments.attack.plan import AFTER, BEFORE, Plan
from clip_ood.experiments.attack.values import PLAIN, Row, Scores, as_dicts, curve_of, rows_of
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.logged import log_figure, log_text
from clip_ood.experiments.loggers import ending_trackers, label, make_loggers
from clip_ood.experiments.run_facts import encoder_name
from clip_ood.files.writing import write_text, written_text, written_whole
from clip_ood.files.written_names import cells, path_cell, text_cell
from clip_ood.process.called import called
from clip_ood.runs.going_on import next_step
from clip_ood.runs.results_files import write_json
from clip_ood.runs.run_folder import FINISHED
from clip_ood.terminal.markdown import markdown_table
from clip_ood.terminal.shown import say, shown

SHOWN = 6  # pairs in the gallery
CAPTION = (
    "AUROC and FPR95 in percent, before → after; ID is positive: FPR95 = share of OOD accepted at 95 % of ID. Fooled: of the "
    "images rejected before, at the threshold that accepts 95 % of ID test images, the share accepted after."
)


def write(plan: Plan, folder: Path, found: Found) -> None:
    """Writes everything, results.json last, and prints the table."""
    rows = rows_of(found.runs, list(plan.attack.defences), found.exact)
    told = about(plan, found)
    with written_text(folder / "attack.csv") as file:
        writer = csv.DictWriter(file, as_dicts(rows)[0])
        writer.writeheader()
        writer.writerows(cells(row, ("condition", "detector")) for row in as_dicts(rows))
    _write_pairs(folder / "pairs.csv", found)
    text = markdown(plan, rows, told)
    write_text(folder / "attack.md", shown(text))
    pictures = _draw(plan, folder, found)
    with ending_trackers():
        for logger in make_loggers(plan.config.trainer, folder, label(plan.config, folder)):
            _log(logger, plan, found, rows, text, pictures)
    content = {"run": folder.name, "kind": "attack", "method": plan.config.method.name, **told, "rows": as_dicts(rows)}
    write_json(folder / FINISHED, content)
    say(text)
    say(f"Results: {folder}")
    attacked = f"--data.ood.attacked={folder_of(plan, folder, AFTER).resolve()}"
    say(
        next_step(
            [*called("eval").split(), "--run", "RUN", attacked], "score the images, an ordinary set, with another run"
        )
    )


def about(plan: Plan, found: Found) -> dict[str, Any]:
    """What was done, and its means over the pairs: `before`, `after` and `float` (not rounded) of the cosine to the target or of
    the score that was raised; l2, linf, tv of the saved perturbation, pixels in [0, 1]."""
    attack = plan.attack
    means = {
        name: found.figures[name].double().mean().item() for name in ("before", "after", "float", "l2", "linf", "tv")
    }
    raised = f"score {attack.score}" if attack.score else "cosine to the target"
    settings = attack.model_dump(mode="json", include=_SETTINGS)
    return {
        "encoder": encoder_name(plan.config),
        "seed": plan.config.seed,
        **settings,
        "raised": raised,
        "not_targeted": found.pairs.others if found.pairs.aim_rows else None,
        "means": means,
    }


_ALL = " Every readable ID training image is a target, so that no bank without targets can be scored: take fewer pairs."
_SETTINGS = {"ood", "pairs", "target", "score", "steps", "lr", "smoothness", "noise", "sign", "budget"}


def markdown(plan: Plan, rows: list[Row], told: dict[str, Any]) -> str:
    """Title, what was done, the table."""
    conditions = list(dict.fromkeys(row.condition for row in rows if row.condition != PLAIN))
    cell = {(row.condition, row.detector): row for row in rows}
    detectors = [row.detector for row in rows if row.condition == PLAIN]
    header = ["score", "AUROC", "FPR95", "fooled", *(f"AUROC, {condition}" for condition in conditions)]
    lines = []
    for name in detectors:
        row = cell[PLAIN, name]
        others = [_moved(cell[each, name]) if (each, name) in cell else "" for each in conditions]
        success = "" if row.success is None else f"{100 * row.success:.0f}"
        fpr = f"{100 * row.fpr95_before:.1f} → {100 * row.fpr95_after:.1f}"
        lines.append([f"`{name}`", _moved(row), fpr, success, *others])
    return (
        "\n\n".join([f"# {plan.attack.name}", _told(plan, told), markdown_table(header, lines, names=1), CAPTION])
        + "\n"
    )


def _told(plan: Plan, told: dict[str, Any]) -> str:
    attack, means = plan.attack, told["means"]
    goal = (
        f"to raise `{attack.score}`"
        if attack.score
        else {
            "train": "onto features of random ID training images",
            "nearest": "onto features of the nearest ID training images",
            "text": "onto the text embedding of the nearest class",
        }[attack.target]
    )
    budget = f", {attack.budget.norm} ≤ {attack.budget.epsilon:g}" if attack.budget else ""
    return (
        f"{attack.pairs} images of {attack.ood} moved {goal} of {told['encoder']}: {attack.steps} steps of "
        f"{'the gradient’s sign' if attack.sign else 'Adam'}, lr {attack.lr:g}, λ {attack.smoothness:g}{budget}. Mean "
        f"{told['raised']} {means['before']:.4g} → {means['after']:.4g} (not rounded: {means['float']:.4g}); perturbations "
        f"L2 {means['l2']:.2f}, L∞ {means['linf']:.3f}, total variation {means['tv']:.0f} (pixels in [0, 1])."
        f"{_ALL if told['not_targeted'] == 0 else ''}"
    )


def _moved(row: Row) -> str:
    return f"{100 * row.auroc_before:.1f} → {100 * row.auroc_after:.1f}"


def _write_pairs(path: Path, found: Found) -> None:
    aims = found.pairs.aims or [""] * len(found.pairs)
    figures = {name: values.tolist() for name, values in found.figures.items() if values.ndim == 1}
    names = (map(path_cell, found.files), map(path_cell, found.pairs.names), map(text_cell, aims))
    with written_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(["file", "ood_image", "target", *figures])
        writer.writerows(zip(*names, *figures.values(), strict=True))


def _draw(plan: Plan, folder: Path, found: Found) -> dict[str, Figure]:
    pictures = {"gallery": _gallery(plan, folder, found)}
    if plan.attack.curve is not None:
        pictures["curves"] = _curves(plan, found)
    for name, figure in pictures.items():
        with written_whole(folder / f"{name}.png") as file:
            figure.savefig(file)
    return pictures


def _log(logger: Logger, plan: Plan, found: Found, rows: list[Row], text: str, pictures: dict[str, Figure]) -> None:
    """AUROCs by condition before (step 0) and after, those of the curve over steps, the table and the pictures."""
    before, after = (
        {
            f"attack/{row.condition.replace(' ', '_') or 'plain'}/{row.detector}/auroc": getattr(row, when)
            for row in rows
        }
        for when in ("auroc_before", "auroc_after")
    )
    points: dict[int, dict[str, float]] = {0: before, plan.attack.steps: after}
    if plan.attack.curve is not None:
        for detector, curve in curve_of(found.runs[PLAIN], _step_sets(plan)).items():
            for step, value in curve:
                points.setdefault(int(step), {})[f"attack/steps/{detector}/auroc"] = value
    for step in sorted(points):
        logger.log_metrics(points[step], step)
    log_text(logger, "attack", text)
    for name, figure in pictures.items():
        log_figure(logger, f"attack/{name}", figure, plan.attack.steps)
    logger.finalize("success")


def _gallery(plan: Plan, folder: Path, found: Found):
    shown = range(min(SHOWN, len(found.pairs)))
    before, after = (
        [Image.open(folder_of(plan, folder, name) / found.files[i]).convert("RGB") for i in shown]
        for name in (BEFORE, AFTER)
    )
    scores = Scores(found.runs[PLAIN])
    name = plan.attack.score or ("knn" if "knn" in scores.detectors else scores.detectors[0])
    first, second = scores.of(BEFORE, name), scores.of(AFTER, name)
    said = [f"{name} {first[i]:#.3g} → {second[i]:#.3g}" for i in shown]
    return gallery(before, after, _targets(plan, folder, found, len(shown)), said)


def _targets(plan: Plan, folder: Path, found: Found, count: int) -> list[Image.Image | str]:
    if found.pairs.aim_rows is None:
        return (found.pairs.aims or [])[:count]
    benchmark = load_benchmark(as_kept(plan.config, kept_in(folder)))
    images = benchmark.images[benchmark.parts["train"].images]
    return [images.read(row) for row in found.pairs.aim_rows[:count]]


def _step_sets(plan: Plan) -> dict[float, str]:
    steps = {float(step): f"step_{step:04d}" for step in looked_at(plan.attack)}
    return {0.0: BEFORE} | steps | {float(plan.attack.steps): AFTER}


def _curves(plan: Plan, found: Found):
    smoothness = {made.smoothness: name for name, (made, _) in variants(plan.attack).items()}
    run = found.runs[PLAIN]
    return curves(curve_of(run, _step_sets(plan)), curve_of(run, smoothness), plan.attack.curve.pairs)
