"""Builds the demo's image folders from the Debian package `tuxpaint-stamps-default` and scikit-learn's digits.

    clip-ood demo images [OUT]           (default data/demo; Debian or Ubuntu, 161 MB download, then seconds)

    OUT/id/<class>/     154 pictures in 9 classes, nearly all photographs, cut out on white
    OUT/ood/stamps      154 other pictures: household, town, clothes, vehicles, space, ...
    OUT/ood/symbols     247 letters, signs, coins
    OUT/ood/digits      200 handwritten digits, dark on white
    OUT/LICENSE.stamps  the package's licence (GPL-2): the images are never committed

Left out: `cartoon` folders and `_mirror` / `_flip` copies (drawings and doubles), vector files, the folders `seasonal`
and those of animals, food and plants that are no class.
"""

import shutil
import time
from pathlib import Path

from PIL import Image

from clip_ood.demo.debian import unpacked
from clip_ood.demo.folders import written_whole
from clip_ood.errors import UserError
from clip_ood.process.called import called
from clip_ood.process.locks import in_turn
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import say

PACKAGE = "tuxpaint-stamps-default"
CLASSES = {  # class: (its folder, without those below; images)
    "bird": ("animals/birds", 35),
    "fish": ("animals/fish", 11),
    "insect": ("animals/insects", 9),
    "fruit": ("food/fruit", 26),
    "vegetable": ("food/vegetables", 18),
    "flower": ("plants/flowers", 24),
    "tree": ("plants/trees", 7),
    "hoofed animal": ("animals/mammals/bovines", 16),
    "rodent": ("animals/mammals/rodents", 8),
}
NEITHER = {"animals", "food", "plants", "seasonal", "symbols"}  # top folders with nothing for ood/stamps
COUNTS = {f"id/{name}": count for name, (_, count) in CLASSES.items()}
COUNTS |= {"ood/stamps": 154, "ood/symbols": 247, "ood/digits": 200}


def squared_on_white(image: Image.Image) -> Image.Image:
    """Returns the image in RGB, centred on the smallest white square that holds it, with its transparency blended with the white."""
    cutout = image.convert("RGBA")
    side = max(cutout.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(cutout, ((side - cutout.width) // 2, (side - cutout.height) // 2), cutout)
    return square


def stamps(root: Path) -> dict[str, Path]:
    """Returns where each stamp under `root` goes: {"id/bird/crow.png": its file}. Flat folders join the folders' names."""
    places = {}
    class_of = {folder: name for name, (folder, _) in CLASSES.items()}
    for file in sorted(root.rglob("*.png")):
        path = file.relative_to(root)
        if "cartoon" in path.parts or path.stem.endswith(("_mirror", "_flip")):
            continue
        if name := class_of.get(path.parent.as_posix()):
            places[f"id/{name}/{path.name}"] = file
        elif path.parts[0] == "symbols":
            places["ood/symbols/" + "-".join(path.parts[1:])] = file
        elif path.parts[0] not in NEITHER:
            places["ood/stamps/" + "-".join(path.parts)] = file
    return places


def write_digits(folder: Path, count: int = 200, side: int = 64) -> None:
    """Writes the first `count` of scikit-learn's digits (8 x 8, ink 0 to 16), dark on white, bicubic to `side` pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(count):
        page = (255 - digits.images[index] * (255 / 16)).round().astype("uint8")
        image = Image.fromarray(page).resize((side, side), Image.Resampling.BICUBIC)
        image.convert("RGB").save(folder / f"{index:04d}_is_{digits.target[index]}.png")


def check_counts(out: Path) -> None:
    """Raises UserError unless every folder holds as many images as the demo's numbers were measured on."""
    found = {name: len(list((out / name).glob("*.png"))) for name in COUNTS}
    wrong = [f"{name}: {found[name]} instead of {COUNTS[name]}" for name in COUNTS if found[name] != COUNTS[name]]
    if wrong:
        raise UserError(f"{PACKAGE} is not the version this demo knows (2022.06.04): " + ", ".join(wrong))


def build(out: Path) -> None:
    """Writes all folders to `out`, or none."""
    elsewhere = f"Elsewhere try the demo on CIFAR: {called('train')} --config demo_cifar.yaml"
    with unpacked(PACKAGE, "161 MB", elsewhere) as root, written_whole(out) as folder:
        say(f"writing {sum(COUNTS.values())} images ...", flush=True)
        for name in COUNTS:
            (folder / name).mkdir(parents=True)
        for place, file in stamps(root / "usr/share/tuxpaint/stamps").items():
            with Image.open(file) as image:
                squared_on_white(image).save(folder / place)
        write_digits(folder / "ood/digits", COUNTS["ood/digits"])
        shutil.copyfile(root / f"usr/share/doc/{PACKAGE}/copyright", folder / "LICENSE.stamps")
        check_counts(folder)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood demo images", description="Build the demo's image folders.")
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/demo"), help="default: %(default)s")
    out = parser.parse_args(argv).out
    with in_turn(out):
        make(out)


def make(out: Path) -> None:
    """Builds the folders unless they are there."""
    if out.exists():
        try:
            check_counts(out)
        except UserError as error:
            raise UserError(f"{out} exists and is not the demo, remove it or name another folder ({error})") from None
        say(f"{out} is already there; delete it to build it again")
        return
    start = time.perf_counter()
    build(out)
    say(f"wrote {out} in {time.perf_counter() - start:.0f} s: 154 images of 9 classes, 601 unknown ones in 3 folders")
    say(f"Next: {called('train')} --config demo.yaml")
