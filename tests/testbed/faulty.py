"""A proxy on loopback that answers errors by itself or spoils what it forwards, as tests tell."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}
S3_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>made by a test</Message></Error>"""


@dataclass
class Fault:
    """What happens to the next requests that `matches` picks."""

    matches: Callable[[str, str], bool]
    times: int
    skip: int = 0
    status: int = 0
    code: str = ""
    spoil_request: bool = False
    spoil_answer: bool = False
    lose_answer: bool = False
    rewrite_answer: Callable[[bytes], bytes] | None = None
    before: Callable[[], None] | None = None


class FaultyProxy:
    """Forwards to the S3 server, but for its faults. Every request is kept as (method, path)."""

    def __init__(self, upstream_port: int) -> None:
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy
            upstream = upstream_port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, matches: Callable[[str, str], bool], times: int = 1, **what: Any) -> None:
        """Apply a fault to the next `times` requests for which `matches(method, path)` holds."""
        self.faults.append(Fault(matches, times, **what))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.skip -= 1
                    if fault.skip < 0:
                        fault.times -= 1
                        return fault
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyProxy
    upstream: int

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.fault_for(self.command, self.path)
        if fault and fault.before:
            fault.before()
        if fault and fault.status:
            self._answer(fault.status, {}, S3_ERROR.format(code=fault.code).encode())
            return
        if fault and fault.spoil_request:
            body = bytes([body[0] ^ 1]) + body[1:]
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault and fault.lose_answer:
            self.close_connection = True
            return
        if fault and fault.spoil_answer and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault and fault.rewrite_answer:
            content = fault.rewrite_answer(content)
            self._answer(answer.status, dict(answer.getheaders()), content)
            return
        length = answer.getheader("Content-Length") or str(len(content))
        self._answer(answer.status, dict(answer.getheaders()), content, length)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, length: str = ""
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""
