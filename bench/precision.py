"""The attack in bf16 against fp32, AUROC after it by detector: python -m bench.precision [attack.yaml] [--key=value …]

How far chance alone moves each value, a third attack tells: fp32 again, from noise that is a thousandth larger.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from clip_ood.experiments.attack.plan import load_attack

ALONE = ["--curve=null", "--defences={}", "--transfer={}"]


def after(config: str, folder: str, name: str, arguments: list[str]) -> dict[str, float]:
    """Returns AUROC in percent after an attack, by detector."""
    given = [*arguments, *ALONE, f"--name={name}", f"--runs_root={folder}"]
    subprocess.run([sys.executable, "attack.py", "--config", config, *given], check=True, stdout=subprocess.DEVNULL)
    rows = json.loads(Path(folder, name, "results.json").read_text(encoding="utf-8"))["rows"]
    return {row["detector"]: 100 * row["auroc_after"] for row in rows if row["condition"] == ""}


def main(arguments: list[str]) -> None:
    config = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "adversarial_demo.yaml"
    attack = load_attack(config, [*arguments, *ALONE]).attack
    exactly, half = [*arguments, "--backbone.precision=fp32"], [*arguments, "--backbone.precision=bf16"]
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = after(config, folder, "fp32", exactly), after(config, folder, "bf16", half)
        again = after(config, folder, "again", [*exactly, f"--noise={1.001 * attack.noise}"])
    print(
        f"AUROC after {config}, {attack.pairs} pairs, {attack.steps} steps: "
        f"in fp32, bf16 minus fp32  <= 1  (fp32 again minus fp32)"
    )
    for name, value in exact.items():
        if name not in rounded or name not in again:
            print(f"  {name:<20} {value:5.1f}  left out of another attack")
            continue
        print(f"  {name:<20} {value:5.1f}  {rounded[name] - value:+.2f} ({again[name] - value:+.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
