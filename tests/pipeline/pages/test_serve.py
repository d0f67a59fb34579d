"""`boxless serve`: its answers over HTTP, and its page in headless Chromium."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, measure
from PIL import Image
from pretrain_fixtures import tiny_student, toy_tokenizer

import pipeline.serve.server as server_module
from pipeline.cli.main import main
from pipeline.serve.page import page
from pipeline.serve.server import StudentApp, make_server
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.transfer import inference
from stages.transfer.task_folder import save_head
from stages.transfer.tasks import TASKS

NAME = "<b>student</b>"


@pytest.fixture()
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudentApp:
    """A student folder that knows vqa, with a folder of one picture, and a network that is not
    there: what it says is the length of the text."""
    (tmp_path / NAME.replace("/", "") / "tasks" / "vqa").mkdir(parents=True)
    folder = tmp_path / NAME.replace("/", "")
    (folder / "config.json").write_text("{}")
    (folder / "tasks" / "vqa" / "task.json").write_text("{}")
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(
        inference, "unread_note", lambda s, texts: "cut" if "long" in texts else None
    )
    monkeypatch.setattr(inference, "match", lambda s, p, texts: [(t, len(t) / 10) for t in texts])
    monkeypatch.setattr(
        inference, "answer", lambda s, p, t: {"best": [("red", 0.9), ("blue", 0.1)]}
    )
    monkeypatch.setattr(inference, "search", _search)
    monkeypatch.setattr(
        inference, "point", lambda s, p, t, f: {"point": [0.5, 0.5], "boxes": [[0, 0, 1, 1]]}
    )
    return StudentApp(folder, tmp_path, None)


def _search(
    student: Any, folder: Path, text: str, index: Path, on_fault: Callable[[str], None]
) -> list[tuple[str, float]]:
    if "cut" in text:
        on_fault("cut.png: not readable")
    return [("red.png", 0.75)]


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A tiny student that knows vqa, and a picture beside it."""
    student, place = tiny_student(), tmp_path / "student"
    student.save_pretrained(str(place))
    StudentProcessor.of(student, toy_tokenizer()).save_pretrained(place)
    task = TASKS["vqa"]({"answers": ["red", "blue"]})
    save_head(place, task, task.make_head(32).state_dict())
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    return place


@pytest.fixture()
def address(app: StudentApp) -> Iterator[str]:
    """Of a running server."""
    with _running(app) as address:
        yield address


@contextlib.contextmanager
def _running(app: StudentApp) -> Iterator[str]:
    with make_server(app, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def _ask(address: str, asked: Any, kind: str = "application/json") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}ask", data=json.dumps(asked).encode(), headers={"Content-Type": kind}
    )
    try:
        return json.loads(urllib.request.urlopen(request, timeout=60).read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def _picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_an_error_of_the_device_ends_the_server(
    app: StudentApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays, so that every later answer would be the same error. Oracle: an answer, and then
    that `serve_forever` raises it."""

    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(inference, "match", fail)
    with make_server(app, host="127.0.0.1", port=0) as server, ThreadPoolExecutor(1) as pool:
        served = pool.submit(server.serve_forever)
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        asked = {"action": "match", "text": "a", "picture": _picture()}
        assert "illegal memory access" in _ask(address, asked)["error"]
        with pytest.raises(torch.AcceleratorError):
            served.result(timeout=60)


def test_answers(address: str) -> None:
    """Oracle: by hand, of the network that is not there; a point comes as a picture."""
    rows = _ask(address, {"action": "match", "text": "ab\n\nc", "picture": _picture()})["rows"]
    assert rows == [{"text": "ab", "score": 0.2}, {"text": "c", "score": 0.1}]
    rows = _ask(address, {"action": "answer", "text": "Color?", "picture": _picture()})["rows"]
    assert rows[0] == {"text": "red", "score": 0.9}
    asked = {"action": "match", "text": "a\nlong", "picture": _picture()}
    assert _ask(address, asked)["note"] == "cut" and len(_ask(address, asked)["rows"]) == 2
    [row] = _ask(address, {"action": "search", "text": "red"})["rows"]
    assert row["text"] == "red.png" and row["picture"].startswith("data:image/png;base64,")
    note = _ask(address, {"action": "search", "text": "cut"})["note"]
    assert note == "1 files were left out, first cut.png: not readable"
    found = _ask(address, {"action": "point", "text": "a b", "phrase": "b", "picture": _picture()})
    drawn = base64.b64decode(found["picture"].partition(",")[2])
    assert Image.open(io.BytesIO(drawn)).size == (8, 6)


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"action": "match", "text": "a"}, "application/json", "picture: got none"),
        ({"action": "match", "text": "a", "picture": "!"}, "application/json", "picture: got none"),
        ({"action": "answer", "text": " "}, "application/json", "text: got none"),
        ({"action": "search", "text": "\u200b"}, "application/json", "text: got none"),
        ({"action": "judge", "text": "a"}, "application/json", "it needs a student taught nlvr"),
        ([], "application/json", r"action: got [], expected one of"),
        ({"action": "match"}, "text/plain", "application/json"),
    ],
)
def test_what_cannot_be_answered(address: str, asked: Any, kind: str, words: str) -> None:
    """Oracle: words that say what is missing; the server continues."""
    assert words in _ask(address, asked, kind)["error"]
    assert _ask(address, {"action": "search", "text": "red"})["rows"]


def test_the_student_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Oracle: the calls that read the network, of six requests of four kinds, three at a time, by
    threads; and the scores that a call of its own on the folder gives."""
    loads: list[str] = []
    read = Student.from_pretrained

    def counted(path: str, **options: Any) -> Any:
        loads.append(path)
        return read(path, **options)

    expected = inference.match(folder, tmp_path / "red.png", ["a", "red"])
    monkeypatch.setattr(Student, "from_pretrained", counted)
    student = StudentApp(folder, tmp_path, tmp_path / "index")
    student.load()
    picture = _picture()
    asked = [
        {"action": "match", "text": "a\nred", "picture": picture},
        {"action": "answer", "text": "what", "picture": picture},
        {"action": "point", "text": "a red", "phrase": "red", "picture": picture},
        {"action": "search", "text": "red"},
    ]
    with _running(student) as address, ThreadPoolExecutor(3) as threads:
        found = [*threads.map(lambda one: _ask(address, one), [*asked, *asked[:2]])]
    assert not [one["error"] for one in found if "error" in one]
    assert loads == [str(folder)]
    assert [(row["text"], row["score"]) for row in found[0]["rows"]] == expected


def test_connections_without_a_question_keep_nobody_waiting(address: str) -> None:
    """Browsers open connections ahead, and people close pages. Oracle: the answer of a server to
    which others only connected, sent half a question, or left before the answer."""
    place = urllib.parse.urlsplit(address)
    assert place.hostname and place.port
    half = b"POST /ask HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for sent in (b"", b"GET / HT", half):
            opened = stack.enter_context(socket.create_connection((place.hostname, place.port)))
            opened.sendall(sent)
        assert _ask(address, {"action": "search", "text": "red"})["rows"]


def test_an_error_that_nobody_foresaw_is_answered(
    address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Oracle: its name on the page, its traceback in the server's log; the server continues."""

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(inference, "match", fail)
    asked = {"action": "match", "text": "a", "picture": _picture()}
    assert _ask(address, asked)["error"].startswith("RuntimeError: unforeseen")
    assert "Traceback" in capfd.readouterr().err
    assert _ask(address, {"action": "search", "text": "red"})["rows"]


def test_an_address_that_cannot_be_had_is_named(
    app: StudentApp, capsys: pytest.CaptureFixture[str]
) -> None:
    """A taken port, a host that is none. Oracle: by hand."""
    with make_server(app, host="127.0.0.1", port=0) as server:
        port = str(server.server_address[1])
        assert main(["serve", str(app.student.folder), "--port", port]) == 2
    assert f"127.0.0.1:{port}: " in (said := capsys.readouterr().err) and "another program" in said
    assert main(["serve", str(app.student.folder), "--host", "256.0.0.1", "--port", "0"]) == 2
    assert "256.0.0.1:0: " in capsys.readouterr().err


def test_the_page_escapes_the_folder_and_offers_what_is_known(app: StudentApp) -> None:
    """Oracle: by hand."""
    text = page(NAME, app.actions)
    assert "&lt;b&gt;student" in text and NAME not in text
    assert app.actions == ["match", "point", "answer", "search"]
    assert "Is a statement true? (needs a student taught nlvr or snli_ve)." in text
    assert "Not offered" not in page(NAME, [*app.actions, "judge"])
    with pytest.raises(ValueError, match=r"config\.json"):
        StudentApp(app.pictures or Path(), None, None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_asks_and_shows(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: in a browser, a search that a script types in shows the folder's picture and
    score."""
    typed = (
        "<script>at('action').value = 'search'; at('text').value = 'red';"
        "at('form').requestSubmit();</script></body>"
    )
    monkeypatch.setattr(
        server_module, "page", lambda *given: page(*given).replace("</body>", typed)
    )
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'b'}"]
    for budget in (5_000, 60_000):  # a busy machine may need more
        done = subprocess.run(
            [CHROMIUM, *flags, f"--virtual-time-budget={budget}", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if "red.png" in done.stdout:
            break
    assert "75.0 %" in done.stdout and "data:image/png;base64," in done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    "action, seen", [("match", [True, False]), ("point", [True, True]), ("search", [False, False])]
)
def test_the_page_has_the_fields_of_an_action(
    action: str, seen: list[bool], app: StudentApp, tmp_path: Path
) -> None:
    """Oracle: by hand: of the picture and of the phrase, what the browser shows; no preview of a
    picture that is not chosen."""
    chosen = f"<script>at('action').value = '{action}'; fit();</script></body>"
    asked = (
        "page => ['picture-field', 'phrase-field', 'preview']"
        ".map(name => page.getElementById(name).getClientRects().length > 0)"
    )
    text = page(NAME, app.actions).replace("</body>", chosen)
    found, _ = measure(text, tmp_path, width=390, asked=asked)
    assert found["asked"] == [*seen, False] and found["wide"] == 0
