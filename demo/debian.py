"""Downloads Debian packages as data, and unpacks them without installing them."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_ood.errors import UserError
from clip_ood.terminal.shown import say


@contextmanager
def unpacked(package: str, size: str, elsewhere: str) -> Iterator[Path]:
    """Downloads a package, unpacks it in a temporary folder, and yields its root. `elsewhere` says what to do without apt-get.

    The package lists are refreshed only if the download fails otherwise (that needs root, the rest does not).
    Raises: UserError.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(f"there is no {tool} here, which brings the Debian package {package}. {elsewhere}")
    with tempfile.TemporaryDirectory() as temporary:
        say(f"downloading {package} (Debian package, {size}) to a temporary folder ...", flush=True)
        _download(package, temporary)
        (file,) = Path(temporary).glob("*.deb")
        subprocess.run(["dpkg", "-x", file.name, "unpacked"], cwd=temporary, check=True)
        yield Path(temporary, "unpacked")


def _download(package: str, folder: str) -> None:
    def apt(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["apt-get", *arguments], cwd=folder, capture_output=True, text=True)

    if apt("download", package).returncode:
        update = apt("update")
        done = apt("download", package)
        if done.returncode:
            raise UserError(
                f"apt-get download {package} failed: {done.stderr.strip()}\n"
                f"apt-get update before it: {update.stderr.strip() or 'went well'}\n"
                "On Debian or Ubuntu run `apt-get update` as root once, then this again."
            )
