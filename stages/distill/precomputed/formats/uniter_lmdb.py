"""UNITER's LMDB of image features: a .npz or a msgpack a picture, keys the names of .npz files.

ChenRocks/UNITER: data/data.py (DetectFeatLmdb), scripts/convert_imgdir.py (the two encodings:
`dumps_npz` with compression, `dumps_msgpack` of msgpack-numpy without), and the script of its
extraction docker, generate_npz.py, for the arrays: norm_bb [N, 6] (x0, y0, x1, y1 as shares of the
picture's sides, width, height; some append the area), features [N, D], conf [N] or [N, 1],
soft_labels [N, C + 1] class probabilities, background first. All are f2. Attributes are none.

Boxes are in half precision: a place in a picture of 640 pixels is known to a third of a pixel. The
label is the best class but the background, and the score is its probability, which is what
bottom-up attention calls objects_conf; `conf` is the score that its NMS kept a box for, mostly the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stages.distill.precomputed.config import FeaturesConfig
from stages.distill.precomputed.formats.arrays import array_of, read_npz
from stages.distill.precomputed.formats.record import FeaturesError, Record, RowError
from stages.distill.precomputed.ids import rule_of
from stages.distill.precomputed.index import Place, file_signature, index_names

DATA = "data.mdb"
KEYS = b"__keys__"
_ARRAYS = ("norm_bb", "features", "soft_labels")
_ZIP = b"PK\x03\x04"
# Shares in half precision are off by half of 2^-11 near 1.
_SIDE_TOLERANCE = 0.004


class UniterLmdb:
    """The pictures of one LMDB. A key is an id with its ending .npz: `id: stem` leaves it out.

    Raises FeaturesError where the packages lmdb and msgpack are missing, where there is no LMDB,
    and where its file is cut short.
    """

    is_row_a_picture = True

    def __init__(self, config: FeaturesConfig) -> None:
        lmdb, self._msgpack = (find_package(name) for name in ("lmdb", "msgpack"))
        file = Path(config.path) / DATA
        if not file.is_file():
            raise FeaturesError(
                f"path is {config.path!r}, with no {DATA} in it; expected the folder of an LMDB, "
                "as feat_th0.2_max100_min10"
            )
        self._environment = _open(lmdb, Path(config.path))
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            self._keys = [key for key in cursor.iternext(values=False) if key != KEYS]
        names = [self._name(key) for key in self._keys]
        self.index = index_names(names, rule=rule_of(config), signature=file_signature(file))
        self.fingerprint = self.index.fingerprint

    @staticmethod
    def _name(key: bytes) -> str:
        return key.decode("utf-8", "backslashreplace")

    def id_at(self, place: Place) -> str:
        """The key."""
        return self._name(self._keys[place.offset])

    def read(self, places: Sequence[Place]) -> Record:
        """The record of the one key; RowError where its value is not valid."""
        (place,) = places
        key = self._keys[place.offset]
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise RowError("no value of this key")
        if value[:4] == _ZIP:
            found = read_npz(value, _ARRAYS)
        else:
            found = read_msgpack(self._msgpack, value)
        for name in _ARRAYS:
            if name not in found or found[name].ndim != 2:
                shape = f"shape {found[name].shape}" if name in found else "none in it"
                raise RowError(f"{name}: {shape}, expected a row an object")
        probabilities = found["soft_labels"][:, 1:]
        if not probabilities.shape[1]:
            raise RowError("soft_labels: no classes but the background")
        # NaN stays one among the scores, and is refused with them.
        labels = probabilities.argmax(1)
        return Record(
            id=self._name(key),
            boxes=_corners(found["norm_bb"]),
            are_shares=True,
            features=found["features"],
            labels=labels,
            scores=probabilities[np.arange(len(labels)), labels],
            probabilities=probabilities,
        )


def find_package(name: str) -> Any:
    """A package that only this format needs; FeaturesError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise FeaturesError(
            f"format is 'uniter-lmdb', which takes the package {name}, and that cannot be imported "
            f"({error}); install the extra: pip install 'boxless[features]'"
        ) from None


def _open(lmdb: Any, folder: Path) -> Any:
    """The LMDB, read only, without a lock file, which may be on a disk that cannot be written."""
    try:
        environment = lmdb.open(
            str(folder), readonly=True, create=False, lock=False, readahead=False
        )
        # Beyond the end of a file that was cut short, the memory map would kill the process.
        last_byte = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise FeaturesError(f"path is {str(folder)!r}: no LMDB ({error})") from None
    if (size := (folder / DATA).stat().st_size) < last_byte:
        environment.close()
        raise FeaturesError(
            f"path is {str(folder)!r}: {DATA} has {size} bytes, expected {last_byte}: cut short; "
            "copy it again"
        )
    return environment


def read_msgpack(msgpack: Any, data: bytes) -> dict[str, np.ndarray]:
    """{name: array} of a msgpack with arrays as msgpack-numpy spells them.

    An array is a map of nd, type (numpy's dtype in its string form), shape and data, keys being
    text or bytes by its version. Its own decoder unpickles arrays of objects; here they raise
    RowError, as all but numbers do.
    """
    try:
        content = msgpack.unpackb(data, raw=True, strict_map_key=False)
    except Exception as error:  # msgpack has many of its own, and ValueError
        words = (str(error).splitlines() or ["no message"])[0][:80]
        raise RowError(f"neither .npz nor msgpack ({type(error).__name__}: {words})") from None
    if not isinstance(content, dict):
        raise RowError(f"msgpack: a {type(content).__name__}, expected a map of arrays")
    found = {}
    for name in _ARRAYS:
        packed = content.get(name.encode())
        if packed is not None:
            found[name] = _array(packed, name)
    return found


def _array(packed: Any, name: str) -> np.ndarray:
    if not isinstance(packed, dict) or packed.get(b"nd") is not True:
        raise RowError(f"{name}: {type(packed).__name__}, expected an array of msgpack-numpy")
    kind, shape, data = packed.get(b"type"), packed.get(b"shape"), packed.get(b"data")
    if not (isinstance(kind, bytes) and isinstance(shape, list) and isinstance(data, bytes)):
        raise RowError(f"{name}: type, shape or data is missing or of another kind")
    try:
        dtype = np.dtype(kind.decode("ascii"))
    except (TypeError, ValueError, SyntaxError):
        raise RowError(f"{name}: dtype {kind!r:.40}, expected numbers") from None
    return array_of(data, dtype, tuple(shape), name)


def _corners(places: np.ndarray) -> np.ndarray:
    """[N, 4] x0, y0, x1, y1 of norm_bb, whose fifth and sixth have to be the sides that they
    span."""
    if places.shape[1] not in (6, 7):
        raise RowError(f"norm_bb: {places.shape[1]} values a box, expected 6 or 7")
    boxes = places.astype(np.float32)
    sides = boxes[:, 2:4] - boxes[:, :2]
    if not (np.abs(sides - boxes[:, 4:6]) <= _SIDE_TOLERANCE).all():
        raise RowError("norm_bb: width and height are not those of x0, y0, x1, y1 before them")
    return boxes[:, :4]
