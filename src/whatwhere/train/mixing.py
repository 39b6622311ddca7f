"""Training images that are laid over each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from whatwhere.data.loader import Batch

_STREAM = 5  # of the seed's streams of chance


@dataclass(frozen=True)
class Mixed:
    """A batch whose images are laid over each other.

    Attributes:
        batch: The mixed images, with the labels of the ones that show more.
        other: The same images, with the labels of the ones that show less.
        share: How much the former show, in [0.5, 1].
    """

    batch: Batch
    other: Batch
    share: float


def mix(batch: Batch, alpha: float, seed: int, epoch: int) -> Mixed:
    """Lay each image of a batch over another one of it, drawn by (seed, epoch, first chip).

    Source: Zhang and others, "mixup: Beyond Empirical Risk Minimization", 2018; the share is
    that of the image that shows more, as fastai has it, so that no pair comes twice.

    Args:
        batch: Images, labels, valid pixels and numbers of chips.
        alpha: Of the beta distribution that the share is drawn from, above 0: the larger, the more
            even are the shares.
        seed: The run's.
        epoch: From 0.
    """
    first = int(batch["index"][0])
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, epoch, first]))
    drawn = float(rng.beta(alpha, alpha))
    share = max(drawn, 1 - drawn)
    order = torch.from_numpy(rng.permutation(len(batch["index"])))
    order = order.to(batch["image"].device)
    image = share * batch["image"] + (1 - share) * batch["image"][order]
    labels, valid, index = (batch[name][order] for name in ("labels", "valid", "index"))
    other = Batch(image=image, labels=labels, valid=valid, index=index)
    return Mixed(Batch(**{**batch, "image": image}), other, share)
