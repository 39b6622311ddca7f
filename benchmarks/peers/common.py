"""What a careful user of any library writes beside it: reading, cutting, thresholds, masks.

No code of whatwhere: these files run in the peers' environment.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

BEGAN = time.monotonic()
STRIDE = 32
CROP = 256  # of images that are larger [px]
RESIZED = 128  # of images that are smaller [px]
IGNORED = 255  # the number of pixels that do not count, for losses


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        data: Folder with `train`, `val` and `test`.
        out: Where masks of the test images go.
        work: For whatever a system keeps.
        seconds: Wall time, from the start of the process.
        seed: Of the training.
        weights: Of the backbone; empty where it begins with none.
        net: The backbone's name in timm.
        values: Numbers of the classes in the masks.
        ignored: Number of the pixels that do not count; None where all do.
        turns: Whether the images are seen from above.
    """

    data: str
    out: str
    work: str
    seconds: float
    seed: int
    weights: str
    net: str
    values: list[int]
    ignored: int | None
    turns: bool

    @property
    def binary(self) -> bool:
        return len(self.values) == 2

    def left(self) -> float:
        """The seconds that are left."""
        return self.seconds - (time.monotonic() - BEGAN)


def job() -> Job:
    """Read what is asked for from the command line."""
    found = Job(**json.loads(sys.argv[1]))
    np.random.seed(found.seed)
    torch.manual_seed(found.seed)
    return found


def pairs(given: Job, split: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return names, images `(H, W, 3)` and masks `(H, W)` with classes from 0 and 255 to ignore."""
    found = []
    for path in sorted((Path(given.data) / split / "images").glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        with Image.open(path.parent.parent / "masks" / path.name) as image:
            raw = np.asarray(image)
        mask = np.full(raw.shape, IGNORED, np.uint8)
        for i, value in enumerate(given.values):
            mask[raw == value] = i
        found.append((path.stem, pixels, mask))
    return found


def is_small(image: np.ndarray) -> bool:
    """Whether an image is stretched as a whole, in the place of being cut."""
    return max(image.shape[:2]) <= RESIZED


def stretched(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretch a small image, bilinear, and its mask, nearest."""
    size = (RESIZED, RESIZED)
    one = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    other = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    return np.asarray(one), np.asarray(other)


def cut(
    image: np.ndarray, mask: np.ndarray, chance: np.random.Generator, turns: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a chip at random, flip it, and turn it where the images are seen from above."""
    if is_small(image):
        image, mask = stretched(image, mask)
    else:
        row = chance.integers(image.shape[0] - CROP + 1)
        column = chance.integers(image.shape[1] - CROP + 1)
        image = image[row : row + CROP, column : column + CROP]
        mask = mask[row : row + CROP, column : column + CROP]
    if chance.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if turns:
        times = int(chance.integers(4))
        image, mask = np.rot90(image, times), np.rot90(mask, times)
    return image, mask


def epoch_of(images: list[Any]) -> list[int]:
    """Return which images an epoch cuts its chips from: as many of each as would cover it."""
    return [
        i
        for i, (_, image, _) in enumerate(images)
        for _ in range(1 if is_small(image) else max(1, image.shape[0] * image.shape[1] // CROP**2))
    ]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return `(3, H, W)`, by the mean and deviation that the weights were trained with, 0.5."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


@torch.no_grad()
def probabilities(net: Any, image: np.ndarray) -> np.ndarray:
    """Return the probability of each class `(K, H, W)` of a whole image."""
    height, width = image.shape[:2]
    small = is_small(image)
    x = to_tensor(stretched(image, image[..., 0])[0] if small else image)[None]
    below, right = -x.shape[2] % STRIDE, -x.shape[3] % STRIDE
    x = functional.pad(x, (0, right, 0, below), mode="reflect")
    logits = net(x)[..., : x.shape[2] - below, : x.shape[3] - right]
    if logits.shape[1] == 1:
        one = logits.sigmoid()
        found = torch.cat([1 - one, one], dim=1)
    else:
        found = logits.softmax(dim=1)
    if small:
        found = functional.interpolate(found, (height, width), mode="bilinear")
    return found[0].numpy()


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each class of a confusion matrix."""
    hits = np.diag(counts)
    return hits / np.maximum(counts.sum(0) + counts.sum(1) - hits, 1)


def validate(given: Job, net: Any, images: list[Any]) -> tuple[float, float]:
    """Return the mean IoU of the validation images, and the threshold with the best one."""
    net.eval()
    grid = np.linspace(0, 1, 201)
    counts = np.zeros((len(given.values),) * 2)
    above, of = np.zeros((2, len(grid))), np.zeros((2, len(grid)))
    for _, image, mask in images:
        found, known = probabilities(net, image), mask != IGNORED
        if given.binary:
            for true in (0, 1):
                values = np.sort(found[1][known & (mask == true)])
                above[true] += len(values) - np.searchsorted(values, grid)
                of[true] += len(values)
        else:
            said = found.argmax(0)
            pairs = mask[known].astype(int) * len(given.values) + said[known]
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    net.train()
    if not given.binary:
        return float(ious(counts).mean()), 0.5
    front = above[1] / np.maximum(of[1] + above[0], 1)
    back = (of[0] - above[0]) / np.maximum(of[0] + of[1] - above[1], 1)
    best = int(((front + back) / 2).argmax())
    return float((front + back)[best] / 2), float(grid[best])


def finish(given: Job, net: Any, threshold: float, about: dict[str, Any]) -> None:
    """Say that the training is over, and write the masks of the test images."""
    say_trained({**about, "threshold": threshold if given.binary else ""})
    net.eval()
    for name, image, _ in pairs(given, "test"):
        found = probabilities(net, image)
        said = (found[1] >= threshold).astype(np.uint8) if given.binary else found.argmax(0)
        keep(given, name, said)


def keep(given: Job, name: str, said: np.ndarray) -> None:
    """Write a mask of classes from 0 as the numbers of the data."""
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.array(given.values, np.uint8)[said]
    Image.fromarray(numbers).save(folder / f"{name}.png")


def say_trained(about: dict[str, Any]) -> None:
    """Tell who started this that the training is over."""
    print("trained", json.dumps(about), flush=True)


def release(name: str) -> str:
    """Return the name and version of a distribution."""
    return f"{name} {version(name)}"
