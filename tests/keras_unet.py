"""The tutorial's U-Net written in Keras as its text describes it: the oracle for ours."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before the first import of keras

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes
from torch import Tensor, nn

Layer = Callable[[Any], Any]


def unet(
    in_channels: int = 1,
    *,
    n_filters: int = 16,
    upsample: str = "transposed",
    dropout: float = 0.1,
    dtype: str = "float32",
    make_drop: Callable[[], Layer] | None = None,
) -> keras.Model:
    """Build it for images of any size that 16 divides; everything unsaid is Keras' default."""
    layers = keras.layers

    def drop() -> Layer:
        return make_drop() if make_drop else layers.Dropout(dropout, dtype=dtype)

    def block(x: Any, filters: int, name: str) -> Any:
        for i in (1, 2):
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                kernel_initializer="he_normal",
                name=f"{name}_conv{i}",
                dtype=dtype,
            )(x)
            x = layers.BatchNormalization(name=f"{name}_norm{i}", dtype=dtype)(x)
            x = layers.Activation("relu", dtype=dtype)(x)
        return x

    def up(x: Any, filters: int, name: str) -> Any:
        if upsample == "transposed":
            return layers.Conv2DTranspose(
                filters, 3, strides=2, padding="same", name=name, dtype=dtype
            )(x)
        x = layers.UpSampling2D(2, interpolation=upsample, dtype=dtype)(x)
        return layers.Conv2D(filters, 3, padding="same", name=name, dtype=dtype)(x)

    image = keras.Input((None, None, in_channels), dtype=dtype)
    x, skips = image, []
    for level in range(4):
        x = block(x, n_filters * 2**level, f"c{level + 1}")
        skips.append(x)
        x = drop()(layers.MaxPooling2D(2, dtype=dtype)(x))
    x = block(x, n_filters * 16, "c5")
    for step, level in enumerate((3, 2, 1, 0), start=6):
        x = up(x, n_filters * 2**level, f"u{step}")
        x = drop()(layers.Concatenate(dtype=dtype)([x, skips[level]]))
        x = block(x, n_filters * 2**level, f"c{step}")
    x = layers.Conv2D(1, 1, activation="sigmoid", name="head", dtype=dtype)(x)
    return keras.Model(image, x)


@contextmanager
def float64() -> Iterator[None]:
    """Let Keras calculate in float64 throughout.

    Its floatx is the type of learning rates and of plain numbers such as momentum. Batch norm
    also asks for the common type of its input and float32, which Keras says is float32 unless the
    backend is TensorFlow; here it is float64, as it is there.
    """
    kept = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, {"float64": "float64"}):
            yield
    finally:
        keras.config.set_floatx(kept)


def randomise(model: keras.Model, seed: int) -> None:
    """Give biases, and batch norm's statistics and affine, values that matter."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        kind = variable.path.rsplit("/", 1)[1]
        if kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.0, variable.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0.0, 0.3, variable.shape))


def pairs(model: keras.Model, net: nn.Module) -> Iterator[tuple[str, Any, Tensor, tuple[int, ...]]]:
    """Yield each weight: name, Keras' variable, our tensor, and the axes that turn its to ours."""
    blocks = [f"c{i}" for i in range(1, 10)]
    for name in blocks:
        modules = list(net.get_submodule(name).modules())
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True), start=1):
            yield from _conv_pairs(model, f"{name}_conv{i}", conv)
            theirs = model.get_layer(f"{name}_norm{i}")
            yield f"{name}_norm{i}/gamma", theirs.gamma, norm.weight, (0,)
            yield f"{name}_norm{i}/beta", theirs.beta, norm.bias, (0,)
            yield f"{name}_norm{i}/moving_mean", theirs.moving_mean, norm.running_mean, (0,)
            yield f"{name}_norm{i}/moving_variance", theirs.moving_variance, norm.running_var, (0,)
    for name in ("u6", "u7", "u8", "u9", "head"):
        module = net.get_submodule(name)
        yield from _conv_pairs(model, name, getattr(module, "conv", module))


def _conv_pairs(
    model: keras.Model, name: str, conv: Any
) -> Iterator[tuple[str, Any, Tensor, tuple[int, ...]]]:
    theirs = model.get_layer(name)
    # (h, w, in, out) to (out, in, h, w), and for transposed ones (h, w, out, in) to (in, out, h, w)
    yield f"{name}/kernel", theirs.kernel, conv.weight, (3, 2, 0, 1)
    yield f"{name}/bias", theirs.bias, conv.bias, (0,)


def carry_over(model: keras.Model, net: nn.Module) -> None:
    """Put Keras' weights into ours; all of them, and no others."""
    seen = 0
    with torch.no_grad():
        for _, theirs, ours, axes in pairs(model, net):
            values = theirs.value.detach().permute(axes)
            assert values.shape == ours.shape
            ours.copy_(values)
            seen += 1
    assert seen == len(model.weights)


def channels_last(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).contiguous()


def channels_first(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)
