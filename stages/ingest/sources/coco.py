"""Pictures in a folder with captions, and perhaps boxes, in COCO's format.

Reached from `stages.ingest.run` when `ingest.source` is "coco". The format is described at
https://cocodataset.org/#format-data; used are of a captions file `images` (`id`, `file_name`) and
`annotations` (`image_id`, `caption`), of an instances file `images` (`id`, `width`, `height`),
`categories` (`id`, `name`) and `annotations` (`image_id`, `category_id`, `bbox`, `iscrowd`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from stages.ingest.files import (
    describe_folder,
    list_pictures,
    open_folder,
    read_json_object,
    read_picture,
    size_bytes,
)
from stages.ingest.sources.coco_instances import is_id, read_instances
from stages.ingest.sources.source import (
    Failure,
    Picture,
    SourceError,
    clean_caption,
    inputs_fingerprint,
    safe_key,
    shown,
    split_of,
)

EXPECTED = "a captions file in COCO's format, as captions_val2017.json"


class CocoSource:
    """The pictures below `root` that a captions file names, with boxes where `instances` is given.

    A key is the file name without its ending. Pictures below `root` that the captions file does not
    name, and captions of pictures that it does not list, are inputs that failed. Raises SourceError
    at once where paths or files are not what they should be.
    """

    attribute_names: Sequence[str] = ()

    def __init__(
        self,
        *,
        root: str,
        captions: str,
        instances: str | None,
        seed: int,
        heldout_fraction: float,
    ) -> None:
        self._root = open_folder(root, field="ingest.root", expected="the folder of the pictures")
        self._split = functools.partial(split_of, seed=seed, heldout_fraction=heldout_fraction)
        images, captions_of = read_captions(captions)
        self._instances = read_instances(instances, images=images) if instances else None
        self._inputs = self._list_inputs(images, captions_of)
        named = [i for i in self._inputs if isinstance(i, Picture)]
        if all(picture.size_bytes < 0 for picture in named):
            raise SourceError(
                f"ingest.root is {root!r}, where not one of the {len(named)} pictures is that "
                f"{captions} names (one of them: {shown(named[0].origin)}; "
                f"{describe_folder(self._root)}); expected the folder of just these pictures"
            )

    @property
    def label_names(self) -> Sequence[str]:
        """Category names by rising id; () without instances."""
        return self._instances.label_names if self._instances else ()

    def pictures(self) -> Sequence[Picture | Failure]:
        """One input an entry of `images`, a picture nobody names, a missing entry; by key."""
        return self._inputs

    def fingerprint(self) -> str:
        """Hash of names and sizes of all pictures and of all that the files say about them."""
        return inputs_fingerprint(self._inputs)

    def _list_inputs(
        self, images: list[dict[str, Any]], captions_of: dict[Any, list[str]]
    ) -> list[Picture | Failure]:
        inputs: list[Picture | Failure] = []
        file_of_id: dict[Any, str] = {}
        for image in images:
            if image["id"] in file_of_id:
                reason = f"duplicate image id: {image['id']} is already {file_of_id[image['id']]}"
                inputs.append(Failure(key=key_of(image["file_name"]), reason=shown(reason)))
            else:
                file_of_id[image["id"]] = image["file_name"]
                inputs.append(self._picture(image, captions_of.get(image["id"], [])))
        named = {str(PurePosixPath(image["file_name"])) for image in images}
        for name in list_pictures(self._root):
            if name not in named:
                reason = f"no caption names this picture: {shown(name)}"
                inputs.append(Failure(key=key_of(name), reason=reason))
        for image_id, captions in captions_of.items():
            if image_id not in file_of_id:
                reason = f"missing picture: {len(captions)} captions are of image id {image_id}, "
                reason += 'which "images" does not list'
                inputs.append(Failure(key=safe_key(f"image-id-{image_id}"), reason=shown(reason)))
        # By key, not in the order above, so that failed inputs spread over the shards. The sort is
        # stable: of two equal keys the one that the captions file has first stays first.
        return sorted(inputs, key=lambda i: i.key)

    def _picture(self, image: dict[str, Any], captions: list[str]) -> Picture:
        image_id, name = image["id"], image["file_name"]
        boxes = self._instances.of_image.get(image_id) if self._instances else None
        return Picture(
            key=key_of(name),
            split=self._split(str(image_id)),
            read=functools.partial(read_picture, self._root, name),
            captions=tuple(captions),
            fields={
                "image_id": shown(image_id) if isinstance(image_id, str) else image_id,
                "source": "coco",
                "file_name": shown(name),
            },
            truth=boxes.truth if boxes else None,
            size_px=boxes.size_px if boxes else None,
            origin=name,
            size_bytes=size_bytes(self._root, name),
            notes=tuple(boxes.notes) if boxes else (),
        )


def key_of(file_name: str) -> str:
    """A file name, relative to the root, as a key: without its ending, made safe."""
    path = PurePosixPath(file_name)
    return safe_key(str(path.parent / path.stem))


def read_captions(path: str) -> tuple[list[dict[str, Any]], dict[Any, list[str]]]:
    """(`images` entries, {image id: captions in the file's order}); SourceError for other files."""
    content = read_json_object(
        path, field="ingest.captions", expected=EXPECTED, keys=("images", "annotations")
    )
    if not content["images"]:
        raise SourceError(f'ingest.captions ({path}): "images" is empty; expected {EXPECTED}')
    for i, image in enumerate(content["images"]):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not PurePosixPath(name).name or not is_id(image.get("id")):
            raise SourceError(
                f"ingest.captions ({path}): images[{i}] is {str(image)[:80]}; expected an object "
                'with an "id" (number or text) and a "file_name"'
            )
    captions: dict[Any, list[str]] = {}
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or "caption" not in annotation:
            hint = ""
            if isinstance(annotation, dict) and "bbox" in annotation:
                hint = "; this looks like an instances file, which goes into ingest.instances"
            raise SourceError(
                f"ingest.captions ({path}): annotations[{i}] is {str(annotation)[:80]}; expected "
                f'an object with "image_id" and "caption"{hint}'
            )
        if not is_id(annotation.get("image_id")):
            raise SourceError(
                f'ingest.captions ({path}): annotations[{i}] has "image_id" '
                f"{annotation.get('image_id')!r}; expected the id of a picture, number or text"
            )
        captions.setdefault(annotation["image_id"], []).append(clean_caption(annotation["caption"]))
    if not any(image["id"] in captions for image in content["images"]):
        raise SourceError(
            f"ingest.captions ({path}): not one of its {len(content['images'])} images has one of "
            f"its {len(content['annotations'])} annotations; expected each annotation's "
            '"image_id" to be the "id" of an image'
        )
    return content["images"], captions
