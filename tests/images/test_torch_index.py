"""Where torch comes from is the builder's choice, so that an image for CPUs need not carry CUDA."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.testbed import packages
from tests.testbed.images import BUILD_OPTIONS, buildah, environment, mounted, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
REGISTRY = "registry.test/torch-index"


def pinned_torch() -> str:
    found = re.search(r"^torch==(.+)$", (ROOT / "images/base/torch.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


class Quiet(SimpleHTTPRequestHandler):
    """A package index of files, which says nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index whose torch is a CPU build in name, and needs one package of the usual one.

    Yields:
        The address that pip is told.
    """
    version = f"{pinned_torch()}+cpu"
    folder = tmp_path / "simple" / "torch"
    folder.mkdir(parents=True)
    information = f"torch-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\nRequires-Dist: filelock\n"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{information}/METADATA", metadata)
        wheel.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{information}/RECORD", "")
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        server.shutdown()
        thread.join()


def test_torch_comes_from_the_index_that_the_build_is_told_and_brings_no_cuda(index: str) -> None:
    packages.install()
    command = [sys.executable, "images/build.py", "base", "--tool", "buildah"]
    command += ["--registry", REGISTRY, "--torch-index-url", index]
    # The layers above torch are the same whichever torch it is.
    command += [f"--option={word}" for word in (*BUILD_OPTIONS, "--target=torch")]
    with prepared():
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = done.stdout.strip()
    assert reference.startswith(f"{REGISTRY}/kubequant/base:")
    try:
        with mounted(reference) as root:
            site = root / "opt/kubequant/lib/python3.11/site-packages"
            held = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    finally:
        buildah("rmi", reference)

    names = {name.rpartition("-")[0] for name in held}
    assert f"torch-{pinned_torch()}+cpu" in held
    assert "filelock" in names
    assert [name for name in names if name.startswith(("nvidia", "cuda", "triton"))] == []
