"""Ultralytics' semantic model, the smallest: its own net, loader, augmentation and schedule.

It has a limit of time itself. Its weights are not timm's, so it begins with none. What it answers
is thresholded as for the others: on whole images, at the threshold that validation likes best.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from common import Job, finish, is_small, job, pairs, release, validate
from PIL import Image
from torch.nn import functional

NET = "yolo26n-sem"
STRIDE = 32
LAST_S = 10  # for what it does after its time, and for the threshold [s]


class Logits(torch.nn.Module):
    """Its net, which answers at an eighth of the size, for values as the other nets get them."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.net((x + 1) / 2)
        found = found[0] if isinstance(found, (tuple, list)) else found
        return functional.interpolate(found.float(), x.shape[2:], mode="bilinear")


def main() -> None:
    """Train, validate, write the masks of the test images."""
    given = job()
    work = Path(given.work).resolve()
    os.environ["YOLO_CONFIG_DIR"] = str(work)
    from ultralytics import YOLO

    data, side = write(given, work / "data"), 0
    training, held = pairs(given, "train"), pairs(given, "val")
    for _, image, _ in training:
        side = max(side, *image.shape[:2])
    steps = 0

    def count(_trainer) -> None:
        nonlocal steps
        steps += 1

    model = YOLO(f"{NET}.yaml")
    model.add_callback("on_train_batch_end", count)
    small = is_small(training[0][1])
    model.train(
        data=str(data),
        time=(given.left() - LAST_S) / 3600,
        imgsz=-(-side // STRIDE) * STRIDE,
        batch=32 if small else 8,
        flipud=0.5 if given.turns else 0.0,
        seed=given.seed,
        device="cpu",
        workers=1,
        amp=False,
        cache=True,
        plots=False,
        project=str(work),
        name="run",
    )
    best = YOLO(work / "run" / "weights" / "best.pt")
    net = Logits(best.model.float())
    score, threshold = validate(given, net, held)
    about = {"release": release("ultralytics"), "net": NET}
    finish(given, net, threshold, {**about, "steps": steps, "validation": score})


def write(given: Job, folder: Path) -> Path:
    """Write the data as it reads them."""
    for split in ("train", "val"):
        for name, image, mask in pairs(given, split):
            for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8))):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / split / f"{name}.png")
    about = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "masks_dir": "masks",
        "names": dict(enumerate(map(str, given.values))),
    }
    (folder / "data.yaml").write_text(json.dumps(about), encoding="utf-8")
    return folder / "data.yaml"


if __name__ == "__main__":
    main()
