"""The U-Net of 2015 on membranes, by overlapping tiles: what is lost against the whole image.

    python benchmarks/overlap_tile.py                       # train, score, compare
    python benchmarks/overlap_tile.py --run RUN             # compare with a run that is there

The slices come from `WHATWHERE_DATA/isbi2012`. A net is trained with the paper's weighted loss and
scored on the test slices. Then each test slice is segmented as a whole (a window of 700 px for
512 px) and by tiles, in 32 and in 64 bits; the row has the largest difference of a probability, and
how many pixels of the mask differ though they are farther from the threshold than that.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import append

from whatwhere import jobs, load
from whatwhere.io.image import read_image
from whatwhere.runs import split_keys


class Double:
    """Runs a net in 64 bits; the arrays in between are of 64 bits too."""

    normalizes = False

    def __init__(self, net: torch.nn.Module) -> None:
        """Take a net, which is changed to 64 bits."""
        self.net = net.double().eval()

    def run(self, images: np.ndarray) -> np.ndarray:
        """Turn `(N, C, H, W)` into probabilities `(N, K, H, W)`."""
        with torch.inference_mode():
            return torch.sigmoid(self.net(torch.from_numpy(images).double())).numpy()


def main() -> None:
    """Train or take a run, compare, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--tiles", type=int, nargs="+", default=[220, 316])
    asked = parser.parse_args()
    data = Path(os.environ["WHATWHERE_DATA"]) / "isbi2012"
    with tempfile.TemporaryDirectory() as folder:
        run = asked.run or Path(folder) / "run"
        if asked.run is None:
            jobs.train(
                data,
                run,
                **{"model": "unet2015", "n_filters": asked.filters, "epochs": asked.epochs},
                **{"loss": "unet2015", "chip_size": 132, "batch_size": 4, "orientation": "free"},
                **{"schedule": "cosine", "stop_patience": 0, "optimizer": "adamw"},
            )
        jobs.tune(run, data)
        scores = jobs.evaluate(run, data)
        with open(run / "log.csv", newline="", encoding="utf-8") as stream:
            epochs = list(csv.DictReader(stream))
        compared = {tile: compare(run, data, tile) for tile in asked.tiles}
    for tile, found in compared.items():
        append(
            "overlap_tile",
            net=f"unet2015, {asked.filters} filters",
            epochs=len(epochs),
            seconds=round(sum(float(row["seconds"]) for row in epochs)),
            test_images=scores["images"],
            test_mean_iou=round(scores["mean_iou"], 4),
            test_iou_foreground=round(scores["classes"][-1]["iou"] or 0, 4),
            tile=tile,
            **found,
        )


def compare(run: Path, data: Path, tile: int) -> dict[str, Any]:
    """Return the largest differences between tiled and whole, and the mask's pixels that differ."""
    whole, cut = load(run, tile=1020), load(run, tile=tile)
    threshold = whole.card.thresholds[0]
    off, pixels, beyond = 0.0, 0, 0
    double = load(run, tile=1020)
    double.backend = Double(double.net)
    off_double = 0.0
    for key in split_keys(run, "test"):
        image, valid = read_image(data / "images" / f"{key}.png")
        one, other = whole.probabilities(image, valid), cut.probabilities(image, valid)
        difference = np.abs(one.astype(np.float64) - other)
        off = max(off, float(difference.max()))
        changed = (one >= threshold) != (other >= threshold)
        pixels += int(changed.sum())
        beyond += int((changed & (np.abs(one - threshold) > difference.max())).sum())
        double.tile = 1020
        exact = double.probabilities(image, valid)
        double.tile = tile
        off_double = max(
            off_double, float(np.abs(exact - double.probabilities(image, valid)).max())
        )
    return {
        "largest_difference_32": f"{off:.2e}",
        "largest_difference_64": f"{off_double:.2e}",
        "mask_pixels_that_differ": pixels,
        "of_them_beyond_the_difference": beyond,
    }


if __name__ == "__main__":
    main()
