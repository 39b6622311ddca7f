"""Engines that turn images into probabilities."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whatwhere.bundle import Bundle, Card, Tensors
from whatwhere.config import settings_of
from whatwhere.errors import (
    BundleError,
    NumericsError,
    UsageError,
    WhatwhereError,
    first_line,
)
from whatwhere.machine import large_pages
from whatwhere.types import Task

TORCH, BF16, COMPILED = "torch", "torch-bf16", "torch-compiled"
"""The engines of PyTorch: as it is, in bfloat16, and with what its compiler makes of a net."""


class Backend(Protocol):
    """Runs a net.

    Attributes:
        normalizes: Whether it is given the numbers of files, and normalises them by itself.
        device: What it runs on.
        engine: Its name: `torch`, `torch-bf16`, `torch-compiled`, `onnx` or `openvino`.
    """

    normalizes: bool
    device: str
    engine: str

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)` into probabilities `(N, K, H, W)` in [0, 1]."""
        ...

    def computing(self, threads: int) -> AbstractContextManager[None]:
        """Compute with so many threads while the block runs."""
        ...


class TorchBackend:
    """Runs a net with PyTorch."""

    normalizes = False

    def __init__(self, net: Any, task: Task, device: str = "cpu") -> None:
        """Take a module that gives logits; it is put on the device and into evaluation mode."""
        import torch

        # Convolutions are quicker over pixels whose bands lie side by side.
        self.net = net.eval().to(memory_format=torch.channels_last)
        self.task, self.engine = task, TORCH
        self.to(device)

    def to(self, device: str) -> None:
        """Move the net to `cpu`, `cuda` or `mps`."""
        self.net, self.device = self.net.to(device), device

    def become(self, engine: str, card: Card) -> None:
        """Compute by bfloat16 in the convolutions, or with what the compiler makes of the net.

        Args:
            engine: One of PyTorch's.
            card: The net's.

        Raises:
            UsageError: This machine has no bfloat16, or the compiler fails.
        """
        if engine == BF16 and not has_bf16(self.device):
            raise UsageError(
                f"--backend {BF16}: this is for CUDA and for processors with arithmetic for "
                f"bfloat16, not for {self.device} here. Leave it out."
            )
        self.engine = engine
        if engine != COMPILED:
            return
        import torch

        side = card.geometry.window(64)
        try:
            self.net.compile()
            self.run(np.zeros((1, len(card.bands), side, side), np.float32))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # all that torch's compiler raises
            raise UsageError(
                f"--backend {COMPILED}: PyTorch's compiler cannot do it here "
                f"({first_line(error)}). It wants a C++ compiler, on a GPU Triton. Take another "
                "engine."
            ) from error

    @contextlib.contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """Compute with so many threads while the block runs."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def memory_mb(self, bands: int, side: int) -> int:
        """Return what one image `(bands, side, side)` takes on its way through the net [MB]."""
        from whatwhere.nn.memory import inference_memory_mb

        return inference_memory_mb(self.net, bands, side)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)` into probabilities `(N, K, H, W)`.

        Raises:
            NumericsError: A logit is not finite.
        """
        import torch

        with torch.inference_mode():
            stack = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.engine == BF16):
                logits = self.net(stack).float()
            if not bool(torch.isfinite(logits).all()):
                raise NumericsError("the net's output is not finite. Check the image's values.")
            softmax = self.task == "multiclass"
            probabilities = torch.softmax(logits, 1) if softmax else torch.sigmoid(logits)
            result: NDArray[np.float32] = probabilities.cpu().numpy()
        return result


def has_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 by itself."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tells = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public word
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in tells)


def open_backend(bundle: Bundle, device: str = "auto", encoder: Any = None) -> TorchBackend:
    """Build the net of a bundle, load its weights, and ask it what it answered when it was saved.

    Nothing is fetched, and no code of the bundle is run.

    Args:
        bundle: What was loaded.
        device: `auto`, `cpu`, `cuda` or `mps`.
        encoder: The module that gives the feature maps, where the net was trained on one of the
            user's own.

    Raises:
        BundleError: The weights do not belong to the architecture the card names, or the net does
            not answer as it did.
        UsageError: There is no such device, or an encoder is given and the bundle wants none.
    """
    large_pages()
    from whatwhere.nn.build import build_light, build_model

    card = bundle.card
    if card.model.startswith(OWN) and encoder is None:
        raise BundleError(
            f"the net was trained on an encoder of its own, {card.model.removeprefix(OWN)}. Pass "
            "it: whatwhere.load(PATH, encoder=…)."
        )
    if encoder is not None and not card.model.startswith(OWN):
        raise UsageError(f"the bundle's net is on {card.model}, and takes no encoder=.")
    foreign = sorted(set(card.arguments) - {*settings_of(card.model)})
    if foreign:
        told = f"the card gives {card.model} the arguments {', '.join(foreign)}."
        raise BundleError(f"{told} Take the version of whatwhere that wrote it.")
    sizes = (len(card.bands), card.classes.n_outputs)
    try:
        if encoder is None:
            # Before memory is taken for it.
            check_shapes(build_light(card.model, *sizes, **card.arguments), bundle.weights)
            net = build_model(card.model, *sizes, **card.arguments)
        else:
            net = build_model(copy.deepcopy(encoder), *sizes, **card.arguments)
    except (WhatwhereError, TypeError) as error:
        told = f"the bundle's net cannot be built: {error}"
        raise BundleError(f"{told} Copy the bundle again.") from error
    load_weights(net, bundle.weights)
    backend = TorchBackend(net, card.classes.task)
    if card.self_test:
        check_answers(backend, card)
    backend.to(choose_device(device))
    return backend


OWN = "own:"
"""A card's model starts with this where the encoder is the user's, and not of a library."""

_TOLERANCE = 1e-3


def note_answers(backend: Backend, card: Card) -> dict[str, Any]:
    """Return what a net answers to seeded noise: a card's `self_test`.

    Args:
        backend: Runs the net.
        card: Its bands and geometry are used.
    """
    side = card.geometry.window(32)
    noise = np.random.Generator(np.random.Philox(key=[0, 5]))
    image = noise.standard_normal((1, len(card.bands), side, side)).astype(np.float32)
    if backend.normalizes:
        image = card.normalization.undo(image)
    answer = backend.run(image).astype(np.float64).ravel()
    places = np.linspace(0, len(answer) - 1, 16).round().astype(int)
    return {
        "seed": 0,
        "side": side,
        "values": [round(value, 6) for value in answer[places].tolist()],
        "mean": round(float(answer.mean()), 6),
        "tolerance": _TOLERANCE,
    }


def check_answers(backend: Backend, card: Card) -> None:
    """Raise `BundleError` if the net does not answer to the noise as the card says."""
    told = card.self_test
    try:
        if told["seed"] != 0 or told["side"] != card.geometry.window(32):
            raise ValueError(f"seed {told['seed']}, side {told['side']}")
        now = note_answers(backend, card)
        wanted = np.array([*told["values"], told["mean"]], dtype=np.float64)
        off = float(np.abs(wanted - np.array([*now["values"], now["mean"]])).max())
        allowed = min(float(told["tolerance"]), 0.1)
    except (LookupError, TypeError, ValueError) as error:
        raise BundleError(f"the card's self-test cannot be read: {error!r}.") from error
    if not off <= allowed:
        versions = ", ".join(f"{name} {number}" for name, number in card.versions.items())
        raise BundleError(
            f"the net does not answer as it did when it was saved (off by {off:.3g}, {allowed:g} "
            f"is allowed): the libraries here build another one. It was saved with {versions}."
        )


def check_shapes(net: Any, weights: Tensors) -> None:
    """Raise `BundleError` if a tensor is missing, left over, of another shape or kind of number."""
    state = net.state_dict()
    own = {name: tuple(tensor.shape) for name, tensor in state.items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if own != given:
        wrong = sorted(set(own.items()) ^ set(given.items()))[:4]
        raise BundleError(
            f"the weights do not fit the net: {', '.join(f'{n} {s}' for n, s in wrong)} "
            "stand on one side only."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() != (weights[name].dtype.kind == "f"):
            raise BundleError(
                f"the weights {name} are of the type {weights[name].dtype}, and the net's are "
                f"{str(tensor.dtype).removeprefix('torch.')}."
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
