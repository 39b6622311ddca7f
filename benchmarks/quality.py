"""How soon the tutorial's best validation score is reached, and what its whole time is good for.

    python benchmarks/quality.py --minutes 12 --model tutorial
    python benchmarks/quality.py --minutes 4

The tutorial's own Keras code, on these pairs and this split (315 of 3,152 validate), came to an IoU
of 0.773 as the mean over the validation images, and 0.847 over all their pixels, at its best in 19
epochs of 2,837 images, threshold 0.5. How long that takes on a machine follows from its rate there:
the rows of `training.py --what tutorial`. `--times RATE` says it [images a second], and the row
tells which share of that time was used.

The data come from `WHATWHERE_DATA`, the weights of the backbone from `WHATWHERE_WEIGHTS`. Scores
are those of the validation images themselves, at their own size and a threshold of 0.5, as there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import minutes
import numpy as np
from rows import append

EPOCHS, IMAGES = 19, 2837  # of the tutorial's code until its best score


def main() -> None:
    """Train once, score once, keep a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--model", default="", help="default: what `--minutes` chooses")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=float, default=0.0, help="rate of Keras here [images/s]")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no row")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data, run, masks = (Path(place, name) for name in ("data", "run", "masks"))
        deal(Path(os.environ["WHATWHERE_DATA"], "tgs_salt"), data)
        environ = {**os.environ, **minutes.hub(Path(place, "hub"))}
        words = ["train", data, "-o", run, "--minutes", f"{asked.minutes:g}"]
        words += ["--seed", asked.seed, "--classes", "background,salt", "--orientation", "upright"]
        words += ["--model", asked.model] if asked.model else []
        began = time.monotonic()
        minutes.whatwhere(words, environ)
        seconds = time.monotonic() - began
        held = data / "val"
        words = ["predict", run, held / "images", "-o", masks, "--threshold", 0.5]
        minutes.whatwhere(words, environ)
        card = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))["card"]
        found = minutes.score(held / "masks", masks, "salt")
    theirs = EPOCHS * IMAGES / asked.times if asked.times else 0.0
    row = {
        "net": card["model"],
        "seed": asked.seed,
        "minutes": asked.minutes,
        "seconds": round(seconds, 1),
        "keras_images_s": asked.times or "",
        "share_of_keras": round(seconds / theirs, 3) if theirs else "",
        "val_iou_by_image": found["test_iou_last_class_by_image"],
        "val_iou_pixels": found["test_iou_last_class"],
        "val_accuracy": found["test_accuracy"],
    }
    if asked.dry_run:
        print(row)
    else:
        append("quality", **row)


def deal(source: Path, data: Path) -> None:
    """Deal the pairs out as the tutorial's code was given them."""
    names = sorted(path.stem for path in (source / "images").glob("*.png"))
    for place, at in enumerate(np.random.RandomState(42).permutation(len(names))):
        part = "val" if place < 315 else "train"
        mask = minutes.read(source / "masks" / f"{names[at]}.png") > 0
        image = minutes.read(source / "images" / f"{names[at]}.png")
        minutes.keep(data / part, names[at], image, mask.astype(np.uint8))


if __name__ == "__main__":
    main()
