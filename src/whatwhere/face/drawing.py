"""Pictures of a notebook, as figures of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import UsageError
from whatwhere.predict.images import to_display
from whatwhere.types import Classes, Labels, Valid

_TRAIN, _VALID = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Panel:
    """An image with classes over it.

    Attributes:
        title: What stands above it.
        image: `(C, H, W)` of any number type.
        labels: `(H, W)` class indexes, or `(K, H, W)` zeros and ones.
        valid: `(H, W)`: where not, no class is drawn.
    """

    title: str
    image: NDArray[Any]
    labels: Labels
    valid: Valid


def draw_panels(
    panels: Sequence[Panel],
    classes: Classes,
    *,
    columns: int,
    side: float,
    alpha: float,
    rgb: Sequence[int] = (),
) -> Any:
    """Draw images with the colours of their classes, and what the colours mean.

    Args:
        panels: Row by row.
        classes: The class table; its background is not drawn.
        columns: Panels beside each other.
        side: Of a panel [inches].
        alpha: How much the colours cover, in [0, 1].
        rgb: Which of the images' bands are shown as red, green and blue, from 0; the first ones
            where it is empty.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(side * columns, side * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in axes:
        place.set_axis_off()
    for place, panel in zip(axes, panels, strict=False):
        bands = panel.image[list(rgb)] if rgb else panel.image
        place.imshow(to_display(bands).astype(np.uint8))
        place.imshow(_colours(panel, classes, alpha))
        place.set_title(panel.title, fontsize=10)
    keys = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*info.color), label=info.name)
        for info in classes
        if info.role != "background"
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6), frameon=False)
    return figure


def _colours(panel: Panel, classes: Classes, alpha: float) -> NDArray[np.float64]:
    """Return `(H, W, 4)` in [0, 1]: nothing where there is background, or nothing counts."""
    layer = np.zeros((*panel.valid.shape, 4))
    for i, info in enumerate(classes):
        if info.role == "background":
            continue
        there = panel.labels[i] == 1 if panel.labels.ndim == 3 else panel.labels == i
        layer[there & panel.valid] = (*(c / 255 for c in info.color), alpha)
    return layer


def draw_losses(log: Sequence[Mapping[str, float]]) -> Any:
    """Draw training and validation loss by epoch; returns a figure of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    epochs = range(1, len(log) + 1)
    axes.plot(epochs, [row["train_loss"] for row in log], "o-", color=_TRAIN, label="training")
    axes.plot(epochs, [row["val_loss"] for row in log], "o-", color=_VALID, label="validation")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def bands_shown(wanted: Sequence[int | str] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the places of the bands to show, from 0.

    Args:
        wanted: Three names, or places from 0; None takes red, green and blue where they are named,
            and nothing else.
        names: Of the bands that the net sees.

    Raises:
        UsageError: There are not three, or one is not there.
    """
    if wanted is None:
        colours = ("red", "green", "blue")
        return tuple(names.index(c) for c in colours) if set(colours) <= set(names) else ()
    known: dict[int | str, int] = {name: i for i, name in enumerate(names)}
    known |= {i: i for i in range(len(names))}
    found = [known.get(one.lower() if isinstance(one, str) else one) for one in wanted]
    places = tuple(place for place in found if place is not None)
    if len(places) != 3 or len(found) != 3:
        raise UsageError(
            f"rgb_bands must be three of {', '.join(names)}, or three numbers from 0 to "
            f"{len(names) - 1}, not {list(wanted)!r}."
        )
    return places
