"""Kubeconfig files: how a program finds the API server and says who it is."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.certificates import Certificate


def certificate_user(certificate: Certificate) -> dict[str, Any]:
    """Return a kubeconfig's user who shows a certificate."""
    return {
        "client-certificate-data": _text(certificate.certificate),
        "client-key-data": _text(certificate.key),
    }


def write_kubeconfig(
    file: Path, server: str, authority: Path, user: dict[str, Any], namespace: str = "default"
) -> Path:
    """Write a kubeconfig that needs no other file. JSON is YAML too."""
    cluster = {"server": server, "certificate-authority-data": _text(authority)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [
            {
                "name": "test",
                "context": {"cluster": "test", "user": "test", "namespace": namespace},
            }
        ],
        "current-context": "test",
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(content, indent=2) + "\n")
    return file


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
