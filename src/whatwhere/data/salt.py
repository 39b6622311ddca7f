"""Made-up seismic sections with salt bodies, for the demonstration and for tests.

They imitate the pictures of the TGS salt identification challenge (101 x 101 grey pixels) without
copying anything from them. A section is built the way a seismic processor thinks of one:

1. a layered column of acoustic impedances, bent by dip, folds, faults and the rise of the salt;
2. a body of salt, of one high impedance and with an irregular smooth outline, cut into it;
3. the reflection coefficients of the lot, R = (Z2 - Z1) / (Z2 + Z1), for small contrasts half the
   step of ln Z (Yilmaz, Seismic Data Analysis, 2001, section 1.1), convolved along depth with a
   Ricker wavelet (Ricker, Geophysics 18, 1953). The top of the salt is thereby a strong bright
   reflection and its base a dark one, as the contrasts have it;
4. chaotic weak energy inside the salt, coherent and random noise, gain, contrast and clipping.

Brightness alone does not tell salt from sediment, texture and outline do; `best_threshold_iou`
measures the former.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from whatwhere.errors import ShapeError, UsageError

Floats = NDArray[np.float64]

SMALLEST = 32
"""Least number of rows and of columns: below, a wavelet does not fit."""

WITHOUT_SALT = 0.35
"""Share of the sections that have no salt."""

_MARGIN = 24
"""Rows computed above and below the section, so that the wavelet meets no edge."""

_NAMES = 2**40
_STRIDE = 0x9E3779B97F4A7C15 % _NAMES  # odd, so that multiples differ modulo a power of two


@dataclass(frozen=True)
class Section:
    """A seismic section and where its salt is.

    Attributes:
        name: Ten lower-case hexadecimal digits; no two indexes of a seed share one.
        image: Grey values, (rows, columns), 0 to 255, depth downwards.
        mask: True inside salt, (rows, columns).
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def make_section(seed: int, index: int, size: tuple[int, int] = (101, 101)) -> Section:
    """Make one section; the same arguments always give the same section.

    Args:
        seed: Which family of sections, 0 to 2**64 - 1.
        index: Which member of it, 0 to 2**64 - 1.
        size: Rows and columns in pixels, each at least 32. The wavelet and the layers are as many
            pixels thick whatever the size, salt, folds and faults grow with it.

    Raises:
        UsageError: The seed or the index is out of range.
        ShapeError: The size is too small.
    """
    for what, number in (("seed", seed), ("index", index)):
        if not 0 <= number < 2**64:
            raise UsageError(f"The {what} is {number}; choose one from 0 to 2**64 - 1.")
    rows, columns = size
    if min(rows, columns) < SMALLEST:
        raise ShapeError(f"A section of {rows}x{columns} is too small; take {SMALLEST} or more.")
    key = np.array([seed, index], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))

    depth, across = np.mgrid[-_MARGIN : rows + _MARGIN, 0:columns].astype(np.float64)
    salt = _salt(rng, depth / rows, across / columns)
    frequency = rng.uniform(0.07, 0.13)
    sediment = _layers(rng, _stratigraphic_depth(rng, depth, across, salt, size), frequency)
    trace = _reflections(rng, sediment, salt, frequency)
    inside = slice(_MARGIN, _MARGIN + rows)
    mask = np.ascontiguousarray(salt[inside])
    return Section(_name(seed, index), _picture(rng, trace[inside], frequency), mask)


def make_sections(n: int, seed: int = 0, size: tuple[int, int] = (101, 101)) -> Iterator[Section]:
    """Make sections 0 to n - 1 of a seed, one after another; see `make_section`.

    Raises:
        UsageError: The number is negative.
    """
    if n < 0:
        raise UsageError(f"{n} sections cannot be made; ask for 0 or more.")
    return (make_section(seed, index, size) for index in range(n))


def best_threshold_iou(
    images: Iterable[NDArray[np.uint8]], masks: Iterable[NDArray[np.bool_]]
) -> tuple[float, int, bool]:
    """Find the single grey value that tells salt from the rest best, over a whole set.

    Exact: all 257 thresholds in both directions are tried, on two histograms of 256 bins.

    Args:
        images: Grey pictures, each (rows, columns) of 0 to 255.
        masks: As many masks of the same shapes, True inside salt.

    Returns:
        The intersection over union of salt, counted over the pixels of the whole set, 0 to 1 (and
        1 where there is neither salt nor anything taken for it); the threshold t, 0 to 256; and
        whether salt is what is bright (grey >= t) rather than dark (grey < t).

    Raises:
        ShapeError: Images and masks differ in number or shape.
        UsageError: An image is not made of 8-bit grey values.
    """
    pictures, truths = list(images), list(masks)
    if len(pictures) != len(truths):
        raise ShapeError(f"{len(pictures)} images do not go with {len(truths)} masks.")
    salt, rest = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for image, mask in zip(pictures, truths, strict=True):
        if image.dtype != np.uint8:
            raise UsageError(f"An image is of {image.dtype}; convert it to uint8 grey values.")
        if image.shape != mask.shape:
            raise ShapeError(f"An image of {image.shape} does not go with a mask of {mask.shape}.")
        inside = mask.astype(bool)
        salt += np.bincount(image[inside], minlength=256)
        rest += np.bincount(image[~inside], minlength=256)
    below_salt = np.concatenate([[0], np.cumsum(salt)])
    below_rest = np.concatenate([[0], np.cumsum(rest)])
    hits = np.stack([below_salt, below_salt[-1] - below_salt])
    unions = below_salt[-1] + np.stack([below_rest, below_rest[-1] - below_rest])
    scores = np.where(unions == 0, 1.0, hits / np.maximum(unions, 1))
    bright, threshold = divmod(int(np.argmax(scores)), 257)
    return float(scores[bright, threshold]), threshold, bool(bright)


def ricker(frequency: float) -> Floats:
    """Return a Ricker wavelet, (1 - 2 a) exp(-a) with a = (pi f t)**2 (Ricker 1953).

    Args:
        frequency: Its peak frequency f in cycles per pixel, more than 0 and less than 0.5.

    Returns:
        An odd number of samples, one per pixel, with its peak of 1 in the middle.
    """
    half = int(np.ceil(1.3 / frequency))
    a = (np.pi * frequency * np.arange(-half, half + 1)) ** 2
    wavelet: Floats = (1 - 2 * a) * np.exp(-a)
    return wavelet


def _name(seed: int, index: int) -> str:
    """Return ten hexadecimal digits that look like chance and differ within a seed."""
    start = int.from_bytes(blake2b(str(seed).encode(), digest_size=5).digest(), "big")
    return f"{(start + index * _STRIDE) % _NAMES:010x}"


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Floats:
    """Return a smooth random field of a shape, about -1 to 1, through knots per axis."""
    coarse = rng.normal(0, 0.5, (knots,) * len(shape))
    field: Floats = ndimage.zoom(coarse, [length / knots for length in shape], order=3)
    return field


def _salt(rng: np.random.Generator, z: Floats, x: Floats) -> NDArray[np.bool_]:
    """Draw a salt body, or none, from depth and position as fractions of the section's size."""
    nothing: NDArray[np.bool_] = np.zeros(z.shape, dtype=bool)
    if rng.random() < WITHOUT_SALT:
        return nothing
    if rng.random() < 0.5:
        x = 1 - x
    z = z + 0.12 * _smooth(rng, z.shape, 5) + 0.025 * _smooth(rng, z.shape, 12)
    x = x + 0.10 * _smooth(rng, z.shape, 5) + 0.025 * _smooth(rng, z.shape, 12)
    kind = rng.choice(["dome", "wall", "tongue", "massif"], p=[0.45, 0.2, 0.2, 0.15])
    if kind == "dome":
        away = np.abs(x - rng.uniform(0.0, 0.7)) / rng.uniform(0.25, 0.55)
        body = z > rng.uniform(0.2, 0.6) + rng.uniform(0.3, 0.8) * away ** rng.uniform(1.4, 2.6)
    elif kind == "wall":
        axis = rng.uniform(0.0, 0.6) + rng.uniform(-0.35, 0.35) * (z - 0.5)
        width = rng.uniform(0.15, 0.3) * (1 + rng.uniform(-0.4, 0.6) * z)
        body = (np.abs(x - axis) < width) & (z > rng.choice([-1.0, rng.uniform(0.1, 0.35)]))
    elif kind == "tongue":
        thickness = np.sqrt(np.clip(1 - x / rng.uniform(0.6, 1.3), 0, None))
        middle = rng.uniform(0.25, 0.75) + rng.uniform(-0.3, 0.3) * x
        body = np.abs(z - middle) < rng.uniform(0.17, 0.3) * thickness
    else:
        body = z > rng.uniform(0.2, 0.45) - rng.uniform(0.2, 1.1) * x
    return body


def _stratigraphic_depth(
    rng: np.random.Generator,
    depth: Floats,
    across: Floats,
    salt: NDArray[np.bool_],
    size: tuple[int, int],
) -> Floats:
    """Return at which depth, in pixels, the layer of each pixel lay before it was deformed."""
    rows, columns = size
    x = across / columns
    layer = depth + rng.normal(0, 0.3) * (across - columns / 2) * rows / columns
    growth = 0.6 + 0.4 * depth / rows
    for waves in (rng.uniform(0.3, 0.9), rng.uniform(0.9, 1.8)):
        bend = rng.normal(0, 0.035 / waves) * rows
        layer = layer + bend * growth * np.sin(2 * np.pi * (waves * x + rng.random()))
    layer = layer + 0.008 * rows * _smooth(rng, layer.shape, 7)
    for _ in range(rng.integers(1, 4)):
        plane = rng.uniform(0.05, 0.95) + rng.uniform(-0.5, 0.5) * (depth / rows - 0.5)
        layer = layer + rng.normal(0, 0.05) * rows * (x > plane)
    if salt.any():
        reach = rng.uniform(0.12, 0.25) * rows
        distance = ndimage.distance_transform_edt(~salt)
        layer = layer + rng.uniform(0.4, 0.9) * reach * np.exp(-distance / reach)
    return layer


def _layers(rng: np.random.Generator, layer: Floats, frequency: float) -> Floats:
    """Return ln Z of the sediments, less its trend, for the stratigraphic depth of each pixel."""
    first, fine = float(layer.min()) - 2, 0.25
    total = float(layer.max()) + 2 - first
    mean = 0.42 / frequency
    thickness = rng.gamma(8.0, mean / 8, int(2 * total / mean) + 20)
    strength = 0.10 * rng.gamma(6.0, 1 / 6, thickness.size)
    impedance = strength * np.cumprod(rng.choice([-1.0, 1.0], thickness.size, p=[0.88, 0.12]))
    positions = np.arange(0, total, fine)
    bed = np.searchsorted(np.cumsum(thickness), positions).clip(max=thickness.size - 1)
    column = ndimage.gaussian_filter1d(impedance[bed], 0.5 / fine)
    values: Floats = np.interp(layer, first + positions, column)
    return values


def _reflections(
    rng: np.random.Generator, sediment: Floats, salt: NDArray[np.bool_], frequency: float
) -> Floats:
    """Return the seismic section in units of the standard deviation of its sediments."""
    wavelet = ricker(frequency)

    def convolved(impedance: Floats) -> Floats:
        steps = np.diff(impedance, axis=0, prepend=impedance[:1]) / 2
        result: Floats = ndimage.convolve1d(steps, wavelet, axis=0, mode="nearest")
        return result

    share: Floats = ndimage.gaussian_filter(salt.astype(np.float64), 0.7)
    scale = float(convolved(sediment).std())
    contrast = rng.uniform(0.3, 0.45)
    trace = convolved(sediment * (1 - share) + contrast * share) / scale
    blur = rng.uniform(0.25, 0.45) / frequency
    chaos: Floats = ndimage.gaussian_filter(rng.standard_normal(salt.shape), (blur, 0.8 * blur))
    chaos *= rng.uniform(0.15, 0.35) / chaos.std()
    return trace + share * chaos


def _picture(rng: np.random.Generator, trace: Floats, frequency: float) -> NDArray[np.uint8]:
    """Add noise to a section and turn it into grey values as an interpreter's screen does."""
    z, x = np.mgrid[0 : trace.shape[0], 0 : trace.shape[1]].astype(np.float64)
    angle, beat = rng.uniform(0.15, 0.85) * np.pi, rng.uniform(0.5, 1.2) * frequency
    phase = 2 * np.pi * (beat * (x * np.sin(angle) + z * np.cos(angle)) + rng.random())
    coherent = rng.uniform(0.0, 0.35) * np.sin(phase) * _smooth(rng, trace.shape, 4)
    noise = ndimage.gaussian_filter(rng.standard_normal(trace.shape), rng.uniform(0.5, 1.1))
    noise *= rng.uniform(0.03, 0.32) / noise.std()
    gain = np.exp(0.3 * _smooth(rng, trace.shape, 3))
    whole = gain * (trace + coherent + noise)
    mixed: Floats = ndimage.gaussian_filter1d(whole, rng.uniform(0.6, 1.5), axis=1)
    grey = rng.uniform(105, 150) + rng.uniform(24, 42) * mixed
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
