"""Tries every fault, or those of some kinds: python -m faults [kills full_disk …]; --list names them.

Prints for each kind how many were tried and survived, and a line for each that did not. The exit status is 1 where one did not.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor

from forked import IMPORTED

from faults import lab
from faults.kinds import KINDS, attempt, trials
from faults.process import CONTEXT

AT_ONCE = 2
COMMANDS = [
    "clip_ood.experiments.attack.conduct",
    "clip_ood.experiments.detect",
    "clip_ood.experiments.seeds",
    "clip_ood.experiments.study.conduct",
    "faults.lab",
]


def main(chosen: list[str]) -> int:
    if chosen == ["--list"]:
        print("\n".join(f"{kind}: {len(trials(kind))}" for kind in KINDS))
        return 0
    if unknown := set(chosen) - set(KINDS):
        sys.exit(f"No such kind: {', '.join(sorted(unknown))}. There are: {', '.join(KINDS)}")
    CONTEXT.set_forkserver_preload([*IMPORTED, *COMMANDS])
    lab.shared()  # made once, before the processes that share it
    failed = 0
    with ProcessPoolExecutor(AT_ONCE, CONTEXT) as pool:
        for kind in chosen or KINDS:
            begun, tried = time.monotonic(), trials(kind)
            some = 1 + len(tried) // 200  # Python before 3.12 hangs over ten thousand calls that wait
            reasons = list(pool.map(attempt, [kind] * len(tried), range(len(tried)), chunksize=some))
            for trial, reason in zip(tried, reasons, strict=True):
                if reason:
                    print(f"NOT SURVIVED, {kind}: {trial.name}\n{reason}")
            lost = sum(map(bool, reasons))
            failed += lost
            seconds = time.monotonic() - begun
            print(f"{kind}: {len(tried)} tried, {len(tried) - lost} survived ({seconds:.0f} s)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
