"""Tab-separated rows in base64: bottom-up attention's own, and LXMERT's with classes.

Columns of LXMERT (airsplay/lxmert, src/utils.py: load_obj_tsv,
data/nlvr2_imgfeat/extract_nlvr2_image.py; airsplay/ py-bottom-up-attention,
demo/detectron2_mscoco_proposal_maxnms.py): img_id, img_h, img_w, objects_id int64 [N], objects_conf
f4 [N], attrs_id int64 [N], attrs_conf f4 [N], num_boxes, boxes f4 [N, 4], features f4 [N, D];
numbers of classes and attributes are 0-based lines of the vocabularies, the background left out.
Columns of peteanderson80/bottom-up-attention (tools/generate_tsv.py): image_id, image_w, image_h,
num_boxes, boxes, features: no classes at all.

Boxes are xyxy in pixels of the original picture; they are proposals of py-faster-rcnn, whose x1 and
y1 are the last pixel inside. An attribute of confidence 0, which py-bottom-up-attention writes for
want of any, is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.arrays import from_base64
from stages.distill.precomputed.formats.record import FeaturesError, Record, RowError
from stages.distill.precomputed.formats.tsv import TsvFiles, whole_number
from stages.distill.precomputed.index import Place

NUM_LXMERT_COLUMNS, NUM_BUTD_COLUMNS = 10, 6


class ButdTsv:
    """Rows of either layout; which one follows from the first rows. FeaturesError where the
    recipe's `labels` does not go with it."""

    is_row_a_picture = True

    def __init__(self, config: FeaturesConfig, *, folder: Path | None, show: bool) -> None:
        self._is_unlabelled = config.labels is None
        self._rows = TsvFiles(config.path, config, field="path", folder=folder, show=show)
        seen = {1 + len(fields) for fields in self._rows.first_rows()}
        if NUM_BUTD_COLUMNS in seen and NUM_LXMERT_COLUMNS not in seen and not self._is_unlabelled:
            raise FeaturesError(
                f"labels is {config.labels!r}, but the rows of {config.path} have no classes (the "
                "six columns of bottom-up attention's generate_tsv.py); set labels and attributes "
                'to null, and every object is an "object" of score 1, or let a teacher look again'
            )
        if NUM_LXMERT_COLUMNS in seen and self._is_unlabelled:
            raise FeaturesError(
                f"labels is null, but the rows of {config.path} have classes (LXMERT's ten "
                "columns); expected the file of their names, as objects_vocab.txt"
            )
        self.index = self._rows.index
        self.fingerprint = self.index.fingerprint
        self.id_at = self._rows.id_at

    def read(self, places: Sequence[Place]) -> Record:
        """The record of the one row; RowError where it is not valid."""
        (place,) = places
        identity, fields = self._rows.row(place)
        expected = NUM_BUTD_COLUMNS if self._is_unlabelled else NUM_LXMERT_COLUMNS
        if len(fields) != expected - 1:
            raise RowError(
                f"columns: {len(fields) + 1}, expected {expected}; two rows in one, or half a row"
            )
        if self._is_unlabelled:
            return _read_butd(identity, fields)
        return _read_lxmert(identity, fields)


def _read_butd(identity: str, fields: list[bytes]) -> Record:
    width, height, num = (
        whole_number(field, name)
        for field, name in zip(fields, ("image_w", "image_h", "num_boxes"))
    )
    return Record(
        id=identity,
        size_px=(width, height),
        boxes=from_base64(fields[3], dtype="<f4", shape=(num, 4), name="boxes"),
        features=from_base64(fields[4], dtype="<f4", shape=(num, -1), name="features"),
        labels=np.zeros(num, np.int64),
        scores=np.ones(num, np.float32),
    )


def _read_lxmert(identity: str, fields: list[bytes]) -> Record:
    height, width, num = (
        whole_number(fields[column], name)
        for column, name in ((0, "img_h"), (1, "img_w"), (6, "num_boxes"))
    )
    attributes, attribute_scores = (
        from_base64(fields[4], dtype="<i8", shape=(num,), name="attrs_id"),
        from_base64(fields[5], dtype="<f4", shape=(num,), name="attrs_conf"),
    )
    return Record(
        id=identity,
        size_px=(width, height),
        boxes=from_base64(fields[7], dtype="<f4", shape=(num, 4), name="boxes"),
        features=from_base64(fields[8], dtype="<f4", shape=(num, -1), name="features"),
        labels=from_base64(fields[2], dtype="<i8", shape=(num,), name="objects_id"),
        scores=from_base64(fields[3], dtype="<f4", shape=(num,), name="objects_conf"),
        attributes=np.where(attribute_scores == 0, -1, attributes),
        attribute_scores=attribute_scores,
    )
