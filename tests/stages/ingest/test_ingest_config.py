"""The recipe part of ingest refuses what cannot be meant; oracle: the rules in its docstring."""

from __future__ import annotations

from typing import Any

import pytest

from stages.ingest.config import IngestConfig


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"source": "coco", "root": "p", "captions": "c.json"},
        {"source": "coco", "root": "p", "captions": "c.json", "instances": "i.json"},
        {"source": "nlvr", "root": "p", "nlvr_num_orders": 1},
        {"source": "webdataset", "root": "p", "heldout_fraction": 0.0},
        {"num_heldout": 0},
    ],
)
def test_sound_configs_pass(fields: dict[str, Any]) -> None:
    IngestConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"source": "flickr"}, "ingest.source is 'flickr'; it is one of toy, coco, nlvr"),
        ({"source": "coco", "root": "p"}, "ingest.captions is not set.*--set ingest.captions=PATH"),
        ({"source": "coco", "captions": "c"}, "ingest.root is not set"),
        ({"source": "nlvr"}, "ingest.root is not set; source 'nlvr' needs a folder"),
        ({"source": "webdataset"}, "ingest.root is not set"),
        ({"root": "p"}, "ingest.root is 'p', but source 'toy' takes no path"),
        ({"source": "nlvr", "root": "p", "captions": "c"}, "ingest.captions .* takes only root"),
        ({"num_train": 0}, "ingest.num_train is 0; it must be at least 1"),
        ({"num_heldout": -1}, "ingest.num_heldout is -1"),
        ({"heldout_fraction": 1.0}, "ingest.heldout_fraction is 1.0"),
        ({"samples_per_shard": 0}, "ingest.samples_per_shard is 0"),
        ({"max_megapixels": 200}, "ingest.max_megapixels is 200"),
        ({"max_megapixels": 0}, "ingest.max_megapixels is 0"),
        ({"min_side_px": 0}, "ingest.min_side_px is 0"),
        ({"nlvr_num_orders": 7}, "ingest.nlvr_num_orders is 7; it must be from 1 to 6"),
    ],
)
def test_others_are_refused_by_name(fields: dict[str, Any], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        IngestConfig(**fields)
