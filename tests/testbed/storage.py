"""Fixtures: an S3 server, the same one behind proxies that fail on purpose, and a Hub."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from tests.testbed.faulty import FaultyProxy
from tests.testbed.hub import Hub
from tests.testbed.processes import Processes, S3Server, Toxiproxy, start_s3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Bucket:
    """A bucket of a test's own."""

    name: str
    server: S3Server
    client: Any

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that a reader sees."""
        listed = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def unfinished(self) -> list[str]:
        """Return the keys of uploads that were neither completed nor aborted."""
        listed = self.client.list_multipart_uploads(Bucket=self.name)
        return [entry["Key"] for entry in listed.get("Uploads", [])]

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=body)


def client_for(endpoint: str, access_key: str, secret_key: str) -> Any:
    """Return a plain boto3 client, which shares nothing with the code under test."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def write_credentials(folder: Path, role: str, access_key: str, secret_key: str) -> Path:
    """Write a role's folder as a Secret is mounted, and return the folder of all roles."""
    (folder / role).mkdir(parents=True, exist_ok=True)
    (folder / role / "AWS_ACCESS_KEY_ID").write_text(access_key)
    (folder / role / "AWS_SECRET_ACCESS_KEY").write_text(secret_key + "\n")
    return folder


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """What this session starts, stopped in reverse order at its end."""
    started = Processes(tmp_path_factory.mktemp("logs"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def s3_server(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """The session's S3 server."""
    return start_s3(processes, tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Iterator[Any]:
    """A client with every right, for arranging and looking."""
    client = client_for(s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
    yield client
    client.close()


@pytest.fixture
def bucket(s3_server: S3Server, s3: Any) -> Bucket:
    """An empty bucket."""
    name = f"test-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return Bucket(name, s3_server, s3)


@pytest.fixture
def credentials(s3_server: S3Server, tmp_path: Path) -> Path:
    """The folder of role folders, each with the root's keys."""
    folder = tmp_path / "credentials"
    for role in ("model", "calibration", "evaluation", "tasks", "output"):
        write_credentials(folder, role, s3_server.access_key, s3_server.secret_key)
    return folder


@pytest.fixture(scope="session")
def toxiproxy_server(processes: Processes, s3_server: S3Server) -> Toxiproxy:
    return Toxiproxy(processes, s3_server.port)


@pytest.fixture
def toxiproxy(toxiproxy_server: Toxiproxy) -> Iterator[Toxiproxy]:
    """A proxy before the S3 server that stalls, slows down and resets as told."""
    toxiproxy_server.enable(enabled=True)
    yield toxiproxy_server
    toxiproxy_server.reset()
    toxiproxy_server.enable(enabled=True)


@pytest.fixture
def faulty_s3(s3_server: S3Server) -> Iterator[FaultyProxy]:
    """A proxy before the S3 server that answers by itself when told to."""
    proxy = FaultyProxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub on loopback."""
    server = Hub()
    yield server
    server.close()
