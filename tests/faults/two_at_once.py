"""Two commands on one target: afterwards all is as if one alone had run, and the other one says who is there, waits, or takes the next
name. They start together; or the second comes while the first stands still before the n-th file that it writes or renames."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count, product
from pathlib import Path

from faults import lab
from faults.process import Ended, Started, run
from faults.trial import Trial

WAITING = "waiting until that ends"
STAGES = (1, 2, 4, 7, 12, 20, 33)
KEPT = ("is in use by ", "is there already, and is kept")  # what the second one may say


SAMPLES = {
    "detect and detect together",
    "train, and train while the first is at its file 12",
    "train is killed at its file 7, and goes on",
    "different images to one file",
    "features are removed under a run",
    "a set is fetched twice",
}


def trials() -> list[Trial]:
    found = {f"{name} and {name} together": partial(_together, name) for name in lab.COMMANDS}
    for name, stage in product(lab.COMMANDS, STAGES):
        found[f"{name}, and {name} while the first is at its file {stage}"] = partial(_one_at, name, stage)
    for name, stage in product(("train", "detect", "study"), (2, 7, 20)):
        found[f"{name} is killed at its file {stage}, and goes on"] = partial(_killed_at, name, stage)
    found |= {each.__name__.strip("_").replace("_", " "): each for each in PAIRS}
    return [Trial(name, run, name in SAMPLES) for name, run in found.items()]


def _together(name: str, folder: Path) -> None:
    command = lab.COMMANDS[name](folder)
    _as_alone(name, folder, [each.finish() for each in [Started(command, folder / f"log-{n}") for n in (1, 2)]])


def _one_at(name: str, stage: int, folder: Path) -> None:
    command = lab.COMMANDS[name](folder)
    first = Started(command, folder / "log-1", partial(pause_at, str(folder), stage))
    _wait_for(folder / "paused", first)
    second = run(command, folder / "log-2", impatient)
    (folder / "go").touch()
    _as_alone(name, folder, [first.finish(), second])


def _killed_at(name: str, stage: int, folder: Path) -> None:
    command = lab.COMMANDS[name](folder)
    first = Started(command, folder / "log-1", partial(pause_at, str(folder), stage))
    _wait_for(folder / "paused", first)
    if not (folder / "paused").exists():
        return _as_alone(name, folder, [first.finish()])
    first.kill()
    again = [*command, "--resume"] if name == "train" and (folder / "runs/train/config.yaml").is_file() else command
    _as_alone(name, folder, [run(again, folder / "log-2", impatient)])


def _as_alone(name: str, folder: Path, ended: list[Ended]) -> None:
    """Compares what two commands have left with what one leaves in a folder of its own."""
    for each in ended:
        assert not each.traceback, each.said
        assert each.status == 0 or (each.status == 2 and any(told in each.said for told in KEPT)), each.said
    assert any(each.status == 0 for each in ended), [each.said for each in ended]
    (folder / "alone").mkdir()
    alone = run(lab.COMMANDS[name](folder / "alone"), folder / "log-alone")
    assert alone.status == 0, alone.said
    expected, found = content(folder / "alone"), content(folder)
    for place in [each for each in found if each.startswith(f"runs/{name}-2/")]:  # the next name
        assert found.pop(place) == expected[place.replace(f"{name}-2/", f"{name}/", 1)], place
    assert found == expected, [each for each in {*found, *expected} if found.get(each) != expected.get(each)]


def content(folder: Path) -> dict[str, object]:
    """What a command has left in a folder: results, tables and predictions as they are, of all other files that they are there."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if (
            path.is_dir()
            or place.startswith(("alone/", "log"))
            or place in ("paused", "go")
            or "events.out" in path.name
        ):
            continue
        if place.startswith("features/") and not path.name.endswith(
            (".lock", ".shared", ".lock.json", ".shared.json", ".tmp")
        ):
            continue  # of names by chance
        if path.name == ".merging" or (place.endswith(".yaml") and "/" not in place):
            continue
        if path.name == "results.json":
            results = json.loads(path.read_text())
            found[place] = [(row["detector"], row.get("auroc"), row.get("auroc_after")) for row in results["rows"]]
        else:
            found[place] = (
                path.read_bytes() if path.suffix in (".csv", ".md", ".png") and "study" not in path.name else None
            )
    return found


def pause_at(folder: str, number: int, below: str = "") -> None:
    """Lets this process stand still before it opens its n-th file `below` the folder to write, or renames one, until the file `go` is
    there."""
    stages = count(1)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
        elif event == "os.rename":
            path, writes = arguments[0], True
        else:
            return
        if writes and isinstance(path, str) and path.startswith(f"{folder}/{below}") and next(stages) == number:
            Path(folder, "paused").touch()
            while not Path(folder, "go").exists():
                time.sleep(0.02)

    sys.addaudithook(hook)


def impatient() -> None:
    from clip_ood.process import locks

    locks.PATIENCE = 0.3


def _wait_for(flag: Path, process: Started) -> None:
    """Until the file is there, or the process has ended without having come so far."""
    while not flag.exists() and process.process.is_alive():
        time.sleep(0.02)


# Different commands, one target


def _different_images_to_one_file(folder: Path) -> None:
    first, second = (_detect(folder, images, "--out", "predictions.csv") for images in ("near", "far"))
    ended = [each.finish() for each in [Started(first, folder / "log-1"), Started(second, folder / "log-2", impatient)]]
    assert sorted(each.status for each in ended) == [0, 2] and not any(each.traceback for each in ended), ended
    done = "near" if ended[0].status == 0 else "far"
    lines = (folder / "predictions.csv").read_text().splitlines()[1:]
    assert len(lines) == len(list((lab.shared() / "data" / done).iterdir())) and all(
        f"/{done}/" in line for line in lines
    )
    assert _names(folder) == {"predictions.csv"}


def _files_of_each_format_beside_each_other(folder: Path) -> None:
    formats = ("csv", "jsonl", "parquet")
    begun = [Started(_detect(folder, "near", "--out", f"v.{each}"), folder / f"log-{each}") for each in formats]
    assert [each.finish().status for each in begun] == [0, 0, 0], [each.said for each in begun]
    assert _names(folder) == {"v.csv", "v.jsonl", "v.parquet"}


def _flagged_images_to_one_folder(folder: Path) -> None:
    """Images of one name from two folders: all are there, whoever comes first."""
    commands = [_detect(folder, images, "--copy-ood", "odd", "--accept", "0.05") for images in ("near", "far", "near")]
    ended = [each.finish() for each in [Started(each, folder / f"log-{n}") for n, each in enumerate(commands)]]
    assert all(each.status == 0 for each in ended), ended
    flagged = {Path(line.split(",")[0]) for each in ended for line in each.said.splitlines() if ",true," in line}
    kept = sorted(path.read_bytes() for path in (folder / "odd").rglob("*.png"))
    assert flagged and kept == sorted(path.read_bytes() for path in flagged)
    assert _names(folder) == {"odd"}


def _one_graph_is_written_twice(folder: Path) -> None:
    command = _detect(folder, None, "--export", "model.pt2", "--detector", "knn")
    ended = [each.finish() for each in [Started(command, folder / f"log-{n}") for n in (1, 2)]]
    assert any(each.status == 0 for each in ended) and not any(each.traceback for each in ended), ended
    assert all(each.status == 0 or any(told in each.said for told in KEPT) for each in ended), ended
    assert _names(folder) == {"model.pt2", "clip_ood_pixels.py"}


def _one_detector_gets_its_encoder_twice(folder: Path) -> None:
    import shutil

    shutil.copytree(lab.shared() / "runs" / "finished" / "detector", folder / "detector")
    command = ["detect.py", "--run", f"{folder}/detector", "--with-encoder"]
    ended = [each.finish() for each in [Started(command, folder / f"log-{n}") for n in (1, 2)]]
    assert all(each.status == 0 for each in ended), ended
    assert sum("holds its encoder now" in each.said for each in ended) == 1
    judged = run(["detect.py", "--run", f"{folder}/detector", f"{lab.shared()}/data/near"], folder / "log-3")
    assert judged.status == 0, judged.said
    assert _names(folder) == {"detector"}


def _train_and_eval_of_one_name(folder: Path) -> None:
    train = lab.train(folder, "same", lab.PROBE)
    zero_shot = ["eval.py", "--config", lab.config(folder, "other", {"zero_shot": {}}), "--name=same"]
    ended = [each.finish() for each in [Started(train, folder / "log-1"), Started(zero_shot, folder / "log-2")]]
    assert all(each.status == 0 for each in ended), ended
    methods = [
        json.loads((folder / "runs" / name / "results.json").read_text())["method"] for name in ("same", "same-2")
    ]
    assert sorted(methods) == ["linear_probe", "zero_shot"]
    assert all(
        f"{method}:" in (folder / "runs" / name / "config.yaml").read_text()
        for name, method in zip(("same", "same-2"), methods, strict=True)
    )


def _several_processes_twice(folder: Path) -> None:
    """Each run is of two processes, of which the second is not kept out by its own first."""
    command = lab.train(folder, "two", lab.PROBE, "--trainer.devices=2", "--trainer.strategy=ddp")
    begun = [Started(command, folder / "log-1"), Started(command, folder / "log-2", impatient)]
    ended = [each.finish() for each in begun]
    assert sorted(each.status for each in ended) == [0, 2] and not any(each.traceback for each in ended), ended
    assert (folder / "runs" / "two" / "results.json").is_file() and not (folder / "runs" / "two-2").exists()


def _replaced_while_it_is_trained(folder: Path) -> None:
    command = lab.train(folder, "train", lab.PROBE)
    first = Started(command, folder / "log-1", partial(pause_at, str(folder), 12))
    _wait_for(folder / "paused", first)
    for options in (["--overwrite"], ["--resume"]):
        second = run([*command, *options], folder / "log-2", impatient)
        assert second.status == 2 and KEPT[0] in second.said, second.said
    (folder / "go").touch()
    _as_alone("train", folder, [first.finish()])


def _features_are_removed_under_a_run(folder: Path) -> None:
    paused = partial(pause_at, str(folder), 1, "runs/train/checkpoints/")
    first = Started(lab.train(folder, "train", lab.PROBE), folder / "log-1", paused)
    _wait_for(folder / "paused", first)
    (number,) = (path.parent.name for path in (folder / "features").glob("*/encoder.json"))
    for what in (["--files"], [number], ["--unused-for", "0"]):
        refused = run(
            ["clip_ood", "features", "remove", "--root", f"{folder}/features", *what], folder / "log-2", impatient
        )
        assert refused.status == 1 and KEPT[0] in refused.said and not refused.traceback, refused.said
    (folder / "go").touch()
    _as_alone("train", folder, [first.finish()])
    removed = run(
        ["clip_ood", "features", "remove", "--root", f"{folder}/features", number, "--files"], folder / "log-3"
    )
    assert removed.status == 0 and not list((folder / "features").glob("*/*")), removed.said


def _runs_are_compared_twice(folder: Path) -> None:
    import shutil

    shutil.copytree(lab.shared() / "runs" / "finished", folder / "runs" / "a")
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    command = ["eval.py", "--compare", f"{folder}/runs/a", f"{folder}/runs/b", "--html", f"{folder}/page.html"]
    ended = [each.finish() for each in [Started(command, folder / f"log-{n}") for n in (1, 2, 3)]]
    assert all(each.status == 0 for each in ended), ended
    assert _names(folder) == {"runs", "page.html"} and (folder / "page.html").read_text().rstrip().endswith("</html>")
    assert {path.name for path in (folder / "runs").iterdir()} == {"a", "b", "compare-a-b.csv", "compare-a-b.md"}


def _a_set_is_fetched_twice(folder: Path) -> None:
    """The second one waits, and fetches nothing."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    served = folder / "log-served"
    served.mkdir()
    _archive(served / "set.tar")
    asked, logs = [], [folder / f"log-{n}" for n in (1, 2)]

    class Slow(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def do_GET(self):
            asked.append(self.path)
            end = time.monotonic() + 60  # the other one may be slow to start
            while time.monotonic() < end and not any(WAITING in log.read_text() for log in logs if log.is_file()):
                time.sleep(0.05)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Thread(target=server.serve_forever, daemon=True).start()
    offered = partial(_offer, f"http://127.0.0.1:{server.server_port}/set.tar")
    command = ["clip_ood", "catalog", "get", "Textures", "--root", f"{folder}/data"]
    ended = [each.finish() for each in [Started(command, log, offered) for log in logs]]
    server.shutdown()
    assert all(each.status == 0 for each in ended) and len(asked) == 1, (ended, asked)
    assert sum(WAITING in each.said for each in ended) == 1
    assert {path.name for path in (folder / "data").iterdir() if path.suffix != ".sha256"} == {"images"}


def _archive(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w") as tar:
        for image in (lab.shared() / "data" / "near").iterdir():
            tar.add(image, f"images/{image.name}")


def _offer(url: str) -> None:
    from dataclasses import replace

    from clip_ood.config import sets as entries

    known, images = entries.entry("Textures"), len(list((lab.shared() / "data" / "near").iterdir()))
    split = entries.Split(images, [{"folder": "images"}])
    entries.catalogue()["Textures"] = replace(known, files=(entries.File(url, "images"),), splits={"test": split})


def _detect(folder: Path, images: str | None, *options: str) -> list[str]:
    paths = [f"{lab.shared()}/data/{images}"] if images else []
    placed = [
        f"{folder}/{each}" if each.startswith(("v.", "predictions", "odd", "model")) else each for each in options
    ]
    return ["detect.py", "--run", f"{lab.shared()}/runs/finished", *paths, *placed]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("log")}


PAIRS: tuple[Callable[[Path], None], ...] = (
    _different_images_to_one_file,
    _files_of_each_format_beside_each_other,
    _flagged_images_to_one_folder,
    _one_graph_is_written_twice,
    _one_detector_gets_its_encoder_twice,
    _train_and_eval_of_one_name,
    _several_processes_twice,
    _replaced_while_it_is_trained,
    _features_are_removed_under_a_run,
    _runs_are_compared_twice,
    _a_set_is_fetched_twice,
)
