"""Commands that use a student on pictures of the user: match, search, answer, judge, point; and
retrieval-plan, what a full retrieval matrix costs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from boxless.errors import BoxlessError
from pipeline.cli.arguments import MAX_PORT, positive_number, user_path, whole_number
from pipeline.cli.progress_bar import progress_bar

Commands = argparse._SubParsersAction
DEFAULT_INDEX = ".boxless-index"
NUM_MEASURED = 256


def add_inference_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line's parser."""
    _add_match(commands)
    _add_search(commands)
    _add_answer(commands)
    _add_judge(commands)
    _add_point(commands)
    _add_serve(commands)
    _add_retrieval_plan(commands)


def _add_match(commands: Commands[argparse.ArgumentParser]) -> None:
    match = _add_command(commands, "match", "rank texts by how well they match a picture", _match)
    match.add_argument("picture", type=user_path, help="an image file")
    match.add_argument("text", nargs="+", help="texts to rank")


def _add_search(commands: Commands[argparse.ArgumentParser]) -> None:
    search = _add_command(
        commands, "search", "rank the pictures of a folder by how well they match a text", _search
    )
    search.add_argument("pictures", type=user_path, help="a folder of images")
    search.add_argument("text", help="the query")
    search.add_argument(
        "--index",
        type=user_path,
        metavar="DIR",
        help=f"folder of the index (default: {DEFAULT_INDEX} in the pictures' folder)",
    )
    search.add_argument(
        "--num",
        type=whole_number(lowest=1),
        default=10,
        metavar="N",
        help="number of results (default: 10)",
    )


def _add_answer(commands: Commands[argparse.ArgumentParser]) -> None:
    answer = _add_command(
        commands, "answer", "answer a question about a picture (task vqa)", _answer
    )
    answer.add_argument("picture", type=user_path, help="an image file")
    answer.add_argument("question", help="the question")


def _add_judge(commands: Commands[argparse.ArgumentParser]) -> None:
    judge = _add_command(
        commands,
        "judge",
        "judge whether a statement is true of a picture (tasks nlvr, snli_ve)",
        _judge,
    )
    judge.add_argument("picture", type=user_path, help="an image file")
    judge.add_argument("statement", help="the statement")
    judge.add_argument(
        "--task", choices=["nlvr", "snli_ve"], help="default: the one that the student has"
    )


def _add_point(commands: Commands[argparse.ArgumentParser]) -> None:
    point = _add_command(
        commands, "point", "find the region of a phrase of a caption in a picture", _point
    )
    point.add_argument("picture", type=user_path, help="an image file")
    point.add_argument("caption", help="a caption that has the phrase")
    point.add_argument("phrase", help="the phrase")
    point.add_argument(
        "--out",
        type=user_path,
        metavar="PNG",
        help="write a copy of the picture with point and box",
    )


def _add_serve(commands: Commands[argparse.ArgumentParser]) -> None:
    serve = _add_command(
        commands, "serve", "serve a web page for match, search, answer, judge and point", _serve
    )
    serve.add_argument("--pictures", type=user_path, metavar="DIR", help="a folder to search in")
    serve.add_argument(
        "--index", type=user_path, metavar="DIR", help="folder of the index, as for search"
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    serve.add_argument(
        "--port",
        type=whole_number(lowest=0, highest=MAX_PORT),
        default=8000,
        help="default: 8000; 0 takes a free one",
    )


def _add_retrieval_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    plan = _add_command(
        commands,
        "retrieval-plan",
        "estimate the time of a full retrieval matrix, from a measured rate",
        _plan,
    )
    for name, metavar, default, text in (
        ("--pictures", "N", 5000, "pictures"),
        ("--texts", "M", 25010, "texts"),
        ("--devices", "W", 8, "devices"),
    ):
        plan.add_argument(
            name,
            type=whole_number(lowest=1),
            default=default,
            metavar=metavar,
            help=f"{text} (default: {default})",
        )
    plan.add_argument(
        "--rate",
        type=positive_number,
        metavar="PAIRS",
        help="pairs per second and device (default: measured here)",
    )


def _add_command(
    commands: Commands[argparse.ArgumentParser], name: str, text: str, run: object
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("student", type=user_path, help="a student's folder, as RUN/student")
    command.set_defaults(command=run)
    return command


def _warn_of_unread(student: Path, texts: Sequence[str]) -> None:
    from stages.transfer.inference import unread_note

    if note := unread_note(student, texts):
        print(f"warning: {note}", file=sys.stderr)


def _match(args: argparse.Namespace) -> int:
    from stages.transfer.inference import match

    _warn_of_unread(args.student, args.text)

    for text, score in match(args.student, args.picture, args.text):
        print(f"{score:.4f}  {text}")
    return 0


def _search(args: argparse.Namespace) -> int:
    from stages.transfer.inference import search

    _warn_of_unread(args.student, [args.text])
    index = args.index or args.pictures / DEFAULT_INDEX
    faults: list[str] = []
    # In a file or a pipe the results stand alone.
    with progress_bar("search", "pictures", show=sys.stdout.isatty()) as on_picture:
        found = search(
            args.student,
            args.pictures,
            args.text,
            index,
            on_fault=faults.append,
            on_picture=on_picture,
        )
    for name, score in found[: args.num]:
        print(f"{score:.4f}  {name}")
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    return 0


def _answer(args: argparse.Namespace) -> int:
    from stages.transfer.inference import answer

    _warn_of_unread(args.student, [args.question])
    for text, score in answer(args.student, args.picture, args.question)["best"]:
        print(f"{score:.4f}  {text}")
    return 0


def _judge(args: argparse.Namespace) -> int:
    from stages.transfer.inference import judge

    _warn_of_unread(args.student, [args.statement])
    found = judge(args.student, args.picture, args.statement, args.task)
    for label, score in sorted(found["probabilities"].items(), key=lambda item: -item[1]):
        print(f"{score:.4f}  {label}")
    return 0


def _point(args: argparse.Namespace) -> int:
    from stages.transfer.inference import draw_point, point

    if args.out and args.out.suffix.lower() != ".png":
        raise BoxlessError(f"--out: got {args.out}, expected a name that ends in .png")
    _warn_of_unread(args.student, [args.caption])
    found = point(args.student, args.picture, args.caption, args.phrase)
    if args.out:
        draw_point(args.picture, found, args.out)
    print(json.dumps(found))
    return 0


def _serve(args: argparse.Namespace) -> int:
    from pipeline.serve.server import StudentApp, make_server

    app = StudentApp(args.student, args.pictures, args.index)
    with make_server(app, host=args.host, port=args.port) as server:
        app.load()
        host, port = server.server_address[:2]
        print(f"Open http://{host!s}:{port}/ in a browser; Ctrl-C ends this.", flush=True)
        server.serve_forever()
    return 0


def _plan(args: argparse.Namespace) -> int:
    from stages.transfer.retrieval_matrix import MatrixPlan

    plan = MatrixPlan(
        num_pictures=args.pictures,
        num_texts=args.texts,
        num_devices=args.devices,
        pairs_per_second=args.rate or _measured(args.student),
    )
    print("\n".join(plan.lines()))
    return 0


def _measured(student: Path) -> float:
    """Pairs a second of this machine: one picture with some texts, the second time."""
    from PIL import Image

    from stages.transfer.example import Example
    from stages.transfer.loaded_student import LoadedStudent
    from stages.transfer.retrieval_matrix import row_scorer

    loaded = LoadedStudent(student)
    texts = ["a picture of two people who walk beside a dog"] * NUM_MEASURED
    row = row_scorer(loaded.network, loaded.processor, texts)
    gray = Image.new("RGB", (loaded.processor.longer_px, loaded.processor.shorter_px))
    example = Example(id="0", images=(gray,), texts=())  # type: ignore[arg-type]
    row((example,))
    start = time.perf_counter()
    row((example,))
    return NUM_MEASURED / (time.perf_counter() - start)
