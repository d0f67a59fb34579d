"""Scans the headers of an untrusted tar: the files in it, and where it is broken.

Python's tarfile takes a destroyed header and a tar cut between two members for the end, and says
nothing; here every end that is not the end mark is an error that names the byte.

Layout: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; the long names of GNU
tar (type L) and its binary sizes as in its manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharding.format.compression import compression_of
from sharding.format.likely_cause import is_web_page
from sharding.format.schema import ShardError

BLOCK_BYTES = 512
ZEROS = bytes(BLOCK_BYTES)
# A shard with more headers than this is refused: its manifest alone would take 200 MB of memory.
MAX_MEMBERS = 400_000
MAX_NAME_BYTES = 1024
MAX_PAX_BYTES = 1 << 20
# GNU tar fills up to a record, 10 KiB unless asked otherwise.
MAX_END_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
APART = (
    "the members of a key do not follow each other in the tar; tar --sort=name puts them side by "
    "side"
)
FIRST_DOT = (
    "a key ends at the first dot of its name (webdataset's rule); give the files names without "
    "dots before the extension"
)

BAD_NAME = "a member whose name is refused"
"""The key of the note on one, in the manifests of the tars of others; its reason has the name."""

_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")
# Headers that say something of the next one, and the most bytes they may take.
EXTENDED_TYPES = {b"L": MAX_NAME_BYTES, b"x": MAX_PAX_BYTES, b"g": MAX_PAX_BYTES}
SERVED_TYPES = {b"0", b"\0", b"7", b"5", *EXTENDED_TYPES}  # 7: a contiguous file; 5: a folder
NO_FILE_TYPES = (b"1", b"2", b"3", b"4", b"6")  # links, devices and fifos
LONG_LINK = b"K"  # the target of the link that follows
REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"K": "a link with a long target",
    b"S": "a sparse file",
    b"M": "a part of a file in several volumes",
}


_EXPECTED_FILES = "regular files and folders only"
_WEB_PAGE = ("a web page, as servers send in place of a file", "a tar; download it again")
_NOT_SPARSE = "; pack the files again, without tar's --sparse (-S)"


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its name, and where its bytes are (offset, num_bytes)."""

    name: str
    offset: int
    num_bytes: int

    @property
    def stem(self) -> str:
        """What names the sample: folders and file name up to the file name's first dot.

        webdataset's rule; "./a/b.seg.PNG" has stem "a/b" and extension "seg.png". Both are empty
        where the file name has no dot or begins with one: webdataset skips such a member.
        """
        return self._parts()[0]

    @property
    def extension(self) -> str:
        """What follows the file name's first dot, in lower case; see stem."""
        return self._parts()[1]

    @property
    def key(self) -> str:
        """The sample's key in a manifest: the stem with "_" for "/", which no key may hold.

        So two stems may come to one key ("a/b" and "a_b"); then the second is a duplicate.
        """
        return self.stem.replace("/", "_")

    def _parts(self) -> tuple[str, str]:
        folder, slash, name = self.name.removeprefix("./").rpartition("/")
        stem, dot, extension = name.partition(".")
        return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else ("", "")


@dataclass(frozen=True)
class _Header:
    """What one header block says: type, name and size of what follows it."""

    type: bytes
    name: str
    num_bytes: int


def scan(
    read: Callable[[int, int], bytes],
    num_bytes: int,
    *,
    start: int = 0,
    on_no_file: Callable[[str, str], None] | None = None,
    on_bad_name: Callable[[str], None] | None = None,
) -> Iterator[Member]:
    """The regular files of a tar of `num_bytes`, in their order, from the header at `start` on.

    read: (offset, length) -> exactly so many bytes; it is called for headers alone, by growing
    offsets, so one that reads ahead does well. Folders are left out. Memory does not grow.

    on_no_file: takes name and kind ("a hard link") of each link, device and fifo, which is then
    passed over, as stock webdataset does; without it they are errors. on_bad_name: takes what is
    wrong with each name that is refused, whose member is then passed over; without it such a name
    is an error.

    Raises ShardError naming the byte, after the members before it: for a tar that is cut or has a
    damaged header, for anything that is neither file nor folder (links, devices, sparse files),
    for absolute and parent paths, names that cannot be printed, sizes beyond the file, two names
    for one member, data behind the end mark, and more than MAX_MEMBERS headers.
    """
    position, before, long_name = start, "the beginning of the tar", ""
    for _ in range(MAX_MEMBERS + 1):
        block = _block(read, position, num_bytes, before)
        if block == ZEROS:
            return _check_end(read, position, num_bytes)
        header = _parse(block, position, before, pass_over=on_no_file is not None)
        if header.type in NO_FILE_TYPES and on_no_file is not None:
            # The size of a link is its target's; nothing follows the header.
            on_no_file(long_name or header.name, REFUSED_TYPES[header.type])
            long_name, before = "", repr(header.name)
            position += BLOCK_BYTES
            continue
        _check_size(header, position, num_bytes)
        data = position + BLOCK_BYTES
        if header.type == LONG_LINK:
            pass
        elif header.type in EXTENDED_TYPES:
            name = _given_name(header, read(data, header.num_bytes), position)
            if name and long_name:
                raise _error(position, f"names {long_name!r} and {name!r}", "one for a member")
            long_name = name or long_name
        else:
            name, long_name = long_name or header.name, ""
            fault = _name_fault(name)
            if fault and on_bad_name is None:
                raise _error(position, *fault)
            if fault and on_bad_name is not None:
                on_bad_name(f"got {fault[0]}, expected {fault[1]}")
            elif header.type != b"5" and not name.endswith("/"):
                yield Member(name, data, header.num_bytes)
            elif header.num_bytes:
                raise _error(position, f"a folder {name!r} with data", "one without")
            before = repr(name)
        position = data + header.num_bytes + -header.num_bytes % BLOCK_BYTES
    raise _error(position, f"more than {MAX_MEMBERS} members", "fewer; split the tar into several")


def printable_name(name: str) -> str:
    """A name out of a header that was not checked, as a text that can be printed."""
    return name if name.isprintable() else repr(name)


def _error(position: int, got: str, expected: str) -> ShardError:
    return ShardError(f"byte {position}: got {got}, expected {expected}")


def _block(read: Callable[[int, int], bytes], position: int, num_bytes: int, before: str) -> bytes:
    """The header block at `position`; ShardError where the tar ends before its end mark."""
    if not num_bytes:
        raise _error(
            0,
            f"the end of the file after {before}",
            "a tar: the file is empty; copy or download it again",
        )
    if position >= num_bytes:
        raise _error(
            num_bytes,
            f"the end of the file after {before}",
            "another member or the end mark of zeros: the tar is cut between two members",
        )
    if position + BLOCK_BYTES > num_bytes:
        if position == 0 and is_web_page(read(0, num_bytes)):
            raise _error(0, *_WEB_PAGE)
        raise _error(
            num_bytes,
            f"the end of the file in the header at byte {position}, after {before}",
            "all of the header: the tar is cut",
        )
    return read(position, BLOCK_BYTES)


def _parse(block: bytes, position: int, before: str, *, pass_over: bool) -> _Header:
    """What a header block says; ShardError unless its checksum holds and its type is served."""
    if position == 0 and (kind := compression_of(block)):
        raise _error(
            0,
            f"a file compressed by {kind.name}",
            f"a plain tar: unpack it by {kind.unpack_command} first",
        )
    # The sum of all bytes, the checksum's own eight counted as spaces.
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        if position == 0 and is_web_page(block):
            raise _error(0, *_WEB_PAGE)
        raise _error(
            position,
            "no header (its checksum does not hold)",
            f"one after {before}: the tar is damaged there",
        )
    name = _text(block[:100])
    # GNU tar keeps times where POSIX has the front of a long path.
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    header_type = block[156:157]
    is_passed_over = pass_over and header_type in (*NO_FILE_TYPES, LONG_LINK)
    if header_type not in SERVED_TYPES and not is_passed_over:
        what = REFUSED_TYPES.get(header_type, f"a member of type {header_type!r}")
        fix = {b"S": _NOT_SPARSE, b"M": "; join the volumes by tar --multi-volume first"}
        raise _error(position, f"{what}, {name!r}", _EXPECTED_FILES + fix.get(header_type, ""))
    num_bytes = _number(block[124:136])
    if num_bytes is None:
        raise _error(position, f"{name!r} with size {block[124:136]!r}", "a number of bytes")
    return _Header(header_type, name, num_bytes)


def _number(field: bytes) -> int | None:
    """A number of a header, octal or GNU's binary; None if it is neither or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    octal = _OCTAL.fullmatch(field)
    return int(octal[1] or b"0", 8) if octal else None


def _text(field: bytes) -> str:
    """A name up to its zero byte; bytes that are no UTF-8 are shown as \\xNN."""
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _check_size(header: _Header, position: int, num_bytes: int) -> None:
    """ShardError unless what follows the header lies inside the tar and is not absurdly long."""
    left = num_bytes - position - BLOCK_BYTES
    if header.num_bytes > left:
        raise _error(
            position,
            f"{header.name!r} of {header.num_bytes} bytes",
            f"at most the {left} left in the file: the tar is cut inside its data",
        )
    if header.num_bytes > EXTENDED_TYPES.get(header.type, left):
        raise _error(
            position,
            f"an extended header of {header.num_bytes} bytes",
            f"at most {EXTENDED_TYPES[header.type]}",
        )


def _given_name(header: _Header, data: bytes, position: int) -> str:
    """The name that an extended header gives the next member, "" if it gives none."""
    if header.type == b"L":
        return _text(data)
    fields = _pax_fields(data, position)
    for field in fields:
        if field == b"size" or field.startswith(b"GNU.sparse."):
            fix = _NOT_SPARSE if field.startswith(b"GNU.sparse.") else ""
            expected = f"plain files with their size in place{fix}"
            raise _error(position, f"pax field {field!r}", expected)
    if header.type == b"g" and b"path" in fields:
        raise _error(position, "one pax path for all members", "a name for each")
    return fields.get(b"path", b"").decode("utf-8", "backslashreplace")


def _pax_fields(data: bytes, position: int) -> dict[bytes, bytes]:
    """{keyword: value} of the records "LENGTH KEYWORD=VALUE\\n" of a pax header."""
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        length = _PAX_LENGTH.match(data, at)
        end = at + int(length[1]) if length else 0
        record = data[length.end() : end] if length else b""
        keyword, equals, value = record.removesuffix(b"\n").partition(b"=")
        if end > len(data) or not (record.endswith(b"\n") and keyword and equals):
            raise _error(position, "a damaged pax header", "records LENGTH KEYWORD=VALUE")
        if keyword in fields:
            raise _error(position, f"pax field {keyword!r} twice", "it once")
        fields[keyword] = value
        at = end
    return fields


def _name_fault(name: str) -> tuple[str, str] | None:
    """(what was got, what was expected) unless `name` is a path that stays below its folder and can
    be printed."""
    if not name or not name.isprintable():
        return f"name {name!r}", "characters that can be printed"
    if len(name) > MAX_NAME_BYTES:
        return f"a name of {len(name)} characters", f"at most {MAX_NAME_BYTES}"
    if name.startswith("/"):
        return f"absolute path {name!r}", "a relative one"
    if ".." in name.split("/"):
        return f"parent path {name!r}", "one without .."
    return None


def _check_end(read: Callable[[int, int], bytes], position: int, num_bytes: int) -> None:
    """ShardError unless zeros alone follow the end mark, and not absurdly many."""
    if num_bytes - position > MAX_END_BYTES:
        raise _error(
            position,
            f"the end mark {num_bytes - position} bytes before the end of the file",
            f"at most {MAX_END_BYTES} zeros there",
        )
    for offset in range(position, num_bytes, PIECE_BYTES):
        piece = read(offset, min(PIECE_BYTES, num_bytes - offset))
        if rest := piece.lstrip(b"\0"):
            raise _error(
                offset + len(piece) - len(rest),
                f"data behind the end mark at byte {position}",
                "nothing but zeros there; tars that were joined by cat are parted by "
                "tar --extract --ignore-zeros, to be packed again",
            )
