"""Paths in a recipe are those of the folder where it was read; oracle: os.path, by hand."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.arguments import user_path
from pipeline.recipe import paths
from pipeline.recipe.dataclass_values import RecipeError
from pipeline.recipe.recipe import Recipe, load_recipe


def test_paths_are_absolute_and_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folders always, names of published things only where they are paths; URLs and
    places below another field's stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "my_parser").mkdir()
    recipe = load_recipe(
        "coco",
        [
            "ingest.root=~/coco/im",
            "ingest.captions='{root}/c.json'",
            "ingest.instances=../i.json",
            "ingest.exclude=[k.json]",
            "teach.given=~/vg",
            "distill.parser=my_parser",
            "pretrain.ds_config=ds.json",
            "pretrain.data.sources=[{folder: shards}, {folder: 's3://bucket/shards'}]",
            "student.pretrained_text=bert-base-uncased",
        ],
    )
    assert recipe.ingest.root == "/home/me/coco/im"
    assert recipe.ingest.captions == "{root}/c.json"
    assert recipe.ingest.instances == str(tmp_path.parent / "i.json")
    assert recipe.ingest.exclude == [str(tmp_path / "k.json")]
    assert recipe.teach.given == "/home/me/vg"
    assert recipe.distill.parser == str(tmp_path / "my_parser")
    assert recipe.pretrain.ds_config == str(tmp_path / "ds.json")
    folders = [source.folder for source in recipe.pretrain.data.sources]
    assert folders == [str(tmp_path / "shards"), "s3://bucket/shards"]
    assert recipe.student.pretrained_text == "bert-base-uncased"
    assert user_path("~/runs/x") == Path("/home/me/runs/x")


def test_checkpoints_and_detectors_of_others_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of files, and a model that is a folder; a model's published name stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(
        "soho-res18",
        [
            "ingest.root=im",
            "ingest.captions=c.json",
            "student.soho_checkpoint=soho.pth",
            "launch.slurm.container_image=~/boxless.sif",
            "launch.slurm.container_mounts=['~/runs:/runs', 'data:/data:ro']",
            "distill.teacher=transformers",
            "distill.transformers={model: ./detr, labels: ~/labels.txt}",
        ],
    )
    assert recipe.student.soho_checkpoint == str(tmp_path / "soho.pth")
    assert recipe.launch.slurm.container_image == "/home/me/boxless.sif"
    mounts = ("/home/me/runs:/runs", f"{tmp_path}/data:/data:ro")
    assert recipe.launch.slurm.container_mounts == mounts
    assert recipe.distill.transformers.model == str(tmp_path / "detr")
    assert recipe.distill.transformers.labels == "/home/me/labels.txt"
    model = "distill.transformers={model: facebook/detr-resnet-50}"
    published = load_recipe("toy", ["distill.teacher=transformers", model])
    assert published.distill.transformers.model == "facebook/detr-resnet-50"


PATH_LIKE = re.compile(
    r"(^|_)(path|file|hostfile|folder|root|weights|checkpoint|config_file|ds_config|annotations|"
    r"captions|instances|predictions|images|ids|labels|attributes|exclude|given|parser|model|image|"
    r"mounts|student|train|heldout)$"
)
OTHERS = {
    # Of text, and no path.
    "ingest.split_of_word",
    "launch.slurm.exclude",
}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('ingest.root=""', "ingest.root is empty; expected a path"),
        ('ingest.exclude=["a.json", ""]', r"ingest.exclude\[1\] is empty; expected a path"),
        ('teach.given="a\\0b"', r"teach.given is .*; expected a path, without null bytes"),
        ('ingest.captions="https://a/c.json"', "ingest.captions is .*, a URL; expected a path on"),
        ('ingest.exclude=["a.json", "s3://b/c"]', r"ingest.exclude\[1\] is .*, a URL; .* copy"),
        ('distill.parser="a\\0b"', r"distill.parser is .*; expected a path, without null bytes"),
    ],
)
def test_texts_that_are_no_paths_are_refused(setting: str, message: str) -> None:
    """An empty one would be the folder where the command is given; the kernel refuses null bytes
    only when the stage opens the file."""
    with pytest.raises(RecipeError, match=message):
        load_recipe("coco", ['ingest.root="pictures"', setting])


def test_every_field_that_is_named_like_a_path_is_one_of_the_lists() -> None:
    """Oracle: the recipe's own dataclasses, gone through to their last field. A new field with a
    path has to be named in pipeline/recipe/paths.py, and what is named there has to exist."""
    found = dict(_text_fields(Recipe, ""))
    listed = {*paths.FILES, *paths.NAMES, *paths.MOUNTS}
    assert listed <= found.keys()
    like_paths = {place for place in found if PATH_LIKE.search(place.rpartition(".")[2])}
    assert like_paths - listed - OTHERS == set()


def _text_fields(hint: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Dotted place and type of every field below a type that may hold text."""
    if dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint).items():
            yield from _text_fields(inner, f"{place}.{name}" if place else name)
    elif hint is str:
        yield place, hint
    elif typing.get_origin(hint) not in (dict, typing.Literal):
        for inner in typing.get_args(hint):
            yield from _text_fields(inner, place)
