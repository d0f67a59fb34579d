"""Seconds and bytes as people read them."""

from __future__ import annotations


def seconds_in_words(seconds: float) -> str:
    """``8.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def bytes_in_words(num_bytes: float) -> str:
    """``1.5 GB``: powers of 1000, as disks and links are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} PB"
