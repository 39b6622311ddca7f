"""How settings are written: as one word each, the same on the command line and in TOML."""

from __future__ import annotations

import math
from typing import Any

from whatwhere.errors import UsageError

LOSSES = ("cross_entropy", "dice", "focal", "tversky", "lovasz", "unet2015")
"""The losses that may be summed."""


def parse_size(text: str) -> tuple[int, int] | None:
    """Read `128` or `128x96` as (height, width); None for an empty text."""
    if not text:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"resize must be like 128 or 128x96 (height x width), not {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_split(text: str) -> tuple[float, float, float]:
    """Read `70/15/15` as shares of training, validation and test that sum to 1."""
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise UsageError(f"split must be like 70/15/15, not {text!r}")
    train, val, test = (part / sum(parts) for part in parts)
    if train == 0 or val == 0:
        raise UsageError(f"split needs pairs to train on and to validate on, not {text!r}")
    return train, val, test


def parse_bands(text: str) -> dict[str, int] | str:
    """Read `auto`, `grey`, `rgb`, band numbers from 1 as `4,3,2` or `red=1,nir=4`, or names.

    Returns:
        One of the three words, or the number of each band by its name, in the order given: 0 where
        the file has to say it. A band without a name is called `band 4`.
    """
    if text in ("auto", "grey", "rgb"):
        return text
    found: dict[str, int] = {}
    for part in text.split(","):
        left, equals, number = (piece.strip() for piece in part.rpartition("="))
        by_name = not equals and number[:1].isalpha()
        name = (left if equals else number if by_name else f"band {number}").lower()
        number = "0" if by_name else number
        if not name or name in found or not number.isdecimal() or int(number) < 1 - by_name:
            raise UsageError(
                "bands must be auto, grey, rgb or numbers from 1 like 4,3,2 or red=1,nir=4, "
                f"not {text!r}"
            )
        found[name] = int(number)
    return found


def parse_channels(text: str) -> tuple[int, ...]:
    """Read `256,128,64` as numbers of channels; empty for an empty text."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"decoder_channels must be like 256,128,64,32,16, not {text!r}")
    return tuple(int(part) for part in parts)


def parse_arguments(text: str) -> dict[str, Any]:
    """Read `drop_path_rate=0.1,output_stride=16`: numbers, true, false, or words."""
    found: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier() or not value or name in found:
            raise UsageError(f"backbone_args must be like drop_path_rate=0.1, not {text!r}")
        found[name] = _plain(value)
    return found


def parse_loss(text: str) -> dict[str, float]:
    """Read `dice+0.5*focal` as the weight of each named loss.

    Raises:
        UsageError: A loss is not known or named twice, a weight is not above 0.
    """
    found: dict[str, float] = {}
    for part in text.split("+"):
        number, star, name = (piece.strip() for piece in part.rpartition("*"))
        try:
            weight = float(number) if star else 1.0
        except ValueError:
            weight = -1.0
        if name not in LOSSES or name in found or not 0 < weight < math.inf:
            raise UsageError(
                f"loss must be a sum of {', '.join(LOSSES)}, each once, as `dice+0.5*focal`, "
                f"not {text!r}"
            )
        found[name] = weight
    return found


def parse_class_weights(text: str) -> tuple[float, ...] | str:
    """Read `balanced`, or numbers above 0 such as `1,5,2`; empty for an empty text."""
    if text in ("", "balanced"):
        return text
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = (-1.0,)
    if not all(0 < weight < math.inf for weight in weights):
        raise UsageError(
            f"class_weights must be `balanced` or numbers above 0 like 1,5,2, not {text!r}"
        )
    return weights


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
