"""The pictures of a report, as PNG files."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.metrics import ThresholdHistogram, threshold_curve
from whatwhere.types import Classes

RIGHT, FALSE, MISSED = (0, 158, 115), (213, 94, 0), (86, 180, 233)
"""Colours of what was found, what was made up, and what was overlooked."""

_BLUE, _ORANGE, _GREY, _GREEN = "#0072b2", "#d55e00", "#999999", "#009e73"
_COLUMNS = ("image", "truth", "probability", "mask", "errors")


@dataclass(frozen=True)
class Example:
    """One image of the report.

    Attributes:
        title: What is written beside it.
        image: `(H, W, 3)` in [0, 255].
        truth: `(H, W)` class indexes.
        probability: `(H, W)` of the first label, or of the class chosen for a softmax.
        mask: `(H, W)` class indexes.
        valid: `(H, W)`.
    """

    title: str
    image: NDArray[Any]
    truth: NDArray[Any]
    probability: NDArray[Any]
    mask: NDArray[Any]
    valid: NDArray[np.bool_]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def draw_curves(log: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw losses and scores by epoch; returns a PNG.

    Args:
        log: The lines of the log: epoch, lr, train_loss, val_loss, val_mean_iou, best.
    """
    figure = _figure(10, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in log]
    marker = "o" if len(log) < 30 else None
    for name, color, label in (
        ("train_loss", _BLUE, "training"),
        ("val_loss", _ORANGE, "validation"),
    ):
        values = [row[name] for row in log]
        left.plot(epochs, values, color=color, label=label, marker=marker, markersize=3)
    usual = np.percentile([row["val_loss"] for row in log], 75)
    highest = max(row["train_loss"] for row in log)
    if max(row["val_loss"] for row in log) > 5 * max(usual, highest):
        left.set_yscale("log")  # batch norm makes the first validations of a run enormous
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    scored = [row for row in log if row["val_mean_iou"] is not None]
    right.plot(
        [row["epoch"] for row in scored],
        [row["val_mean_iou"] for row in scored],
        color=_GREEN,
        marker=marker,
        markersize=3,
    )
    right.set(xlabel="epoch", ylabel="mean IoU", title="Mean IoU of the validation chips at 0.5")
    right.set_ylim(0, 1)
    kept = [row["epoch"] for row in log if row["best"]][-1]
    drops = [b["epoch"] for a, b in itertools.pairwise(log) if b["lr"] < a["lr"]]
    if len(drops) > len(log) / 3:  # cosine and one cycle: a line at each epoch would tell nothing
        drops = []
    for axes in (left, right):
        axes.axvline(kept, color=_GREY, linestyle="--", linewidth=1, label=f"kept: epoch {kept}")
        for i, epoch in enumerate(drops):
            told = "learning rate lowered" if i == 0 else None
            axes.axvline(epoch - 0.5, color=_GREY, linestyle=":", linewidth=1, label=told)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    return _png(figure)


def draw_lr(lrs: Sequence[float], losses: Sequence[float], suggestion: float) -> bytes:
    """Draw the loss of a range test over the learning rate, the suggestion marked; a PNG.

    Args:
        lrs: The rates that were tried, from the lowest on, above 0.
        losses: The loss at each of them.
        suggestion: The rate to take.
    """
    figure = _figure(5.6, 3.4)
    axes = figure.subplots()
    axes.plot(lrs, losses, color=_BLUE)
    axes.axvline(
        suggestion, color=_ORANGE, linestyle="--", linewidth=1, label=f"--lr {suggestion:.2g}"
    )
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", title="Learning rates")
    top = 1.2 * max(loss for lr, loss in zip(lrs, losses, strict=True) if lr <= suggestion)
    if max(losses) > top:  # where it explodes is not what one wants to see
        axes.set_ylim(min(losses) - 0.05 * (top - min(losses)), top)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def draw_thresholds(
    histogram: ThresholdHistogram, classes: Classes, thresholds: Sequence[float]
) -> bytes:
    """Draw IoU, precision and recall over the threshold, a panel for each label; a PNG."""
    labels = classes.labels
    figure = _figure(5.2 * min(len(labels), 2), 3.6 * ((len(labels) + 1) // 2))
    panels = np.ravel(figure.subplots((len(labels) + 1) // 2, min(len(labels), 2)))
    counts = histogram.sum().confusion()[0]
    for i, (info, axes) in enumerate(zip(labels, panels, strict=False)):
        iou = threshold_curve(histogram, i, "iou")
        at = np.linspace(0, 1, len(iou))
        hits, false, missed = counts[i, :, 1, 1], counts[i, :, 0, 1], counts[i, :, 1, 0]
        precision = np.where(hits + false > 0, hits / np.maximum(hits + false, 1), np.nan)
        recall = np.where(hits + missed > 0, hits / np.maximum(hits + missed, 1), np.nan)
        axes.plot(at, precision, color=_BLUE, linewidth=1, label="precision")
        axes.plot(at, recall, color=_ORANGE, linewidth=1, label="recall")
        axes.plot(at, iou, color=_GREEN, linewidth=2, label="IoU")
        axes.axvline(0.5, color=_GREY, linestyle=":", linewidth=1, label="0.5")
        if thresholds[i] != 0.5:
            label = f"in the bundle: {thresholds[i]:g}"
            axes.axvline(thresholds[i], color="black", linestyle="--", linewidth=1, label=label)
        axes.set(xlabel="threshold", ylim=(0, 1.02), xlim=(0, 1), title=info.name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower center")
    for axes in panels[len(labels) :]:
        axes.set_axis_off()
    return _png(figure)


def draw_examples(examples: Sequence[Example], classes: Classes) -> bytes:
    """Draw image, truth, probability, mask and errors, a row for each example; a PNG."""
    figure = _figure(10, 2.05 * len(examples) + 0.6)
    panels = figure.subplots(len(examples), len(_COLUMNS), squeeze=False)
    colors = np.array([info.color for info in classes.infos], dtype=np.uint8)
    if classes.task == "multilabel":  # the first label alone
        colors = np.array([(0, 0, 0), classes.infos[0].color], dtype=np.uint8)
    for row, example in zip(panels, examples, strict=True):
        shown = (
            example.image.astype(np.uint8),
            _blank(colors[example.truth], example.valid),
            example.probability,
            _blank(colors[example.mask], example.valid),
            draw_errors(example),
        )
        for axes, picture, name in zip(row, shown, _COLUMNS, strict=True):
            if name == "probability":
                axes.imshow(picture, cmap="magma", vmin=0, vmax=1)
            else:
                axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(example.title, fontsize=8)
    for axes, name in zip(panels[0], _COLUMNS, strict=True):
        axes.set_title(name, fontsize=10)
    return _png(figure)


def draw_errors(example: Example) -> NDArray[np.uint8]:
    """Return `(H, W, 3)`: the dimmed image, with what is right, false and missed in colour."""
    picture = example.image.astype(np.float64) * 0.5
    truth, mask = example.truth > 0, example.mask > 0
    right = truth & (example.truth == example.mask)
    for where, color in (
        (right, RIGHT),
        (mask & ~right, FALSE),
        (truth & ~mask, MISSED),
    ):
        there = (where & example.valid)[..., None]
        picture = np.where(there, picture * 0.35 + np.array(color) * 0.65, picture)
    return picture.astype(np.uint8)


def _blank(colors: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(valid[..., None], colors, np.uint8(128))


def draw_areas(rows: Sequence[Mapping[str, Any]], classes: Classes) -> bytes:
    """Draw predicted over true share of each image, a colour for each class; a PNG."""
    figure = _figure(4.2, 3.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for info in classes:
        mine = [row for row in rows if row["class"] == info.name]
        if mine:
            axes.scatter(
                [row["true_share"] for row in mine],
                [row["predicted_share"] for row in mine],
                s=9,
                alpha=0.6,
                color=[c / 255 for c in info.color],
                label=info.name,
            )
    axes.set(xlabel="true share of an image", ylabel="predicted share", title="Areas")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)
