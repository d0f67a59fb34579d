"""Commands over teachers: convert makes one of a checkpoint from elsewhere, teacher checks
one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from pathlib import Path

from pipeline.cli.arguments import user_path
from stages.detector.checkpoints.families import FAMILIES, Family

Commands = argparse._SubParsersAction


def add_teacher_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the two commands to the command line's parser."""
    _add_convert(commands)
    _add_teacher(commands)


def _add_convert(commands: Commands[argparse.ArgumentParser]) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint of detectron2 or bottom-up attention to a teacher folder",
        description="Reads .pkl, .pth, .pt and .safetensors without executing pickled code.\n"
        "A recipe takes the folder as teach.given.",
        epilog=_families(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("checkpoint", type=user_path, help="a file of weights")
    convert.add_argument(
        "--family",
        choices=list(FAMILIES),
        required=True,
        help="origin of the checkpoint, see below",
    )
    convert.add_argument(
        "--labels",
        type=user_path,
        required=True,
        metavar="FILE",
        help="names of the classes, one a line, synonyms with commas between; or a JSON list",
    )
    convert.add_argument(
        "--attributes",
        type=user_path,
        metavar="FILE",
        help="names of the attributes, if it has any",
    )
    convert.add_argument(
        "--license",
        required=True,
        metavar="TEXT",
        help="license of the weights, for the model card; 'unknown' if it is not known",
    )
    convert.add_argument("--out", type=user_path, required=True, metavar="DIR", help="a new folder")
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a value of the family, as picture.shorter_px=600; may be repeated",
    )
    convert.set_defaults(command=_convert)


def _families() -> str:
    """A paragraph a family."""
    lines = ["families:"]
    for family in FAMILIES.values():
        lines.append(f"  {family.name}")
        lines += textwrap.wrap(
            family.about,
            96,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _convert(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from stages.detector.checkpoints.convert import convert

    console = Console(stderr=True)
    with console.status("convert") as status:

        def log(step: str) -> None:
            if console.is_terminal:
                status.update(escape(f"convert: {step}"))
            else:
                print(f"convert: {step}", flush=True)

        convert(
            args.checkpoint,
            family=_family(FAMILIES[args.family], args.set),
            labels=args.labels,
            attributes=args.attributes,
            license=args.license,
            out=args.out,
            log=log,
        )
    _show(args.out)
    return 0


def _family(family: Family, overrides: list[str]) -> Family:
    """`family` with the values of --set; its name then says so. Raises RecipeError."""
    if not overrides:
        return family
    from pipeline.recipe.dataclass_values import build, plain
    from pipeline.recipe.recipe import set_value

    values = plain(family)
    for override in overrides:
        set_value(values, override)
    changed: Family = build(Family, values)
    return dataclasses.replace(changed, name=f"{family.name} with {', '.join(overrides)}")


def _add_teacher(commands: Commands[argparse.ArgumentParser]) -> None:
    teacher = commands.add_parser(
        "teacher",
        help="check a teacher folder and print its model card",
        description="Checks that weights, names and network match, and prints the model card.",
    )
    teacher.add_argument("folder", type=user_path, help="a teacher's folder, as RUN/teacher")
    teacher.add_argument("--json", action="store_true", help="print JSON")
    teacher.set_defaults(command=_teacher)


def _teacher(args: argparse.Namespace) -> int:
    from stages.detector.teacher_folder import load_teacher, read_about

    load_teacher(args.folder)  # which says what is wrong with it
    if not args.json:
        _show(args.folder)
        return 0
    about = read_about(args.folder)
    parts = {name: getattr(about, name) for name in ("card", "sizes", "net")}
    print(
        json.dumps(
            {
                "fingerprint": about.fingerprint,
                **{name: part and dataclasses.asdict(part) for name, part in parts.items()},
                "labels": about.labels,
                "attributes": about.attributes,
            },
            indent=1,
        )
    )
    return 0


def _show(folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from stages.detector.model_card import rows
    from stages.detector.teacher_folder import read_about

    about = read_about(folder)
    if about.card is None or about.sizes is None:
        print(f"{folder}: a teacher that finds no objects, for pictures without boxes.")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a fingerprint is of use only if complete
    for name, text in rows(about.card, about.sizes, about.fingerprint).items():
        table.add_row(name, escape(text))
    print(f"{folder}:")
    Console(highlight=False).print(table)
