"""Fixtures of the worker tier; the servers stand in `tests/testbed`."""

from __future__ import annotations

from tests.testbed.storage import (
    bucket,
    credentials,
    faulty_s3,
    hub,
    processes,
    s3,
    s3_server,
    toxiproxy,
    toxiproxy_server,
)

__all__ = [
    "bucket",
    "credentials",
    "faulty_s3",
    "hub",
    "processes",
    "s3",
    "s3_server",
    "toxiproxy",
    "toxiproxy_server",
]
