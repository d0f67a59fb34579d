"""Commands over folders of shards, whatever made them: view, verify, repair, repack, index,
shuffle-quality.

Shards are few thousand at most and each takes seconds, so all show their progress.
"""

from __future__ import annotations

import argparse
import json

from pipeline.cli.arguments import user_path, user_path_or_url, whole_number
from pipeline.cli.progress_bar import progress_bar

Commands = argparse._SubParsersAction
_SHUFFLE_NUMBERS = {
    "micro_batch_size": "samples of a micro-batch",
    "window_num_shards": "shards that are shuffled together",
    "shape_step_px": "pictures are grouped by sides rounded to this many pixels",
    "num_ranks": "ranks",
    "num_workers": "loader workers of a rank",
    "seed": "seed of the order",
}


def add_shard_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the six commands to the command line's parser."""
    _add_view(commands)
    _add_verify(commands)
    _add_repair(commands)
    _add_repack(commands)
    _add_index(commands)
    _add_shuffle_quality(commands)


def _add_view(commands: Commands[argparse.ArgumentParser]) -> None:
    view = commands.add_parser(
        "view",
        help="draw objects and phrases of shards on their pictures, as HTML or PNG",
        description="Draws boxes, labels, attributes, scores, soft labels and phrases on pictures "
        "of a shard: a page (.html, one file) or a contact sheet (.png).",
    )
    view.add_argument(
        "shard",
        type=user_path_or_url,
        help="a shard's tar, a folder of shards, or the URL of either",
    )
    view.add_argument("--out", type=user_path, required=True, metavar="FILE", help=".html or .png")
    view.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY",
        help="key of a sample, or a pattern such as 'toy-*'; may be repeated "
        "(default: some, evenly spaced)",
    )
    view.add_argument(
        "--num",
        type=whole_number(lowest=0),
        default=argparse.SUPPRESS,
        metavar="N",
        help="maximum number of pictures (default: 24)",
    )
    view.add_argument(
        "--min-score",
        type=float,
        default=argparse.SUPPRESS,
        metavar="S",
        help="minimum score of the objects drawn (default: 0)",
    )
    view.set_defaults(command=_view)


def _view(args: argparse.Namespace) -> int:
    from pipeline.pages.shards.command import ViewConfig, view
    from pipeline.pages.shards.summary_text import pictures

    given = {name: getattr(args, name) for name in ("num", "min_score") if hasattr(args, name)}
    shown = view(args.shard, args.out, ViewConfig(keys=tuple(args.key), **given))
    damaged = f", {shown.num_broken} of them damaged" if shown.num_broken else ""
    print(f"{args.out}: {pictures(shown.num_shown)}{damaged}.")
    return 0


def _add_verify(commands: Commands[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser("verify", help="check shards; exit status 1 on any fault")
    verify.add_argument(
        "paths", type=user_path, nargs="+", help="tars, folders of shards, or run folders"
    )
    verify.add_argument(
        "--fast", action="store_true", help="check manifests and sizes only, do not read the tars"
    )
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=_verify)


def _verify(args: argparse.Namespace) -> int:
    from sharding.tools.verify import verify_paths

    with progress_bar("verify", "shards", show=not args.json) as on_shard:
        faults = verify_paths(args.paths, full=not args.fast, on_shard=on_shard)
    if args.json:
        found = [{"tar": f.tar, "key": f.key, "cause": f.cause} for f in faults]
        print(json.dumps({"faults": found}, indent=1))
    else:
        for fault in faults:
            print(": ".join(filter(None, (fault.tar, fault.key, fault.cause))))
        print(f"{len(faults)} faults" if faults else "No faults.")
    return 1 if faults else 0


def _add_repair(commands: Commands[argparse.ArgumentParser]) -> None:
    repair = commands.add_parser(
        "repair",
        help="rebuild missing manifests, move damaged tars to quarantine/",
        description="Reads every byte. An intact tar without a manifest gets a new one; a damaged "
        "tar moves to quarantine/ with the reason. Nothing is deleted. Run the stage that wrote "
        "the folder afterwards: it writes the missing shards.",
    )
    repair.add_argument(
        "folder", type=user_path, help="a folder of shards that no stage is writing"
    )
    repair.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and change nothing"
    )
    repair.set_defaults(command=_repair)


def _repair(args: argparse.Namespace) -> int:
    from sharding.tools.repair import lines, repair

    with progress_bar("repair", "shards") as on_shard:
        report = repair(args.folder, dry_run=args.dry_run, on_shard=on_shard)
    print("\n".join(lines(report)))
    return 0


def _add_repack(commands: Commands[argparse.ArgumentParser]) -> None:
    repack = commands.add_parser(
        "repack", help="write the samples of shards into shards of another size or order"
    )
    repack.add_argument("sources", type=user_path, nargs="+", help="folders of finished shards")
    repack.add_argument("--out", type=user_path, required=True, metavar="DIR", help="a new folder")
    size = repack.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--samples-per-shard", type=whole_number(lowest=1), metavar="N", help="samples in a tar"
    )
    size.add_argument(
        "--shard-bytes",
        type=whole_number(lowest=1),
        metavar="N",
        help="maximum size of a tar, in bytes",
    )
    repack.add_argument(
        "--shuffle",
        type=whole_number(lowest=0),
        metavar="SEED",
        help="shuffle each split with this seed (default: keep the order)",
    )
    repack.add_argument("--split", help="only this split")
    repack.set_defaults(command=_repack)


def _repack(args: argparse.Namespace) -> int:
    from sharding.tools.repack import RepackConfig, repack

    config = RepackConfig(
        samples_per_shard=args.samples_per_shard,
        shard_bytes=args.shard_bytes,
        seed=args.shuffle,
        split=args.split,
    )
    with progress_bar("repack", "shards") as on_shard:
        catalog = repack(args.sources, args.out, config, on_shard=on_shard)
    num_samples = sum(shard.num_ok for shard in catalog.shards)
    num_failed = sum(shard.num_failed for shard in catalog.shards)
    print(
        f"{args.out}: {len(catalog.shards)} shards, {num_samples} samples, {num_failed} failures "
        "carried over."
    )
    return 0


def _add_index(commands: Commands[argparse.ArgumentParser]) -> None:
    index = commands.add_parser(
        "index",
        help="write manifests and a catalog for tars of other tools (webdataset, img2dataset)",
    )
    index.add_argument("folder", type=user_path, help="a folder of tars")
    index.set_defaults(command=_index)


def _index(args: argparse.Namespace) -> int:
    from sharding.tools.index import catalog_lines, index_folder
    from sharding.tools.tar_names import other_tars

    with progress_bar("index", "shards") as on_shard:
        catalog = index_folder(args.folder, on_shard=on_shard)
    print("\n".join(catalog_lines(catalog)))
    for other in other_tars(args.folder):
        print(f"warning: not indexed, as it is not named *.tar: {other}")
    return 0


def _add_shuffle_quality(commands: Commands[argparse.ArgumentParser]) -> None:
    quality = commands.add_parser(
        "shuffle-quality",
        help="measure how well the training order shuffles a folder of shards",
    )
    quality.add_argument("folder", type=user_path, help="a folder of finished shards")
    # What is not given is not set: the defaults, and what each means, are ShuffleConfig's.
    quality.add_argument("--split", default=argparse.SUPPRESS, help="split (default: train)")
    for name, meaning in _SHUFFLE_NUMBERS.items():
        option = f"--{name.replace('_', '-')}"
        quality.add_argument(
            option,
            type=whole_number(lowest=0 if name == "seed" else 1),
            default=argparse.SUPPRESS,
            metavar="N",
            help=meaning,
        )
    quality.add_argument("--out", type=user_path, metavar="PNG", help="also plot the orders")
    quality.set_defaults(command=_shuffle_quality)


def _shuffle_quality(args: argparse.Namespace) -> int:
    from sharding.order.shuffle_quality import lines, measure
    from sharding.order.shuffle_simulation import ShuffleConfig

    names = ("split", *_SHUFFLE_NUMBERS)
    config = ShuffleConfig(**{name: getattr(args, name) for name in names if hasattr(args, name)})
    print("\n".join(lines(measure(args.folder, config, picture=args.out))))
    if args.out:
        print(f"Picture: {args.out}")
    return 0
