"""The nouns that travel between the rooms: classes, normalisation, windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import BundleError, ShapeError

Task: TypeAlias = Literal["binary", "multiclass", "multilabel"]
Role: TypeAlias = Literal["class", "background"]
Orientation: TypeAlias = Literal["upright", "free"]

Image: TypeAlias = NDArray[np.float32]
"""`(C, H, W)` float32."""
Labels: TypeAlias = NDArray[np.int64]
"""`(H, W)` class indexes, or `(K, H, W)` zeros and ones for a multi-label task."""
Valid: TypeAlias = NDArray[np.bool_]
"""`(H, W)`: True where a pixel counts."""

COLOR_FLAG = 1 << 24
"""Added to 0xRRGGBB where a mask stores colours, so that no colour looks like a small integer."""

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

# Okabe and Ito's colours for people of every colour vision ("Color Universal Design", 2008), after
# black for the background; classes past the eighth take turns through hues.
_PALETTE = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def default_color(index: int) -> tuple[int, int, int]:
    """Return a colour for the class with this index, `(red, green, blue)` in [0, 255]."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * 0.618033988749895) % 1.0  # the golden ratio spreads hues evenly
    wheel = np.abs(((hue + np.array([0.0, 2 / 3, 1 / 3])) % 1.0) * 6.0 - 3.0) - 1.0
    red, green, blue = ((0.15 + 0.75 * np.clip(wheel, 0, 1)) * 255).astype(int).tolist()
    return red, green, blue


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes:
        name: What people call it.
        value: What a written mask holds where this class is, in [0, 255].
        color: `(red, green, blue)`, each in [0, 255].
        role: `background` for what is none of the named things.
        raw: The numbers that stand for it in masks that are read (255 and 65535 may both mean 1).
            A number from `COLOR_FLAG` up is a colour.
    """

    name: str
    value: int
    color: tuple[int, int, int]
    role: Role = "class"
    raw: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "color": list(self.color),
            "role": self.role,
            "raw": list(self.raw),
        }


@dataclass(frozen=True)
class Classes:
    """The class table: what each index, mask value and model output means.

    Attributes:
        infos: The classes in the order of their indexes. A multi-label task has no background.
        task: `binary` (two classes, one sigmoid output), `multiclass` (softmax) or `multilabel`
            (one sigmoid output for each class).
        ignored: Mask numbers that mean "not labelled": such pixels count nowhere.
    """

    infos: tuple[ClassInfo, ...]
    task: Task
    ignored: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[ClassInfo]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    @property
    def n_outputs(self) -> int:
        """How many logits a pixel has."""
        return 1 if self.task == "binary" else len(self.infos)

    @property
    def labels(self) -> tuple[ClassInfo, ...]:
        """The classes that have a probability of their own to be thresholded."""
        return self.infos[1:] if self.task == "binary" else self.infos

    def encode(self, raw: NDArray[Any]) -> tuple[Labels, Valid, dict[int, int]]:
        """Turn what a mask file holds into class indexes.

        Args:
            raw: `(H, W)` integers as read from the file.

        Returns:
            `(H, W)` indexes (0 where not valid), `(H, W)` valid, and the numbers that the table
            does not know with their pixel counts (their pixels are not valid).
        """
        labels = np.full(raw.shape, -1, dtype=np.int64)
        for i, info in enumerate(self.infos):
            for number in info.raw:
                labels[raw == number] = i
        valid = labels >= 0
        found, counts = np.unique(raw[~valid], return_counts=True)
        unknown = {
            int(number): int(count)
            for number, count in zip(found, counts, strict=True)
            if int(number) not in self.ignored
        }
        labels[~valid] = 0
        return labels, valid, unknown

    def palette(self) -> bytes:
        """Return 256 RGB triples: the colour of each mask value, grey for the unused ones."""
        colors = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        for info in self.infos:
            colors[info.value] = info.color
        return colors.tobytes()

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "table": [info.to_json() for info in self.infos],
            "ignored": list(self.ignored),
        }

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> Classes:
        """Read the table back; raises `BundleError` where something is missing."""
        try:
            infos = tuple(
                ClassInfo(
                    name=str(row["name"]),
                    value=int(row["value"]),
                    color=(int(row["color"][0]), int(row["color"][1]), int(row["color"][2])),
                    role=row["role"],
                    raw=tuple(int(number) for number in row["raw"]),
                )
                for row in card["table"]
            )
            task: Task = card["task"]
            ignored = tuple(int(number) for number in card["ignored"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the class table cannot be read: {error!r}.") from error
        for info in infos:
            if info.role not in ("class", "background") or not 0 <= info.value <= 255:
                raise BundleError(
                    f"the class table gives {info.name!r} the role {info.role!r} and the value "
                    f"{info.value}."
                )
            if not all(0 <= channel <= 255 for channel in info.color):
                raise BundleError(f"the class table gives {info.name!r} no color of 3 bytes.")
        fits = len(infos) == 2 if task == "binary" else bool(infos)
        if task not in ("binary", "multiclass", "multilabel") or not fits:
            raise BundleError(f"the class table names the task {task!r} with {len(infos)} classes.")
        return cls(infos, task, ignored)


def same_everywhere(pixels: NDArray[Any], valid: Valid | None) -> bool:
    """Whether all bands of `(C, H, W)` are equal wherever the image has data."""
    same = (pixels == pixels[:1]).all(axis=0)
    return bool(same.all() if valid is None else same[valid].all())


@dataclass(frozen=True)
class Bands:
    """Which bands of a file the net sees, in which order.

    Attributes:
        names: What they are called.
        numbers: Their positions in a file, from 1; empty for `grey` and `rgb`.
        convert: Whether colours may be turned into grey and grey into colours: only when the user
            said so. Three equal bands always pass as grey.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    convert: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def select(self, pixels: NDArray[Any], valid: Valid | None = None) -> NDArray[Any]:
        """Return the bands of an image that the net sees.

        Args:
            pixels: `(C, H, W)` as read.
            valid: `(H, W)`: where three bands must be equal to pass as grey; None for everywhere.

        Raises:
            ShapeError: The image does not have these bands.
        """
        count = len(pixels)
        if self.numbers:
            if max(self.numbers) > count:
                raise ShapeError(f"band {max(self.numbers)} is wanted, the image has {count}.")
            return pixels[[number - 1 for number in self.numbers]]
        if self.names == ("grey",):
            if count == 1:
                return pixels
            if count == 3 and same_everywhere(pixels, valid):
                return pixels[:1]
            if count == 3 and self.convert:
                luma = np.tensordot(LUMA, pixels, axes=1)[None]
                return luma.astype(np.float32)
        elif count == 3:
            return pixels
        elif count == 1 and self.convert:
            return np.repeat(pixels, 3, axis=0)
        raise ShapeError(
            f"the bands {', '.join(self.names)} are wanted, the image has {count}"
            f"{' that differ' if count == 3 else ''}."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "numbers": list(self.numbers),
            "convert": self.convert,
        }

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> Bands:
        """Read them back; raises `BundleError` where something is missing."""
        try:
            names, numbers = tuple(map(str, card["names"])), tuple(map(int, card["numbers"]))
            if not names or len(numbers) not in (0, len(names)) or min(numbers, default=1) < 1:
                raise ValueError(f"{len(names)} names for the numbers {numbers}")
            return cls(names, numbers, bool(card["convert"]))
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the bands cannot be read: {error!r}.") from error


_STRIP = 64  # rows that are normalised together


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each band, measured on the training split.

    Attributes:
        mean: `(C,)` in the units of the files.
        std: `(C,)`, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self, image: NDArray[Any]) -> None:
        """Raise `ShapeError` if an image `(C, H, W)` has another number of bands."""
        if image.shape[0] != len(self.mean):
            raise ShapeError(
                f"the normalisation knows {len(self.mean)} bands, the image has {image.shape[0]}."
            )

    def apply(self, image: NDArray[Any]) -> Image:
        """Return `(image - mean) / std` as float32.

        Args:
            image: `(C, H, W)` of any number type.

        Raises:
            ShapeError: The number of bands differs.
        """
        self.check(image)
        mean = np.asarray(self.mean, dtype=np.float64)[:, None, None]
        std = np.asarray(self.std, dtype=np.float64)[:, None, None]
        result = np.empty(image.shape, dtype=np.float32)
        with np.errstate(over="ignore"):  # pixels without data may hold anything
            for first in range(0, image.shape[1], _STRIP):  # in the processor's own memory
                strip = slice(first, first + _STRIP)
                result[:, strip] = (image[:, strip] - mean) / std
        return result

    def undo(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `images * std + mean` of `(..., C, H, W)` as float32."""
        mean = np.asarray(self.mean, dtype=np.float64)[:, None, None]
        std = np.asarray(self.std, dtype=np.float64)[:, None, None]
        return (images * std + mean).astype(np.float32)


def upwards(thresholds: Sequence[float]) -> NDArray[np.float32]:
    """Return the smallest float32 that is not below each threshold."""
    exact = np.asarray(thresholds, dtype=np.float64)
    near = exact.astype(np.float32)
    higher: NDArray[np.float32] = np.nextafter(near, np.float32(np.inf))
    return np.where(near < exact, higher, near)


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first row, first column, height, width."""

    row: int
    column: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return (
            slice(self.row, self.row + self.height),
            slice(self.column, self.column + self.width),
        )


_LARGEST_STRIDE = 1024  # no net is known that needs more; a card could ask for any memory


@dataclass(frozen=True)
class Geometry:
    """What cutting images into windows has to know of a net.

    Attributes:
        stride: Windows must start at multiples of it [px].
        margin: How far a pixel sees [px]; None where a layer looks at the whole window.
        border: By how much the result is smaller than the window on each side [px].
        remainder: What the sides of a window leave when divided by `stride` [px].
    """

    stride: int
    margin: int | None
    border: int = 0
    remainder: int = 0

    def window(self, side: int) -> int:
        """Return the smallest side of a window whose result has at least `side` pixels."""
        least = side + 2 * self.border - self.remainder
        return -(-least // self.stride) * self.stride + self.remainder

    def largest(self, most: int) -> int:
        """Return the largest side of a window that is no longer than `most`; 0 if there is none."""
        side = (most - self.remainder) // self.stride * self.stride + self.remainder
        return side if side >= self.window(1) else 0

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> Geometry:
        """Read it back; raises `BundleError` where something is missing or out of its range."""
        try:
            margin = card["margin"]
            found = cls(
                int(card["stride"]),
                None if margin is None else int(margin),
                int(card["border"]),
                int(card["remainder"]),
            )
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the geometry cannot be read: {error!r}.") from error
        if max(found.stride, found.border) > _LARGEST_STRIDE:
            raise BundleError(f"the card holds a stride or border above {_LARGEST_STRIDE} px.")
        if found.stride < 1 or min(found.margin or 0, found.border, found.remainder) < 0:
            raise BundleError("the card holds a stride, margin or border out of its range.")
        if found.remainder >= found.stride:
            raise BundleError("the card holds a remainder that is not below its stride.")
        return found
