"""Do pretrained weights pay, and does infrared? Sentinel-2 scenes, three classes, split by scene.

    python benchmarks/s2_india.py                    # pretrained against scratch, three seeds
    python benchmarks/s2_india.py --bands nir        # three bands against four
    python benchmarks/s2_india.py --whole            # all pixels of the training scenes

The scenes come from `WHATWHERE_DATA/s2_india`, the weights from `WHATWHERE_WEIGHTS`. To fit two
processors the training and validation scenes are cut to the 256×256 px where their classes are most
even (`--whole` leaves them); the test scenes are whole. Scratch and pretrained differ in nothing
but the start: one net, one recipe, the same chips in the same order. The third length goes on until
the validation loss has not fallen for ten epochs.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from rows import append

from whatwhere import Talk, jobs

NET = "tf_efficientnet_lite0"
CLASSES = "0=ignore,1=built-up,2=vegetation,3=water"
BANDS = {"rgb": "red=1,green=2,blue=3", "nir": "red=1,green=2,blue=3,nir=4"}
KEY = 16  # of the deal into 16, 4 and 4 scenes; with it each part has at least 3 % of each class
UNTIL_IT_STOPS = 150  # epochs, at the most


def main() -> None:
    """Prepare the scenes, train, keep a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bands", choices=[*BANDS], default="rgb")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, nargs="+", default=[8, 24, UNTIL_IT_STOPS])
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    weights = Path(os.environ["WHATWHERE_WEIGHTS"]) / f"{NET}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare(Path(os.environ["WHATWHERE_DATA"]) / "s2_india", data, 0 if asked.whole else 256)
        for seed in asked.seeds:
            for epochs in asked.epochs:
                for start in ("pretrained", "scratch"):
                    if asked.bands == "nir" and start == "scratch":
                        continue
                    run = Path(folder) / f"run-{seed}-{epochs}-{start}"
                    measure(
                        data, run, seed, epochs, weights if start == "pretrained" else None, asked
                    )


def measure(
    data: Path, run: Path, seed: int, epochs: int, weights: Path | None, asked: Any
) -> None:
    """Train once and score the test scenes."""
    until = epochs == UNTIL_IT_STOPS
    jobs.train(
        data,
        run,
        **{"model": NET, "pretrained": False, "seed": seed, "epochs": epochs, "batch_size": 8},
        **{"pretrained_path": str(weights) if weights else None, "classes": CLASSES},
        **{"bands": BANDS[asked.bands], "chip_size": 128, "orientation": "free"},
        **{"schedule": "plateau" if until else "cosine", "stop_patience": 10 if until else 0},
        **{"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        talk=Talk(),
    )
    scores = jobs.evaluate(run, data, talk=Talk())
    with open(run / "log.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    append(
        "s2_india",
        net=NET,
        start="pretrained" if weights else "scratch",
        bands=asked.bands,
        pixels="whole scenes" if asked.whole else "256x256 each",
        seed=seed,
        length="until it stops" if until else f"{epochs} epochs",
        epochs=len(rows),
        best_epoch=next(int(r["epoch"]) for r in reversed(rows) if r["best"] == "True"),
        seconds=round(sum(float(row["seconds"]) for row in rows)),
        val_loss=min(float(row["val_loss"]) for row in rows),
        test_images=scores["images"],
        test_mean_iou=round(scores["mean_iou"], 4),
        **{f"test_iou_{row['name']}": round(row["iou"] or 0, 4) for row in scores["classes"]},
        test_pixel_accuracy=round(scores["pixel_accuracy"], 4),
    )


def prepare(source: Path, data: Path, side: int) -> None:
    """Write scenes of four bands, as 32-bit floats with NaN where there is no data."""
    names = sorted(path.stem for path in (source / "images").glob("*.png"))
    order = np.random.Generator(np.random.Philox(key=[KEY, 0])).permutation(len(names))
    for place, at in enumerate(order):
        part = "train" if place < 16 else "val" if place < 20 else "test"
        name = names[at]
        colour = np.asarray(Image.open(source / "images" / f"{name}.png").convert("RGBA"))
        infrared = np.asarray(Image.open(source / "images_ir" / f"{name}.png").convert("RGBA"))
        bands = np.dstack([colour[..., :3], infrared[..., :1]]).astype(np.float32)
        bands[(colour[..., 3] == 0) | (infrared[..., 3] == 0)] = np.nan
        mask = Image.open(source / "masks" / f"{name}.png")
        if side and part != "test":
            top, left = richest(np.asarray(mask), side)
            bands = bands[top : top + side, left : left + side]
            mask = mask.crop((left, top, left + side, top + side))
        for kind in ("images", "masks"):
            (data / part / kind).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            data / part / "images" / f"{name}.tif",
            np.ascontiguousarray(np.moveaxis(bands, -1, 0)),
            planarconfig="separate",
            photometric="minisblack",
        )
        mask.save(data / part / "masks" / f"{name}.png")


def richest(mask: np.ndarray, side: int) -> tuple[int, int]:
    """Return the first row and column of the window whose classes are most even (entropy)."""

    def entropy(top: int, left: int) -> float:
        window = mask[top : top + side, left : left + side]
        shares = np.array([(window == value).mean() for value in (1, 2, 3)])
        shares = shares[shares > 0]
        return float(-(shares * np.log(shares)).sum())

    places = [
        (top, left)
        for top in range(0, mask.shape[0] - side + 1, side // 2)
        for left in range(0, mask.shape[1] - side + 1, side // 2)
    ]
    return max(places, key=lambda place: entropy(*place))


if __name__ == "__main__":
    main()
