"""Tests of sharding.format.tar_scan: what Python's tarfile lists, and an error where tarfile says
nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.format import tar_scan as scanning
from sharding.format.schema import ShardError
from sharding.format.tar_scan import BLOCK_BYTES, Member, scan

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" * 30 + "x.jpg"  # 215 characters


def _header(name: str = "a.jpg", size: int = 0, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def _resum(data: bytes) -> bytes:
    """The first block's checksum made to fit."""
    blank = data[:148] + b" " * 8 + data[156:BLOCK_BYTES]
    return blank[:148] + b"%06o\0 " % sum(blank) + data[156:]


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    """`data` with other bytes in its first block, a header, and the checksum made to fit."""
    return _resum(data[:at] + value + data[at + len(value) :])


def _file(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % BLOCK_BYTES)


def _pax(records: bytes, type_: bytes = b"x") -> bytes:
    return _patched(_file("PaxHeader", records), 156, type_)


END = bytes(2 * BLOCK_BYTES)
SOUND = _file("a.jpg", b"1" * 700) + _file("a.json", b"{}") + END


def _scan(data: bytes) -> list[Member]:
    def read(offset: int, num_bytes: int) -> bytes:
        assert 0 <= offset and offset + num_bytes <= len(data)
        return data[offset : offset + num_bytes]

    return list(scan(read, len(data)))


@pytest.mark.parametrize("name", FORMATS)
def test_lists_what_tarfile_lists(name: str) -> None:
    """Oracle: tarfile, for the three formats it writes, with folders and long and odd names."""
    out = io.BytesIO()
    names = ["./a.jpg", "a.b/c.seg.png", "é 1.txt", "f" * 100, "p" * 120 + "/" + "q" * 90]
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[name], encoding="utf-8") as archive:
        folder = tarfile.TarInfo("./a.b/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number, member in enumerate(names + ([LONG * 2] if name != "ustar" else [])):
            info = tarfile.TarInfo(member)
            info.size = 300 * number
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), encoding="utf-8") as archive:
        expected = [(i.name, i.offset_data, i.size) for i in archive if i.isreg()]
    assert len(expected) >= 5
    assert [(m.name, m.offset, m.num_bytes) for m in _scan(out.getvalue())] == expected


def test_binary_sizes_and_the_old_format_are_read() -> None:
    """Oracle: GNU's manual: a size field of 0x80 and eleven bytes, big-endian; V7 has no magic."""
    block = _patched(_header("a.jpg", 700), 124, b"\x80" + (700).to_bytes(11, "big"))
    data = block + bytes(1024) + _file("a.json", b"{}") + END
    assert [m.num_bytes for m in _scan(data)] == [700, 2]
    old = _patched(_patched(_header("b.txt", 3), 156, b"\0"), 257, bytes(243))
    folder = _patched(_patched(_header("b/"), 156, b"\0"), 257, bytes(243))
    assert [m.name for m in _scan(folder + old + b"abc" + bytes(509) + END)] == ["b.txt"]


@pytest.mark.parametrize(
    "name, stem, extension, key",
    [
        ("a.jpg", "a", "jpg", "a"),
        ("./a/b.seg.PNG", "a/b", "seg.png", "a_b"),
        ("x.y/000.objects.npy", "x.y/000", "objects.npy", "x.y_000"),
        ("README", "", "", ""),
        (".hidden.jpg", "", "", ""),
        ("a/.b", "", "", ""),
        ("a.", "a", "", "a"),
    ],
)
def test_names_are_parted_as_webdataset_does(
    name: str, stem: str, extension: str, key: str
) -> None:
    """Oracle: the cases, and webdataset's base_plus_ext but for "./" and small letters.

    It also takes "a/.b" for a sample "a/", which has no name in its folder; not so here.
    """
    member = Member(name, 0, 0)
    assert (member.stem, member.extension, member.key) == (stem, extension, key)
    webdataset = pytest.importorskip("webdataset.tariterators")
    base, rest = webdataset.base_plus_ext(name)
    if name != "a/.b":
        assert ((base or "").removeprefix("./"), (rest or "").lower()) == (stem, extension)


def _cut(num_bytes: int) -> bytes:
    return SOUND[:num_bytes]


SECOND = 3 * BLOCK_BYTES  # where a.json's header stands
DAMAGES: dict[str, tuple[bytes, int, str]] = {
    # damage: (the tar, members seen before it, pattern of the error, which names the byte)
    "empty": (b"", 0, "byte 0: got the end of the file after .*: the file is empty; copy or"),
    "web page": (b"\n<!DOCTYPE html>" + bytes(600), 0, "byte 0: got a web page.*download it again"),
    "short web page": (b"<html></html>", 0, "byte 0: got a web page.*download it again"),
    "cut between members": (_cut(SECOND), 1, f"byte {SECOND}: .* after 'a.jpg', .* cut between"),
    "no end mark": (_cut(len(SOUND) - 1024), 2, "byte 2560: .* after 'a.json', .* cut between"),
    "cut in a header": (_cut(SECOND + 100), 1, "byte 1636: .* in the header at byte 1536"),
    "cut inside data": (
        _cut(BLOCK_BYTES + 99),
        0,
        "byte 0: got 'a.jpg' of 700 bytes, expected at most the 99 left",
    ),
    "cut in the padding": (_cut(BLOCK_BYTES + 701), 1, "byte 1213: .* after 'a.jpg'"),
    "header destroyed": (
        SOUND[:SECOND] + b"x" * 512 + SOUND[SECOND + 512 :],
        1,
        f"byte {SECOND}: got no header .* after 'a.jpg': the tar is damaged",
    ),
    "bit of a header": (SOUND[: SECOND + 3] + b"X" + SOUND[SECOND + 4 :], 1, "checksum"),
    "data behind the end": (SOUND + SOUND, 2, "byte 3584: got data .*--ignore-zeros"),
    "header zeroed": (
        SOUND[:SECOND] + bytes(512) + SOUND[SECOND + 512 :],
        1,
        "byte 2048: got data",
    ),
    "end mark without end": (SOUND + bytes(17 << 20), 2, "byte 2560: got the end mark"),
    "hard link": (_patched(_header(), 156, b"1") + END, 0, "byte 0: got a hard link, 'a.jpg'"),
    "symbolic link": (_patched(_header(), 156, b"2") + END, 0, "a symbolic link, 'a.jpg'"),
    "device": (_patched(_header(), 156, b"3") + END, 0, "a character device"),
    "fifo": (_patched(_header(), 156, b"6") + END, 0, "a fifo"),
    "old sparse": (
        _patched(_header(), 156, b"S") + END,
        0,
        "a sparse file, .*without tar's --sparse",
    ),
    "volume": (_patched(_header(), 156, b"M") + END, 0, "several volumes, .*--multi-volume"),
    "unknown type": (_patched(_header(), 156, b"D") + END, 0, "of type b'D'"),
    "absolute": (_header("/etc/a.jpg") + END, 0, "byte 0: got absolute path '/etc/a.jpg'"),
    "parent": (SOUND[:SECOND] + _header("a/../../b.jpg") + END, 1, "byte 1536: got parent path"),
    "newline": (_header("a\nb.jpg") + END, 0, r"name 'a\\nb.jpg'"),
    "escape": (_header("a\x1b[2Jb.jpg") + END, 0, "printed"),
    "turned text": (_header("a\u202eb.jpg") + END, 0, "printed"),
    "no name": (_patched(_header("a"), 0, b"\0") + END, 0, "name ''"),
    "huge size": (_patched(_header(), 124, b"77777777777\0") + END, 0, "8589934591 bytes"),
    "huger size": (_patched(_header(), 124, b"\x80" + b"\xff" * 11) + END, 0, "left in the file"),
    "negative size": (_patched(_header(), 124, b"\xff" * 12) + END, 0, "with size"),
    "signed size": (_patched(_header(), 124, b"-0000000001\0") + END, 0, "with size"),
    "size in words": (_patched(_header(), 124, b"0x_many_0b\0\0") + END, 0, "with size"),
    "folder with data": (_patched(_file("a/", b"1"), 156, b"5") + END, 0, "a folder 'a/' with"),
    "pax size": (_pax(b"10 size=1\n") + SOUND, 0, "pax field b'size'"),
    "pax sparse": (_pax(b"22 GNU.sparse.major=1\n") + SOUND, 0, "GNU.sparse.*without tar's --sp"),
    "pax path for all": (_pax(b"10 path=b\n", b"g") + SOUND, 0, "for all members"),
    "pax twice": (_pax(b"10 path=b\n10 path=c\n") + SOUND, 0, "twice"),
    "two names": (_pax(b"10 path=b\n") * 2 + SOUND, 0, "names 'b' and 'b'"),
    "pax newline": (_pax(b"14 path=../b\n\n") + SOUND, 0, "name"),
    "pax parent": (_pax(b"13 path=../b\n") + SOUND, 0, "parent path '../b'"),
    "pax length": (_pax(b"99 path=b\n") + SOUND, 0, "damaged pax"),
    "pax length 0": (_pax(b"0 path=b\n") + SOUND, 0, "damaged pax"),
    "pax length short": (_pax(b"2 path=b\n") + SOUND, 0, "damaged pax"),
    "pax long": (_pax(b"x" * ((1 << 20) + 1)) + SOUND, 0, "an extended header of 1048577 bytes"),
    "long name too long": (_patched(_file("L", b"x" * 1025), 156, b"L") + SOUND, 0, "at most 1024"),
    "name of pax too long": (_pax(b"2009 path=" + b"x" * 1998 + b"\n") + SOUND, 0, "at most 1024"),
    "long link": (_patched(_file("K", b"x" * 200), 156, b"K") + SOUND, 0, "a link with a long"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_reported_with_its_byte(damage: str) -> None:
    """Oracle: the table; the members before the damage come first, and SOUND is sound."""
    assert [m.name for m in _scan(SOUND)] == ["a.jpg", "a.json"]
    data, num_before, pattern = DAMAGES[damage]
    found = []
    with pytest.raises(ShardError, match=pattern) as caught:
        for member in scan(lambda offset, size: data[offset : offset + size], len(data)):
            found.append(member)
    assert len(found) == num_before
    assert str(caught.value).startswith("byte ") and str(caught.value).isprintable()


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: three are allowed: a tar of three is read, of four refused."""
    monkeypatch.setattr(scanning, "MAX_MEMBERS", 3)
    assert len(_scan(_file("a.jpg", b"1") * 3 + END)) == 3
    with pytest.raises(ShardError, match="more than 3 members"):
        _scan(_file("a.jpg", b"1") * 4 + END)


def test_a_walk_can_begin_at_any_header() -> None:
    """Oracle: from the second header on, the second member is all there is."""
    members = scan(lambda offset, size: SOUND[offset : offset + size], len(SOUND), start=SECOND)
    assert [m.name for m in members] == ["a.json"]


def _flips(data: bytes) -> Callable[[list[tuple[int, int]]], bytes]:
    def flip(changes: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for at, value in changes:
            changed[at % len(data)] = value
        return bytes(changed)

    return flip


MIXED = _pax(b"10 path=b\n") + SOUND[:-1024] + _patched(_file("L", b"c.txt\0"), 156, b"L") + SOUND
CHANGE = st.tuples(st.integers(0, len(MIXED) - 1), st.integers(0, 255))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(CHANGE, max_size=4), st.booleans(), st.integers(0, len(MIXED)))
def test_any_change_scans_or_is_a_shard_error(
    changes: list[tuple[int, int]], resum: bool, end: int
) -> None:
    """Oracle: no other exception; members lie in the file, in order, without overlap."""
    data = _flips(MIXED)(changes)
    if resum:
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        data = b"".join(_resum(b) if b"ustar" in b else b for b in blocks)
    data = data[:end] if end % 3 == 0 else data
    at = 0
    try:
        for member in scan(lambda offset, size: data[offset : offset + size], len(data)):
            assert at < member.offset and member.offset + member.num_bytes <= len(data)
            at = member.offset + member.num_bytes
    except ShardError:
        pass
