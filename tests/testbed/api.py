"""One connection to an API server for many requests, with the server's own words in the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kubernetes import client, config

if TYPE_CHECKING:
    from pathlib import Path

JSON = "application/json"
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


@dataclass(frozen=True)
class Answer:
    """What a server answered: an object, or the `Status` that says why not."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The sentence of a refusal."""
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Field and message of each cause of a refusal."""
        found = self.body.get("details", {}).get("causes", [])
        return [(cause.get("field", ""), cause["message"]) for cause in found]

    def object(self) -> dict[str, Any]:
        """Return the object; fail with the server's words where there is none."""
        assert self.status < 300, f"{self.status}: {self.message or self.body}"
        return self.body


class Api:
    """Requests of whoever a kubeconfig names, over a connection that stays open."""

    def __init__(self, kubeconfig: Path) -> None:
        loaded: client.ApiClient = config.new_client_from_config(str(kubeconfig))
        self._client = loaded
        self._host = loaded.configuration.host
        token = loaded.configuration.get_api_key_with_prefix("authorization")
        self._headers = {"Authorization": token} if token else {}

    def request(
        self, method: str, path: str, body: object = None, kind: str = JSON, **query: str
    ) -> Answer:
        """Send one request; `query` are its parameters."""
        answer = self._client.rest_client.pool_manager.request(
            method,
            f"{self._host}{path}?{urlencode(query)}",
            body=None if body is None else json.dumps(body),
            headers={**self._headers, "Content-Type": kind, "Accept": JSON},
            retries=False,
            timeout=30,
        )
        if not answer.headers.get("Content-Type", "").startswith(JSON):
            return Answer(answer.status, {"message": answer.data.decode(errors="replace")})
        return Answer(answer.status, json.loads(answer.data))

    def text(self, path: str) -> str:
        """Return what the server answers in plain text, as its metrics are."""
        answer = self._client.rest_client.pool_manager.request(
            "GET", f"{self._host}{path}", headers=self._headers, timeout=30
        )
        return str(answer.data.decode())

    def close(self) -> None:
        """Close the connection."""
        self._client.rest_client.pool_manager.clear()
        self._client.close()
