"""An S3 server on this machine that misbehaves when told to."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# an error code that the S3 client knows as passing (and so tries again itself), one that it does not, one for ever
CODES = {503: "SlowDown", 429: "TooManyRequests", 403: "AccessDenied"}

Fault = int | str | None
"""HTTP status to answer with, `reset` to hang up before an answer, `lost` to hang up after the work, None: none."""


class FlakyS3:
    """moto's S3 behind a door.

    Attributes:
        fault: asked for every request, method and path, what goes wrong with it.
        requests: of every request, method, path and what went wrong.
    """

    def __init__(self) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.requests: list[tuple[str, str, Fault]] = []
        self.address = ""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def failing(self, fault: Fault, times: int, method: str = "") -> None:
        """From now on so many requests of a method (all of them, if none is named) go wrong."""
        left = times

        def next_one(seen: str, path: str) -> Fault:
            nonlocal left
            if left == 0 or method not in ("", seen):
                return None
            left -= 1
            return fault

        self.requests.clear()
        self.fault = next_one

    @property
    def failed(self) -> int:
        """Requests that went wrong."""
        return sum(fault is not None for _, _, fault in self.requests)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            fault = self.fault(method, path)
            self.requests.append((method, path, fault))
        if fault is None:
            return self._app(environ, start)
        if fault == "lost":
            list(self._app(environ, lambda *_: None))
        if isinstance(fault, str):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start("500 gone", [])
            return []
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = "" if method == "HEAD" else f"<Error><Code>{CODES[fault]}</Code><Message>no</Message></Error>"
        start(f"{fault} no", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body.encode()]


@contextmanager
def flaky_s3() -> Iterator[FlakyS3]:
    """The server, for a while."""
    app = FlakyS3()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    app.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
