"""Says why a file is not what its name promises, where its first and last bytes tell."""

from __future__ import annotations

from sharding.format.compression import compression_of


def likely_cause(data: bytes) -> str:
    """Why a file that should be JSON, or an array, is none, and what to do; begins with ": ".

    "" where the bytes do not tell.
    """
    if kind := compression_of(data):
        return f": it is compressed by {kind.name}; unpack it by {kind.unpack_command} first"
    text = data.strip()
    if not text:
        return ": the file is empty; copy or download it again"
    if is_web_page(text):
        return ": it is a web page, as servers send in place of a file; download it again"
    end = {b"{": b"}", b"[": b"]"}.get(text[:1])
    if end and not text.endswith(end):
        return ": it is cut short; copy or download it again"
    return ""


def is_web_page(data: bytes) -> bool:
    """Whether the bytes begin as HTML or XML do: a page for people, or a store's error."""
    return data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
