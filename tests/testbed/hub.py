"""A small Hub.

An HTTP server with the part of the Hugging Face Hub's API that its client uses to fetch.

Repositories live in memory. Files are "large" (with a SHA-256 in the listing and behind a redirect)
or "small" (git blobs), as on the real Hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = (".safetensors", ".bin", ".model", ".parquet")


@dataclass
class Repository:
    """One repository. `token` is the only one that may read it; `gated` says why others may not."""

    files: dict[str, bytes]
    kind: str = "model"
    branches: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    # path -> bytes that are sent instead of the true ones.
    spoiled: dict[str, bytes] = field(default_factory=dict)
    # Its earlier commits.
    earlier: dict[str, Repository] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        content = json.dumps({path: _sha256(body) for path, body in sorted(self.files.items())})
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()

    def has(self, revision: str) -> bool:
        return revision in self.branches or revision == self.commit


class Hub:
    """The server.

    `cut_after` makes it close the connection after so many bytes of a large file, once.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: int | None = None
        self.failing = 0
        # Called once, when a repository was listed.
        self.on_listed: Callable[[], object] | None = None
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def store(self) -> str:
        """Where large files are: another host by name, as the real Hub's is."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        """Add a repository of `kind` model (default) or dataset."""
        repository = Repository(files, **options)
        self.repositories[repository.kind, name] = repository
        return repository

    def push(self, name: str, files: dict[str, bytes]) -> Repository:
        """Move the branch of a model to a commit with these `files`; the earlier one stays."""
        before = self.repositories["model", name]
        after = replace(before, files=files, earlier={**before.earlier, before.commit: before})
        self.repositories["model", name] = after
        return after

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Hub

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.requests.append((self.command, path, headers))
        if self.owner.failing > 0:
            self.owner.failing -= 1
            self._answer(503, b"busy")
            return
        api = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/(.+)", path)
        resolve = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        blob = re.fullmatch(r"/lfs/(model|dataset)/([^/]+/[^/]+)/([^/]+)/(.+)", path)
        if blob:
            repository = self.owner.repositories[blob[1], blob[2]]
            self._file(repository.earlier.get(blob[3], repository), blob[4], {})
        elif api and (found := self._repository(api[1], api[2], api[3])):
            self._answer(200, json.dumps(_info(api[2], found)).encode(), kind="application/json")
            listed, self.owner.on_listed = self.owner.on_listed, None
            if listed is not None:
                listed()
        elif resolve:
            kind = "dataset" if resolve[1] else "model"
            if found := self._repository(kind, resolve[2], resolve[3]):
                self._resolve(found, kind, resolve[2], resolve[4])
        elif not api:
            self._refuse(404, "RepoNotFound", "Repository not found")

    do_GET = do_HEAD = _serve  # noqa: N815 - http.server's names

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """Return what may be read, or answer the refusal that the real Hub gives."""
        repository = self.owner.repositories.get((kind, name))
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given.startswith("invalid"):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.token not in {None, given} and not repository.gated):
            # The Hub does not tell a private repository from none.
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif repository.gated and given != repository.token:
            self._refuse(
                403 if given else 401, "GatedRepo", f"Access to model {name} is restricted"
            )
        elif revision in repository.earlier:
            return repository.earlier[revision]
        elif not repository.has(revision):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _resolve(self, repository: Repository, kind: str, name: str, path: str) -> None:
        body = repository.files.get(path)
        if body is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": repository.commit}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{_sha256(body)}"', "X-Linked-Size": str(len(body))}
            headers["Location"] = f"{self.owner.store}/lfs/{kind}/{name}/{repository.commit}/{path}"
            self._answer(302, b"", headers=headers)
        else:
            self._file(repository, path, {**headers, "ETag": f'"{_git_blob(body)}"'})

    def _file(self, repository: Repository, path: str, headers: dict[str, str]) -> None:
        body = repository.spoiled.get(path, repository.files[path])
        start = 0
        if wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(wanted[1])
        status = 206 if start else 200
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        cut = self.owner.cut_after
        if cut is not None and self.command == "GET" and path.endswith(LARGE):
            self.owner.cut_after = None
            self._answer(status, body[start : start + cut], headers=headers, length=len(body))
            self.close_connection = True
            return
        self._answer(status, body[start:], headers=headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        self._answer(status, json.dumps({"error": message}).encode(), headers=headers)

    def _answer(
        self,
        status: int,
        body: bytes,
        *,
        headers: dict[str, str] | None = None,
        kind: str = "application/octet-stream",
        length: int | None = None,
    ) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "id": name,
        "sha": repository.commit,
        "private": False,
        "siblings": [_sibling(path, body) for path, body in repository.files.items()],
    }


def _sibling(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(body), "blobId": _git_blob(body)}
    if path.endswith(LARGE):
        entry["lfs"] = {"size": len(body), "sha256": _sha256(body), "pointerSize": 130}
    return entry


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _git_blob(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()
