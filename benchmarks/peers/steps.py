"""Training steps of a peer on a batch that stays the same: prints the seconds of one.

    python benchmarks/peers/steps.py keras 12

`keras` is the tutorial's net (32 images of 128 px) on TensorFlow; `smp` and `fastai` are U-Nets on
resnet34 (8 images of 256 px), in a plain loop and in a `Learner`. The first two steps are left out.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

WARM_UPS = 2


def keras(count: int) -> list[float]:
    """`Model.fit` on arrays, as the tutorial calls it."""
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import numpy as np

    from keras_unet import keras as library
    from keras_unet import unet

    ends: list[float] = []

    class Times(library.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            ends.append(time.perf_counter())

    chance = np.random.default_rng(0)
    images = chance.random((32 * count, 128, 128, 1), np.float32)
    masks = (chance.random(images.shape) > 0.5).astype(np.float32)
    model = unet()
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(images, masks, batch_size=32, verbose=0, callbacks=[Times()])
    return [b - a for a, b in itertools.pairwise(ends)]


def smp(count: int) -> list[float]:
    """The loop that a tutorial shows."""
    import segmentation_models_pytorch as library
    import torch

    torch.manual_seed(0)
    net = library.Unet("resnet34", encoder_weights=None, classes=1).train()
    adam = torch.optim.Adam(net.parameters())
    loss_of = torch.nn.BCEWithLogitsLoss()
    images = torch.randn(8, 3, 256, 256)
    masks = (torch.rand(8, 1, 256, 256) > 0.5).float()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        loss = loss_of(net(images), masks)
        adam.zero_grad()
        loss.backward()
        adam.step()
        times.append(time.perf_counter() - began)
    return times


def fastai(count: int) -> list[float]:
    """`unet_learner`'s net in a `Learner`."""
    import torch
    from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner
    from fastai.vision.learner import create_unet_model
    from torchvision.models import resnet34

    ends: list[float] = []

    class Times(Callback):
        def after_batch(self) -> None:
            ends.append(time.perf_counter())

    torch.manual_seed(0)
    net = create_unet_model(resnet34, 2, (256, 256), pretrained=False)
    batch = torch.randn(8, 3, 256, 256), (torch.rand(8, 256, 256) > 0.5).long()
    feed = torch.utils.data.DataLoader([batch] * count, batch_size=None)
    learn = Learner(DataLoaders(feed, []), net, loss_func=CrossEntropyLossFlat(axis=1))
    learn.remove_cb(learn.recorder)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=Times())
    return [b - a for a, b in itertools.pairwise(ends)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = {"keras": keras, "smp": smp, "fastai": fastai}[sys.argv[1]](int(sys.argv[2]))
    print(statistics.median(found[WARM_UPS:]))
