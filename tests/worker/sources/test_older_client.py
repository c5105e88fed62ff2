"""The Hub through the client of the legacy images, which is before 1.0."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.environments import interpreter, variables
from tests.worker.hostile import good_model

if TYPE_CHECKING:
    from tests.testbed.hub import Hub

PROGRAM = Path(__file__).with_name("fetch_from_hub.py")
IMAGES = ("gptq-legacy", "awq-legacy")


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def fetched(
    image: str, endpoint: str, folder: Path, uri: str = "hf://owner/tiny"
) -> dict[str, Any]:
    given = {**variables(), "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [interpreter(image), PROGRAM, uri, folder / "into"],
        env=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_older_client_fetches_every_byte_and_counts_it(
    hub: Hub, tmp_path: Path, image: str
) -> None:
    repository = hub.add("owner/tiny", good_model())
    found = fetched(image, hub.endpoint, tmp_path)

    assert found["revision"] == repository.commit
    assert found["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in good_model().items()
    }
    assert found["bytes"] == sum(map(len, good_model().values()))


def test_an_older_clients_errors_are_told_as_the_newer_ones_are(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/private", good_model(), token="hf_0123456789")
    hub.add("owner/spoiled", good_model(), spoiled={"model.safetensors": b"x" * 8})
    kinds = {
        name: fetched("awq-legacy", hub.endpoint, tmp_path / name, f"hf://owner/{name}")["kind"]
        for name in ("nothing", "private", "spoiled")
    }

    assert kinds == {
        "nothing": "AccessError",
        "private": "AccessError",
        "spoiled": "UnavailableError",
    }


def test_a_server_that_is_not_there_is_told_by_an_older_client(
    tmp_path: Path, free_port: int
) -> None:
    found = fetched("awq-legacy", f"http://127.0.0.1:{free_port}", tmp_path)

    assert found["kind"] == "UnavailableError"
    assert "the Hub failed while reading its listing" in found["refused"]
