"""Engines that turn images into probabilities."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whatwhere.bundle import Bundle, Tensors
from whatwhere.errors import BundleError, NumericsError, UsageError, WhatwhereError
from whatwhere.types import Task


class Backend(Protocol):
    """Runs a net."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)`, normalised, into probabilities `(N, K, H, W)` in [0, 1]."""
        ...


class TorchBackend:
    """Runs a net with PyTorch."""

    def __init__(self, net: Any, task: Task, device: str = "cpu") -> None:
        """Take a module that gives logits; it is put on the device and into evaluation mode."""
        self.net = net.to(device).eval()
        self.task, self.device = task, device

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)` into probabilities `(N, K, H, W)`.

        Raises:
            NumericsError: A logit is not finite.
        """
        import torch

        with torch.inference_mode():
            logits = self.net(torch.from_numpy(images).to(self.device))
            if not bool(torch.isfinite(logits).all()):
                raise NumericsError("the net's output is not finite. Check the image's values.")
            softmax = self.task == "multiclass"
            probabilities = torch.softmax(logits, 1) if softmax else torch.sigmoid(logits)
            result: NDArray[np.float32] = probabilities.float().cpu().numpy()
        return result


def open_backend(bundle: Bundle, device: str = "auto") -> TorchBackend:
    """Build the net of a bundle and load its weights.

    Raises:
        BundleError: The weights do not belong to the architecture the card names.
        UsageError: There is no such device.
    """
    import torch

    from whatwhere.nn.build import build_model

    card = bundle.card

    def build(device: str) -> Any:
        with torch.device(device):
            return build_model(
                card.model, len(card.bands), card.classes.n_outputs, **card.arguments
            )

    try:
        check_shapes(build("meta"), bundle.weights)  # before memory is taken for it
        net = build("cpu")
    except (WhatwhereError, TypeError) as error:
        raise BundleError(f"the bundle's net cannot be built: {error}") from error
    load_weights(net, bundle.weights)
    return TorchBackend(net, card.classes.task, choose_device(device))


def check_shapes(net: Any, weights: Tensors) -> None:
    """Raise `BundleError` if a tensor is missing, left over, or of another shape."""
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != given:
        wrong = sorted(set(own.items()) ^ set(given.items()))[:4]
        raise BundleError(
            f"the weights do not fit the net: {', '.join(f'{n} {s}' for n, s in wrong)} "
            "stand on one side only."
        )


def load_weights(net: Any, weights: Tensors) -> None:
    """Put a bundle's weights into a net; raises as `check_shapes`."""
    import torch

    check_shapes(net, weights)
    net.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in weights.items()})


def choose_device(name: str) -> str:
    """Return the device to compute on: `auto` takes the GPU where there is one.

    Raises:
        UsageError: The device is not there, or its name is not known.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        return next((device for device in ("cuda", "mps") if there[device]), "cpu")
    if name not in there:
        raise UsageError(f"--device must be auto, {', '.join(there)}, not {name!r}.")
    if not there[name]:
        raise UsageError(f"there is no {name} device here. `whatwhere env` says what there is.")
    return name
