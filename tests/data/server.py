"""A web server on 127.0.0.1 that misbehaves on request: cut bodies, stalls, redirects, wrong lengths, changed files."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        body: the whole file; ranges are cut from it.
        status: status code; other than 200 it is sent with ``body`` as it is.
        etag: validator; "" sends none.
        ranges: whether Range is obeyed.
        cut: close the connection after so many bytes of the body that was announced.
        stall: after ``cut`` bytes keep the connection open and send nothing more.
        length: the Content-Length to claim; ``None`` is the true one, -1 sends none.
        headers: further headers, which win over the usual ones.
        shift: start the answered range so many bytes later than asked.
    """

    body: bytes = b""
    status: int = 200
    etag: str = '"1"'
    ranges: bool = True
    cut: int | None = None
    stall: bool = False
    length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    shift: int = 0


class Server:
    """Answers the n-th request of a path with its n-th reply; the last one is repeated."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.requests: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.closing = threading.Event()
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._httpd.daemon_threads = False
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def serve(self, name: str, *replies: Reply | bytes) -> str:
        """Answer /``name`` with ``replies`` in turn and return its address; bytes are a well-behaved file."""
        self.replies[f"/{name}"] = [Reply(reply) if isinstance(reply, bytes) else reply for reply in replies]
        return self.url(name)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}/{name}"

    def close(self) -> None:
        self.closing.set()
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:  # noqa: N802
            seen = server.requests[self.path]
            replies = server.replies.get(self.path, [Reply(status=404)])
            reply = replies[min(len(seen), len(replies) - 1)]
            seen.append({key.lower(): value for key, value in self.headers.items()})
            status, body, headers = _answer(reply, seen[-1])
            self.send_response(status)
            for key, value in {**headers, **reply.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body if reply.cut is None else body[: reply.cut])
            if reply.stall:
                self.wfile.flush()
                server.closing.wait(10)

    return Handler


def _answer(reply: Reply, asked: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """Return (status, body, headers) as RFC 9110 wants them, apart from what ``reply`` distorts."""
    headers = {"Content-Type": "application/octet-stream"}
    status, body, start = reply.status, reply.body, 0
    if status == 200:
        headers |= {"ETag": reply.etag} if reply.etag else {}
        same = asked.get("if-range", reply.etag) == reply.etag
        if reply.ranges and "range" in asked and same:
            start = int(asked["range"].removeprefix("bytes=").removesuffix("-")) + reply.shift
            status, body = (206, body[start:]) if start < len(body) else (416, b"")
            span = f"{start}-{len(reply.body) - 1}" if body else "*"
            headers["Content-Range"] = f"bytes {span}/{len(reply.body)}"
    if reply.length != -1:
        headers["Content-Length"] = str(len(body) if reply.length is None else reply.length)
    return status, body, headers
