"""A careful loop over segmentation_models_pytorch.

AdamW along one cycle to 1e-3 that ends on time, cross-entropy and Dice, flips, an average of the
weights; the better one of both, weights or average, by the validation split, at several times.
"""

from __future__ import annotations

import copy
import math
import time
import warnings

import numpy as np
import segmentation_models_pytorch as library
import torch
from common import (
    CROP,
    IGNORED,
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

RATE, DECAY = 1e-3, 1e-2
LOOKS = 6  # validations in all


def main() -> None:
    """Train, validate, write the masks of the test images."""
    given = job()
    warnings.simplefilter("ignore")
    chance = np.random.default_rng(given.seed)
    training, held = pairs(given, "train"), pairs(given, "val")
    outputs = 1 if given.binary else len(given.values)
    net = library.Unet(f"tu-{given.net}", encoder_weights=None, classes=outputs)
    if given.weights:
        load(net, given.weights)
    mode = "binary" if given.binary else "multiclass"
    ignored = None if given.binary else IGNORED
    dice = library.losses.DiceLoss(mode, from_logits=True, ignore_index=ignored)
    if given.binary:
        other = torch.nn.BCEWithLogitsLoss()
    else:
        other = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    size = 32 if is_small(training[0][1]) else max(8, 32 * 128**2 // CROP**2)
    average = copy.deepcopy(net)
    best, steps, looked, look_s = (-1.0, 0.5, None), 0, 0, 0.0
    order: list[int] = []
    began, whole = time.monotonic(), given.left()
    net.train()
    while True:
        # The last validation, of both, is to fit into the time.
        share = (time.monotonic() - began) / (whole - look_s)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(share)
        if len(order) < size:
            fresh = epoch_of(training)
            order += [fresh[i] for i in chance.permutation(len(fresh))]
        some, order = order[:size], order[size:]
        chips = [cut(*training[i][1:], chance, given.turns) for i in some]
        x = torch.stack([to_tensor(image) for image, _ in chips])
        y = torch.from_numpy(np.stack([mask for _, mask in chips]).astype(np.int64))
        logits = net(x)
        if given.binary:
            target = y[:, None].float()
            loss = other(logits, target) + dice(logits, target)
        else:
            loss = other(logits, y) + dice(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        blend(average, net, min(0.99, steps / (steps + 10)))
        if share > (looked + 1) / LOOKS:
            looked += 1
            before = time.monotonic()
            best = look(given, (net, average), held, best)
            look_s = time.monotonic() - before
            print(f"step {steps}: mean IoU {best[0]:.4f}, {given.left():.0f} s left", flush=True)
    score, threshold, state = look(given, (net, average), held, best)
    net.load_state_dict(state)
    about = {"release": release("segmentation-models-pytorch"), "net": f"Unet {given.net}"}
    finish(given, net, threshold, {**about, "steps": steps, "validation": score})


def rate(share: float) -> float:
    """One cycle: up for a tenth, and down along a cosine."""
    if share < 0.1:
        return RATE * share / 0.1
    return RATE * 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def blend(average: torch.nn.Module, net: torch.nn.Module, keep: float) -> None:
    """Move the average towards the weights, running statistics too."""
    with torch.no_grad():
        theirs = net.state_dict()
        for name, value in average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(theirs[name], 1 - keep)
            else:
                value.copy_(theirs[name])


def look(given, nets, held, best):
    """Validate weights and average; keep the best so far."""
    for net in nets:
        score, threshold = validate(given, net, held)
        if score > best[0]:
            best = (score, threshold, copy.deepcopy(net.state_dict()))
    return best


def load(net: torch.nn.Module, path: str) -> None:
    """Load the weights of the backbone; only those of its classifier have no place."""
    from safetensors.torch import load_file

    wanted = net.encoder.model.state_dict()
    found = {name: value for name, value in load_file(path).items() if name in wanted}
    net.encoder.model.load_state_dict(found)


if __name__ == "__main__":
    main()
