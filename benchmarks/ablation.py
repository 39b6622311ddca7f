"""What the parts of a recent recipe are worth: taken away one by one, on two real sets.

`everything` has all parts that were tried. What was best on both sets, all but the weight decay, is
the recipe `modern`.

    python benchmarks/ablation.py --set salt
    python benchmarks/ablation.py --set india --seeds 1 2

`salt` is the first 320 pairs of `WHATWHERE_DATA/tgs_salt`, stretched to 128 px; `india` are the
scenes of `s2_india.py` in their cut form. All runs of a seed see the same chips in the same order
for the same number of epochs. The backbone and its weights come from `WHATWHERE_WEIGHTS`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import append
from s2_india import CLASSES, NET, prepare

from whatwhere import Talk, jobs

SETS: dict[str, dict[str, Any]] = {
    "salt": {"resize": 128, "classes": "background,salt", "epochs": 16, "batch_size": 8},
    "india": {
        **{"classes": CLASSES, "bands": "red=1,green=2,blue=3", "chip_size": 128},
        **{"orientation": "free", "epochs": 40, "batch_size": 8},
    },
}
EVERYTHING: dict[str, Any] = {
    **{"loss": "cross_entropy+dice", "optimizer": "adamw", "weight_decay": 0.01},
    **{"schedule": "cosine", "ema": 0.05, "stop_patience": 0},
}
ADAM = {"optimizer": "adam", "weight_decay": 0.0}
PLATEAU = {"schedule": "plateau", "warmup": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "without dice": {"loss": "cross_entropy"},
    "without the average": {"ema": 0.0},
    "without cosine": PLATEAU,
    "without pretrained weights": {"pretrained_path": None},
    "without weight decay": ADAM,
    "without weight decay and dice": {**ADAM, "loss": "cross_entropy"},
    "one cycle for cosine": {"schedule": "one_cycle"},
    "first level at a tenth of the rate": {"encoder_lr": 0.1},
    "three times the rate": {"lr": 3e-3},
    "tutorial's course": {
        **PLATEAU,
        **ADAM,
        **{"loss": "cross_entropy", "ema": 0.0},
    },
}


def main() -> None:
    """Train every variant and keep its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--set", choices=[*SETS], required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS])
    parser.add_argument("--epochs", type=int)
    asked = parser.parse_args()
    root = Path(os.environ["WHATWHERE_DATA"])
    weights = Path(os.environ["WHATWHERE_WEIGHTS"]) / f"{NET}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        if asked.set == "india":
            prepare(root / "s2_india", data, 256)
        else:
            take(root / "tgs_salt", data, 320)
        for seed in asked.seeds:
            for variant in asked.variants:
                run = Path(folder) / f"{seed}-{variant.replace(' ', '-')}"
                changes = dict(VARIANTS[variant])
                changes |= {"epochs": asked.epochs} if asked.epochs else {}
                measure(asked.set, data, run, seed, variant, changes, weights)


def measure(
    name: str,
    data: Path,
    run: Path,
    seed: int,
    variant: str,
    changes: dict[str, Any],
    weights: Path,
) -> None:
    """Train once, score the test split at the threshold 0.5 or by the likeliest class."""
    settings = {**EVERYTHING, **changes, **SETS[name], "pretrained_path": str(weights)}
    settings |= {"model": NET, "seed": seed, "pretrained": False}
    settings |= {key: changes[key] for key in ("epochs", "pretrained_path") if key in changes}
    started = time.monotonic()
    jobs.train(data, run, **settings, talk=Talk())
    seconds = time.monotonic() - started
    scores = jobs.evaluate(run, data, talk=Talk())
    append(
        "ablation",
        set=name,
        net=NET,
        variant=variant,
        seed=seed,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seconds=round(seconds),
        test_images=scores["images"],
        test_mean_iou=round(scores["mean_iou"], 4),
        test_mean_iou_images=round(scores["mean_iou_images"], 4),
        test_pixel_accuracy=round(scores["pixel_accuracy"], 4),
    )


def take(source: Path, data: Path, count: int) -> None:
    """Copy the first pairs of a set."""
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    for image in sorted((source / "images").glob("*.png"))[:count]:
        shutil.copyfile(image, data / "images" / image.name)
        shutil.copyfile(source / "masks" / image.name, data / "masks" / image.name)


if __name__ == "__main__":
    main()
