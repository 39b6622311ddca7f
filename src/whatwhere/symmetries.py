"""The symmetries of a square, in which a net may be shown the same pixels."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from whatwhere.types import Orientation

Symmetry = tuple[bool, bool, bool]
"""Turn upside down; mirror left to right; then swap rows and columns."""

UPRIGHT: tuple[Symmetry, ...] = ((False, False, False), (False, True, False))
FREE: tuple[Symmetry, ...] = tuple(
    (down, across, swap)
    for swap in (False, True)
    for down in (False, True)
    for across in (False, True)
)


def symmetries_of(orientation: Orientation | str, *, square: bool = True) -> tuple[Symmetry, ...]:
    """Return those that a net saw in training, that of doing nothing first.

    Args:
        orientation: Of its card; `free` for images seen from above.
        square: Whether rows and columns may be swapped.
    """
    if orientation != "free":
        return UPRIGHT
    return FREE if square else tuple(one for one in FREE if not one[2])


def turn(values: NDArray[Any], symmetry: Symmetry) -> NDArray[Any]:
    """Show `(…, H, W)` in a symmetry of the square: a view."""
    down, across, swap = symmetry
    values = values[..., :: -1 if down else 1, :: -1 if across else 1]
    return values.swapaxes(-1, -2) if swap else values


def turn_back(values: NDArray[Any], symmetry: Symmetry) -> NDArray[Any]:
    """Turn `(…, H, W)` back: a view."""
    down, across, swap = symmetry
    values = values.swapaxes(-1, -2) if swap else values
    return values[..., :: -1 if down else 1, :: -1 if across else 1]
