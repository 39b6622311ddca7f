"""fastai's dynamic U-Net on the same backbone: `Learner` with its one-cycle schedule.

What `unet_learner` builds, on a body of timm's layers, since its own names are torchvision's only.
The schedule follows the clock, so that it ends on time; fastai itself counts epochs.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import timm
import torch
from common import (
    CROP,
    IGNORED,
    RESIZED,
    Job,
    cut,
    epoch_of,
    finish,
    is_small,
    job,
    pairs,
    release,
    to_tensor,
    validate,
)
from fastai.torch_core import params
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CrossEntropyLossFlat,
    DataLoaders,
    DynamicUnet,
    Learner,
    apply_init,
    nn,
)

RATE = 1e-3


class Clock(Callback):
    """Lets the schedule follow the clock, and ends the training with it."""

    order = 59  # before the schedules, which look at `pct_train`

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        self.steps = 0

    def before_batch(self) -> None:
        if self.training:
            share = (time.monotonic() - self.began) / self.seconds
            self.learn.pct_train = min(share, 1.0)

    def after_batch(self) -> None:
        if self.training:
            self.steps += 1
            if time.monotonic() - self.began > self.seconds:
                raise CancelFitException


class Chips(torch.utils.data.Dataset):
    """Chips of the training images, drawn anew each time."""

    def __init__(self, given, images) -> None:
        self.given, self.images = given, images
        self.order = epoch_of(images)
        self.chance = np.random.default_rng(given.seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int):
        image, mask = cut(*self.images[self.order[at]][1:], self.chance, self.given.turns)
        return to_tensor(image), torch.from_numpy(np.ascontiguousarray(mask).astype(np.int64))


def main() -> None:
    """Train, validate, write the masks of the test images."""
    given = job()
    warnings.simplefilter("ignore")
    training, held = pairs(given, "train"), pairs(given, "val")
    small = is_small(training[0][1])
    net = build(given, small)
    size = 32 if small else 8
    chips = torch.utils.data.DataLoader(Chips(given, training), size, shuffle=True, drop_last=True)
    learn = Learner(
        DataLoaders(chips, chips),
        net,
        loss_func=CrossEntropyLossFlat(axis=1, ignore_index=IGNORED),
        splitter=halves,
        wd=1e-2,
    )
    learn.remove_cb(learn.recorder)
    before = time.monotonic()
    validate(given, net, held)
    look = time.monotonic() - before
    clock = Clock(given.left() - 1.5 * look)
    with learn.no_bar(), learn.no_logging():
        learn.dls.valid = []
        rate = slice(RATE / 10, RATE) if given.weights else RATE
        learn.fit_one_cycle(10_000, rate, cbs=clock)
    net.eval()
    score, threshold = validate(given, net, held)
    about = {"release": release("fastai"), "net": f"DynamicUnet {given.net}"}
    finish(given, net, threshold, {**about, "steps": clock.steps, "validation": score})


def build(given: Job, small: bool) -> nn.Module:
    """Build the U-Net on the layers of the backbone, one by one, so that it finds all sizes."""
    model = timm.create_model(given.net)
    if given.weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(given.weights))
    body = nn.Sequential(model.conv_stem, model.bn1, *model.blocks)
    side = RESIZED if small else CROP
    net = DynamicUnet(body, len(given.values), (side, side))
    apply_init(net[2], nn.init.kaiming_normal_)
    return net


def halves(net: nn.Module):
    """The backbone learns more slowly than the rest."""
    return [params(net[0]), [p for layer in net[1:] for p in params(layer)]]


if __name__ == "__main__":
    main()
