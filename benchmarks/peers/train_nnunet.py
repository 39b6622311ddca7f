"""nnU-Net in 2D: its own plans, net, augmentation and loss, with epochs that fit into the time.

Its rate falls with the clock in the place of a thousand epochs. The batch is that of the other
systems, since the one it plans is for a GPU: a step of it would take a minute here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import IGNORED, RESIZED, Job, job, keep, pairs, release, say_trained
from PIL import Image

NAME = "Dataset001_it"
PIXELS = 32 * RESIZED**2  # of a batch
STEPS = 10  # of an epoch


def main() -> None:
    """Plan, train, write the masks of the test images."""
    given = job()
    work = Path(given.work).resolve()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    lists = write_raw(given, work / "raw" / NAME)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=2)
    plan_experiments([1])
    preprocess([1], configurations=("2d",), num_processes=(2,))
    done = work / "preprocessed" / NAME
    (done / "splits_final.json").write_text(json.dumps([lists]), encoding="utf-8")
    trainer = make_trainer(given, done)
    trainer.run_training()
    say_trained({"release": release("nnunetv2"), "net": "nnU-Net 2d", "steps": trainer.steps})
    predict(given, trainer)


def write_raw(given: Job, folder: Path) -> dict[str, list[str]]:
    """Write the data as nnU-Net reads it; returns its split."""
    names = [str(value) for value in given.values]
    labels = {"background": 0, **{f"class{name}": i for i, name in enumerate(names) if i}}
    if given.ignored is not None:
        labels["ignore"] = len(names)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for split in lists:
        for name, image, mask in pairs(given, split):
            for kind, file, pixels in (
                ("imagesTr", f"{name}_0000.png", image),
                ("labelsTr", f"{name}.png", np.where(mask == IGNORED, len(names), mask)),
            ):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / file)
            lists[split].append(name)
    about = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": sum(map(len, lists.values())),
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return lists


def make_trainer(given: Job, done: Path):
    """Return a trainer that ends on time."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Timed(nnUNetTrainer):
        steps = 0

        def run_training(self) -> None:
            self.num_epochs = 100_000
            self.on_train_start()
            began, whole, look = time.monotonic(), given.left(), 0.0
            while time.monotonic() - began < whole - look:
                self.on_epoch_start()
                self.on_train_epoch_start()
                outputs = []
                for _ in range(STEPS):
                    share = (time.monotonic() - began) / max(whole - look, 1)
                    if share >= 1:
                        break
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.initial_lr * (1 - share) ** 0.9
                    outputs.append(self.train_step(next(self.dataloader_train)))
                    self.steps += 1
                self.on_train_epoch_end(outputs)
                before = time.monotonic()
                with torch.no_grad():
                    self.on_validation_epoch_start()
                    held = [self.validation_step(next(self.dataloader_val)) for _ in range(1)]
                    self.on_validation_epoch_end(held)
                self.on_epoch_end()
                look = time.monotonic() - before
            self.on_train_end()

    plans = json.loads((done / "nnUNetPlans.json").read_text(encoding="utf-8"))
    flat = plans["configurations"]["2d"]
    flat["batch_size"] = max(2, min(flat["batch_size"], PIXELS // int(np.prod(flat["patch_size"]))))
    plans["continue_training"] = False
    about = json.loads((done / "dataset.json").read_text(encoding="utf-8"))
    return Timed(plans, "2d", 0, about, torch.device("cpu"))


def predict(given: Job, trainer) -> None:
    """Write the masks of the test images, by its own sliding window."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "Timed",
        trainer.inference_allowed_mirroring_axes,
    )
    for name, image, _ in pairs(given, "test"):
        found = said(predictor, image)
        keep(given, name, np.minimum(found, len(given.values) - 1))


def said(predictor, image: np.ndarray) -> np.ndarray:
    """Return the class of each pixel."""
    pixels: Sequence[np.ndarray] = np.moveaxis(image, -1, 0)[:, None].astype(np.float32)
    found = predictor.predict_single_npy_array(pixels, {"spacing": (999, 1, 1)}, None, None, False)
    return np.asarray(found)[0].astype(np.uint8)


if __name__ == "__main__":
    main()
