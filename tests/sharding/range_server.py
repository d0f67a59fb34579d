"""An HTTP server of a folder that knows ranges, and misbehaves on demand."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """`url` serves `folder`. `misbehave(name, number)` says what happens to the number-th request
    (from 0 on) for a file: None is a right answer, a number such a status ("429" asks for a pause
    of a second), "cut" an end of the connection half way, "stall half way" none, "short" an answer
    that is three bytes short and says so, "stall" no answer, "no ranges" the whole file, "page" a
    web page, "redirect" the right answer elsewhere. `num_requests` counts them by file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.misbehave: Callable[[str, int], str | None] = lambda name, number: None
        self.num_requests: Counter[str] = Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        with self.server.lock:
            number = self.server.num_requests[name]
            self.server.num_requests[name] += 1
        fault = self.server.misbehave(name, number)
        path = self.server.folder / name.removeprefix("moved/")
        if fault == "stall":
            self.server.closing.wait()
        elif fault and fault.isdecimal():
            self._send_status(int(fault))
        elif fault == "page":
            self._send_page()
        elif fault == "redirect" and not name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", f"/moved/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path.read_bytes(), fault)

    def _send(self, data: bytes, fault: str | None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "no ranges":
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            if first >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if fault == "short":
            data = data[:-3]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault in ("cut", "stall half way") else data)
        if fault == "stall half way":
            self.wfile.flush()
            self.server.closing.wait()

    def _send_status(self, status: int) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_page(self) -> None:
        page = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
