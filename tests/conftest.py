"""What tests of several files need: finished runs, folders, servers and caches, and the wheel."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading

import huggingface_hub.constants
import pytest
import replica
import storage_servers
import strangers
import tiny_clip
from bad_server import CONTENT, Server
from chromium import CHROMIUM, OPTIONS
from own_process import left_as_found
from tiny_clip import PROJECT

from clip_ood.dotted_paths import FOLDERS


@pytest.fixture(scope="module", autouse=True)
def own_process():
    """A file that changes its process for the files behind it fails itself, and none of them."""
    with left_as_found():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, request):
    """A folder of the test file's own, with images (data/) and a tiny random CLIP (clip/)."""
    return tiny_clip.make(tmp_path_factory.mktemp(request.module.__name__))


@pytest.fixture(scope="module")
def images(root):
    """The images of an OOD set there."""
    return sorted((root / "data/near").glob("*.png"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished linear probe that can judge images, with images and an encoder of its own; tests leave it as it is."""
    import judged_run  # which needs the scripts: only `python -m pytest` finds them

    return judged_run.make(tiny_clip.make(tmp_path_factory.mktemp("judged")), "probe")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """kind -> (folder, the model of transformers itself)."""
    import tiny_transformers

    made = {}

    def model(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / kind
            made[kind] = folder, tiny_transformers.make(folder, kind)
        return made[kind]

    return model


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; a machine without it says how to get it.

    Playwright's event loop runs in this thread until the fixture ends: it may not outlive the file that uses it.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel, built from copies of what it is made of."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("clip_ood", *FOLDERS):
        shutil.copytree(PROJECT / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder / "project")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "./project"]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def demo_encoders(tmp_path, monkeypatch):
    """A working directory in which the demo's encoders exist."""
    for encoder in ("demo_encoder", "demo_encoder_lite1", "demo_encoder_lite2", "demo_encoder_cls"):
        (tmp_path / "data" / encoder).mkdir(parents=True)
        (tmp_path / "data" / encoder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 384}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.fixture
def unchecked_folders(monkeypatch):
    """Studies and attacks whose image sets need not be there."""
    monkeypatch.setattr("clip_ood.experiments.study.here.check_folders", lambda config: None)
    monkeypatch.setattr("clip_ood.experiments.attack.plan.check_folders", lambda config: None)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("clip_ood.files.download.BLOCK", 1000)
    server = Server(CONTENT)
    # It looks every 0.01 s whether it is to end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache of its own, and the client as it is without HF_HUB_OFFLINE."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def watch(tmp_path, monkeypatch, hub):
    """Whoever is asked whether to run code says yes: what is on standard input may be a stranger's list of files."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.chdir(tmp_path)
    return strangers.Watch(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A folder of images in folders of classes, with what is passed over."""
    folder = tmp_path_factory.mktemp("animals")
    for name, number in storage_servers.ANIMALS.items():
        replica.put(folder / name, number)
    (folder / "cat" / "notes.txt").write_text("of cats")
    replica.put(folder / "cat" / ".thumbnails" / "0.png", 0)
    return folder


@pytest.fixture(scope="module")
def s3(animals):
    """An S3 server with the animals in its bucket."""
    with storage_servers.s3_server() as server:
        server.put_folder(animals, "animals")
        yield server


@pytest.fixture
def here(tmp_path, monkeypatch, s3):
    """s3:// means the server of this machine."""
    storage_servers.asked_of(s3, tmp_path / "cache", monkeypatch)


@pytest.fixture
def web(tmp_path):
    """A server of the web with faults to be set, and its folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    with storage_servers.web_server(folder) as server:
        server.folder = folder
        yield server
