"""The tutorial's recipe on the real salt images: train, tune, score on the test split, keep a row.

    python benchmarks/tgs_salt.py --epochs 14           # train anew
    python benchmarks/tgs_salt.py --run RUN             # score a run that is there

The images come from `WHATWHERE_DATA/tgs_salt`. Beside the package's own scores stand the two that
salt segmentation is usually given in, from the masks that `predict` writes: the IoU of the salt
over all pixels, and the mean over images (1 where truth and prediction are both empty).
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rows import append

from whatwhere import jobs
from whatwhere.bundle import load_card
from whatwhere.runs import split_keys


def main() -> None:
    """Train or take a run, score it, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, help="a run that is there")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--resize", default="128")
    asked = parser.parse_args()
    data = Path(os.environ["WHATWHERE_DATA"]) / "tgs_salt"
    with tempfile.TemporaryDirectory() as folder:
        run = asked.run or Path(folder) / "run"
        if asked.run is None:
            jobs.train(
                data, run, epochs=asked.epochs, resize=asked.resize, classes="background,salt"
            )
        at_half = figures(run, data, Path(folder) / "half", 0.5)
        tuned = jobs.tune(run, data)["labels"]["salt"]
        at_best = figures(run, data, Path(folder) / "best", tuned["threshold"])
        scores = jobs.evaluate(run, data)
        card = load_card(run)
        with open(run / "log.csv", newline="", encoding="utf-8") as stream:
            epochs = list(csv.DictReader(stream))
    append(
        "tgs_salt",
        command=f"whatwhere train tgs_salt --resize {card.recipe['resize']} "
        f"--epochs {card.recipe['epochs']}",
        split=f"{card.data['train']}/{card.data['val']}/{card.data['test']}",
        augment=card.recipe["augment"],
        epochs=len(epochs),
        best_epoch=int(card.scores["epoch"]),
        seconds=round(sum(float(row["seconds"]) for row in epochs)),
        val_loss=round(card.scores["val_loss"], 4),
        threshold=tuned["threshold"],
        test_images=scores["images"],
        test_iou_pixels_half=round(at_half[0], 4),
        test_iou_images_half=round(at_half[1], 4),
        test_iou_pixels=round(at_best[0], 4),
        test_iou_images=round(at_best[1], 4),
        test_mean_iou=round(scores["mean_iou"], 4),
        test_mean_iou_images=round(scores["mean_iou_images"], 4),
        test_pixel_accuracy=round(scores["pixel_accuracy"], 4),
    )


def figures(run: Path, data: Path, out: Path, threshold: float) -> tuple[float, float]:
    """Return the IoU of the salt over the test split's pixels, and its mean over the images."""
    keys = split_keys(run, "test")
    jobs.predict(run, [data / "images" / f"{key}.png" for key in keys], out, threshold=threshold)
    hits = union = 0
    by_image = []
    for key in keys:
        with (
            Image.open(data / "masks" / f"{key}.png") as truth,
            Image.open(out / f"{key}.png") as said,
        ):
            there, predicted = np.asarray(truth) > 0, np.asarray(said) > 0
        hit, both = int((there & predicted).sum()), int((there | predicted).sum())
        hits, union = hits + hit, union + both
        by_image.append(hit / both if both else 1.0)
    return hits / union, float(np.mean(by_image))


if __name__ == "__main__":
    main()
