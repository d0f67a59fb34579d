"""Commands over a student's folder: inspect shows what it makes of pictures and texts, export
writes it for other tools.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.arguments import user_path, user_path_or_url, whole_number

if TYPE_CHECKING:
    from pipeline.pages.student.inputs import ExampleInputs

Commands = argparse._SubParsersAction


def add_student_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the two commands to the command line's parser."""
    _add_inspect(commands)
    _add_export(commands)


def _add_examples(command: argparse._ActionsContainer) -> None:
    """The options that pipeline.pages.student.inputs.ExampleInputs describes."""
    command.add_argument(
        "--picture",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture; may be repeated, with a --text for each or one for all",
    )
    command.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text for the picture; may be repeated",
    )
    command.add_argument(
        "--shards",
        type=user_path_or_url,
        metavar="DIR",
        help="pictures and captions of shards instead: a tar, a folder, or the URL of either",
    )
    command.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY",
        help="with --shards: key of a sample, or a pattern (default: some, evenly spaced)",
    )
    command.add_argument(
        "--num",
        type=whole_number(lowest=0),
        default=argparse.SUPPRESS,
        metavar="N",
        help="with --shards: maximum number of samples (default: 8)",
    )


def _add_inspect(commands: Commands[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="show attention, matching and predictions of a student for pictures and texts",
        description="A page with the attention of each word over the picture, the cells aligned "
        "with words and phrases, the match of text and picture, and the predictions for each word "
        "or [MASK].",
    )
    inspect.add_argument("student", type=user_path, help="a student's folder, as RUN/student")
    inspect.add_argument(
        "--out", type=user_path, required=True, metavar="FILE", help="an .html file"
    )
    _add_examples(inspect.add_argument_group("examples"))
    inspect.set_defaults(command=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from pipeline.pages.student.command import inspect

    number = inspect(args.student, args.out, _example_inputs(args))
    print(f"{args.out}: {number} examples.")
    return 0


def _add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="write a student as ONNX files or SOHO checkpoint, or examples for VL-InterpreT",
        description="onnx: the networks for ONNX Runtime (docs/students.md). soho: a checkpoint "
        "that the released SOHO code reads, of a student built as SOHO's. vl-interpret: attention "
        "and hidden states of some examples, for Intel's viewer.",
    )
    export.add_argument("student", type=user_path, help="a student's folder, as RUN/student")
    export.add_argument(
        "--to", choices=["onnx", "soho", "vl-interpret"], required=True, help="format"
    )
    export.add_argument(
        "--out",
        type=user_path,
        required=True,
        metavar="PATH",
        help="a new file (soho) or a new folder (onnx, vl-interpret)",
    )
    export.add_argument(
        "--int8",
        action="store_true",
        help="with --to onnx: weights and activations of 8 bits, with ranges from held-out pictures "
        "of --shards DIR; prints what that changes of each score on --num others (default: 200)",
    )
    _add_examples(
        export.add_argument_group("examples, for vl-interpret; --shards and --num also for --int8")
    )
    export.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    from pipeline.export.command import export_soho, export_vl_interpret
    from pipeline.pages.student.inputs import InputError

    if args.int8:
        return _export_int8(args)
    has_examples = args.picture or args.text or args.shards or args.key
    if args.to != "vl-interpret" and has_examples:
        raise InputError(
            f"got examples with --to {args.to}, expected them with --to vl-interpret, or --shards "
            "with --int8"
        )
    if args.to == "onnx":
        from pipeline.export.onnx_files import export_onnx

        print(f"{args.out}: {', '.join(export_onnx(args.student, args.out))} and the processor.")
        return 0
    if args.to == "soho":
        export_soho(args.student, args.out)
        print(f"{args.out}: read it with load_from (SOHO) or student.soho_checkpoint (a recipe).")
        return 0
    number = export_vl_interpret(args.student, args.out, _example_inputs(args))
    print(
        f"{args.out}: {number} examples. In VL-InterpreT's app/database prepare them with\n"
        f'  python -c "from database import VliLmdb; '
        f"VliLmdb('{args.out.absolute()}', read_only=False).preprocess()\"\n"
        f"and in its own folder show them with\n  python run_app.py -d {args.out.absolute()}"
    )
    return 0


def _export_int8(args: argparse.Namespace) -> int:
    from pipeline.export.int8_export import Int8Config, export_int8
    from pipeline.pages.student.inputs import InputError

    if args.to != "onnx":
        raise InputError(f"--int8: got --to {args.to}, expected --to onnx")
    if args.picture or args.text or args.key or not args.shards or "://" in args.shards:
        raise InputError(
            "--int8: expected --shards DIR alone, a folder of image or object shards with held-out "
            "pictures, as RUN/images, to take ranges and scores from"
        )
    more = {"num_scored": args.num} if hasattr(args, "num") else {}
    report = export_int8(args.student, args.out, Int8Config(shards=Path(args.shards), **more))
    for line in report.lines():
        print(line)
    print(f"{args.out}: {', '.join(report.file_bytes)}, int8.json and the processor.")
    return 0


def _example_inputs(args: argparse.Namespace) -> ExampleInputs:
    from pipeline.pages.student.inputs import ExampleInputs

    more = {"num": args.num} if hasattr(args, "num") else {}
    return ExampleInputs(
        pictures=tuple(args.picture),
        texts=tuple(args.text),
        shards=args.shards,
        keys=tuple(args.key),
        **more,
    )
