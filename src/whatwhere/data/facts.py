"""What a look at one pair of a data set finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from whatwhere.io.image import State


@dataclass(frozen=True)
class Facts:
    """What one pair holds.

    Attributes:
        size: (height, width) [px].
        dtype: The image's number type.
        bands: How many bands the image has.
        grey: Whether three bands are equal everywhere.
        digest: Of the image's pixels, whatever file they came from.
        numbers: For each mask, how many pixels that count hold each number.
        kinds: What the image and its masks are, such as `PNG`; () where that was not looked at.
        states: Of these files, as `io.image.state_of` gives them; () where that was not looked at.
        absent: Pixels of the image without data: transparent ones, and floats that are not finite.
    """

    size: tuple[int, int]
    dtype: str
    bands: int
    grey: bool
    digest: str
    numbers: tuple[Counter[int], ...]
    kinds: tuple[str, ...] = field(default=(), kw_only=True)
    states: tuple[State | None, ...] = field(default=(), kw_only=True)
    absent: int = field(default=0, kw_only=True)
