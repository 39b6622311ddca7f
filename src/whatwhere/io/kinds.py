"""What a file is, by its first bytes."""

from __future__ import annotations

_KINDS = (
    ((b"\x89PNG",), "PNG"),
    ((b"\xff\xd8\xff",), "JPEG"),
    ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "TIFF"),
    ((b"BM",), "BMP"),
)
_ENDINGS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".bmp": "BMP", ".webp": "WebP"},
}


def kind_of(head: bytes) -> str:
    """Return what an image file that begins so is; empty for what is none.

    Args:
        head: At least 12 bytes.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((kind for starts, kind in _KINDS if head.startswith(starts)), "")


def kind_named(ending: str) -> str:
    """Return what a file with this ending says that it is; empty for other endings."""
    return _ENDINGS.get(ending.lower(), "")
