"""The HTTP server of `boxless serve`, on Python's http.server; requests are answered in turn.

A page of one form needs no framework. Serves this machine alone unless another address is
requested. Each connection has a thread, as browsers open some that they use later or never.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
import tempfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from boxless.errors import BoxlessError
from pipeline.pages.thumbnails import thumbnail
from pipeline.runner.error_messages import bug_report, error_message
from pipeline.serve.page import NEEDED, page
from sharding.coordination.fatal_errors import is_device_error
from stages.student.text.tokenizer import is_blank
from stages.transfer import inference
from stages.transfer.loaded_student import LoadedStudent
from stages.transfer.task_folder import taught_tasks

MAX_BYTES = 64 << 20
"""Of a request: a picture as base64."""
NUM_FOUND = 5
LONGEST_PX = 320
SILENT_SECONDS = 60
"""After which a connection on which nothing comes is closed."""


class StudentApp:
    """What a student folder can do, as answers to requests. pictures: a folder to search in, or
    None; index: where what the CNN made of them is kept."""

    def __init__(self, student: Path, pictures: Path | None, index: Path | None) -> None:
        taught = set(taught_tasks(student))
        self.student, self.pictures = LoadedStudent(student), pictures
        self.index = index or (pictures / ".boxless-index" if pictures else None)
        self.actions = ["match", "point"]
        self.actions += ["answer"] if "vqa" in taught else []
        self.actions += ["judge"] if taught & {*inference.JUDGING} else []
        self.actions += ["search"] if pictures else []

    def load(self) -> None:
        """Read the network now instead of with the first request. Raises ValueError where the
        folder's files are damaged."""
        _ = self.student.network, self.student.processor

    def answer(self, request: Any) -> dict[str, Any]:
        """{"rows": [{"score", "text"}], "picture"?, "note"?} to {"action", "text", "phrase",
        "picture" (base64)}. BoxlessError says what is missing or wrong."""
        if not isinstance(request, dict) or request.get("action") not in self.actions:
            asked = request.get("action") if isinstance(request, dict) else request
            needed = f" (it needs {NEEDED[asked]})" if asked in [*NEEDED] else ""
            raise BoxlessError(
                f"action: got {str(asked)[:80]}{needed}, expected one of {', '.join(self.actions)}"
            )
        action, text = request["action"], str(request.get("text") or "").strip()
        if is_blank(text):
            raise BoxlessError("text: got none, expected some words")
        if action == "search":
            found = self._search(text)
        else:
            with tempfile.TemporaryDirectory() as folder:
                picture = Path(folder) / "picture"
                picture.write_bytes(_decoded(request.get("picture")))
                phrase = str(request.get("phrase") or "")
                found = self._of_picture(action, picture, text, phrase)
        unread = inference.unread_note(
            self.student, text.splitlines() if action == "match" else [text]
        )
        note = " ".join(filter(None, (unread, found.get("note"))))
        return {**found, "note": note} if note else found

    def _of_picture(self, action: str, picture: Path, text: str, phrase: str) -> dict[str, Any]:
        if action == "match":
            texts = [line.strip() for line in text.splitlines() if not is_blank(line)]
            return {"rows": _rows(inference.match(self.student, picture, texts))}
        if action == "answer":
            return {"rows": _rows(inference.answer(self.student, picture, text)["best"])}
        if action == "judge":
            found = inference.judge(self.student, picture, text)["probabilities"]
            return {"rows": _rows(sorted(found.items(), key=lambda item: -item[1]))}
        found = inference.point(self.student, picture, text, phrase)
        drawn = picture.with_name("drawn.png")
        inference.draw_point(picture, found, drawn)
        return {"rows": [], "picture": _data_uri(drawn.read_bytes())}

    def _search(self, text: str) -> dict[str, Any]:
        assert self.pictures and self.index, "search is among the actions"
        faults: list[str] = []
        found = inference.search(
            self.student, self.pictures, text, self.index, on_fault=faults.append
        )
        rows = _rows(found[:NUM_FOUND])
        for row in rows:
            small = thumbnail((self.pictures / row["text"]).read_bytes(), longest_px=LONGEST_PX)
            row["picture"] = small.uri if small else None
        if not faults:
            return {"rows": rows}
        return {"rows": rows, "note": f"{len(faults)} files were left out, first {faults[0]}"}


def make_server(app: StudentApp, *, host: str, port: int) -> HTTPServer:
    """A server of the app's page; port 0 takes a free one. `serve_forever` runs it, until the
    device fails. Raises OSError, with the address, where it cannot be bound."""
    try:
        return _Server((host, port), app)
    except OSError as error:
        error.filename = f"{host}:{port}"
        raise


class _Handler(BaseHTTPRequestHandler):
    """GET / is the page, POST /ask a question."""

    server: _Server
    timeout = SILENT_SECONDS

    def do_GET(self) -> None:
        if self.path != "/":
            self._reply(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
            return
        text = page(str(self.server.app.student.folder), self.server.app.actions)
        self._reply(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        found: dict[str, Any]
        try:
            asked = json.loads(self._body())
            with self.server.one_at_a_time:
                status, found = HTTPStatus.OK, self.server.app.answer(asked)
        except TimeoutError:
            self.close_connection = True
            return
        except (ValueError, OSError, RecursionError) as error:
            status, found = HTTPStatus.BAD_REQUEST, {"error": error_message(error)}
        except Exception as error:
            self.log_error("%s", bug_report(error))
            if is_device_error(error):
                self.server.end_with(error)
            found = {"error": f"{type(error).__name__}: {error} (the server's log has more)"}
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._reply(status, json.dumps(found).encode(), "application/json")

    def _body(self) -> bytes:
        # Of another type a browser sends it for any page, without asking us first.
        if self.headers.get("Content-Type") != "application/json" or self.path != "/ask":
            raise BoxlessError("expected POST /ask with application/json")
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= MAX_BYTES:
            raise BoxlessError(f"got {size} bytes, expected 1 to {MAX_BYTES}")
        return self.rfile.read(size)

    def _reply(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    """Answers for `app`, one question at a time."""

    def __init__(self, address: tuple[str, int], app: StudentApp) -> None:
        super().__init__(address, _Handler)
        self.app = app
        self.one_at_a_time = threading.Lock()
        self.fatal: Exception | None = None

    def end_with(self, error: Exception) -> None:
        """End `serve_forever` with an error that every later answer would meet again."""
        self.fatal = error
        threading.Thread(target=self.shutdown, daemon=True).start()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """As the base class. Raises an error of the device, which stays until the process ends."""
        super().serve_forever(poll_interval)
        if self.fatal is not None:
            raise self.fatal

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As the base class, but silent where a browser disconnects before its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _rows(found: Any) -> list[dict[str, Any]]:
    return [{"text": text, "score": score} for text, score in found]


def _decoded(picture: Any) -> bytes:
    try:
        data = base64.b64decode(picture or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        data = b""
    if not data:
        raise BoxlessError("picture: got none, expected a file")
    return data


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
