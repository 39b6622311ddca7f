"""The tutorial's net against the same net in Keras, with Keras' weights."""

from __future__ import annotations

import keras_unet  # first: it chooses Keras' backend

# isort: split
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from whatwhere.losses import masked_mean, pixel_losses
from whatwhere.nn import blocks
from whatwhere.nn.blocks import UPSAMPLE_MODES, UpsampleMode
from whatwhere.nn.build import build_model, count_parameters
from whatwhere.train.optim import KerasAdam


@pytest.fixture
def float64() -> Iterator[None]:
    with keras_unet.float64():
        yield


def twins(
    upsample: UpsampleMode = "transposed", dtype: str = "float32", n_filters: int = 16
) -> tuple[keras.Model, nn.Module]:
    """Both nets with the same random weights and no dropout."""
    keras.utils.set_random_seed(7)
    theirs = keras_unet.unet(upsample=upsample, dtype=dtype, dropout=0.0, n_filters=n_filters)
    keras_unet.randomise(theirs, seed=8)
    ours = build_model("tutorial", upsample=upsample, dropout=0.0, n_filters=n_filters)
    ours.to(getattr(torch, dtype))
    keras_unet.carry_over(theirs, ours)
    return theirs, ours


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    image = torch.randn(2, 1, 32, 48, generator=generator, dtype=dtype)
    labels = (torch.rand(2, 32, 48, generator=generator) < 0.4).long()
    return image, labels


def their_loss(model: keras.Model, image: Tensor, labels: Tensor, *, training: bool) -> Tensor:
    probabilities = model(keras_unet.channels_last(image), training=training)
    losses = keras.losses.binary_crossentropy(labels[..., None], probabilities)
    mean: Tensor = keras.ops.mean(losses)
    return mean


def our_loss(net: nn.Module, image: Tensor, labels: Tensor, *, training: bool) -> Tensor:
    losses = pixel_losses(net.train(training)(image), labels, "binary")
    return masked_mean(losses, torch.ones_like(labels, dtype=torch.bool))[0]


@pytest.mark.parametrize("upsample", UPSAMPLE_MODES)
@pytest.mark.parametrize("shape", [(128, 128), (96, 160)])
def test_probabilities_are_those_of_keras(upsample: UpsampleMode, shape: tuple[int, int]) -> None:
    theirs, ours = twins(upsample)
    image = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = keras_unet.channels_first(theirs(keras_unet.channels_last(image)))
        found = torch.sigmoid(ours.eval()(image))
    assert expected.std() > 0.05  # something is there to compare
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("upsample", UPSAMPLE_MODES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_keras(
    float64: None, upsample: UpsampleMode, training: bool
) -> None:
    theirs, ours = twins(upsample, "float64", n_filters=4)
    image, labels = batch()
    their_loss(theirs, image, labels, training=training).backward()
    our_loss(ours, image, labels, training=training).backward()
    compared = 0
    for name, variable, parameter, axes in keras_unet.pairs(theirs, ours):
        if not variable.trainable:
            continue
        expected, found = variable.value.grad.permute(axes), parameter.grad
        largest = expected.abs().max().item()
        if training and "_conv" in name and name.endswith("bias"):
            # Batch norm takes the mean away, so these have no effect: all that is left is rounding.
            assert max(largest, found.abs().max().item()) < 1e-12
            continue
        assert largest > 1e-6, name
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-9 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
        compared += 1
    assert compared == (82 - 18 if training else 82)


def test_three_training_steps_leave_the_weights_of_keras(float64: None) -> None:
    theirs, ours = twins(dtype="float64", n_filters=4)
    image, labels = batch()
    their_adam = keras.optimizers.Adam(1e-3, epsilon=1e-7)
    our_adam = KerasAdam(ours.parameters(), lr=1e-3)
    for _ in range(3):
        theirs.zero_grad()
        their_loss(theirs, image, labels, training=True).backward()
        variables = theirs.trainable_variables
        with torch.no_grad():
            their_adam.apply([v.value.grad for v in variables], variables)
        our_adam.zero_grad()
        our_loss(ours, image, labels, training=True).backward()
        our_adam.step()
    for name, variable, tensor, axes in keras_unet.pairs(theirs, ours):
        if not name.endswith("moving_variance"):  # torch's has n - 1 in it
            difference = (tensor.detach() - variable.value.detach().permute(axes)).abs().max()
            assert difference < 1e-9, name


@pytest.mark.parametrize(
    ("channels", "total", "trainable"), [(1, 2_164_305, 2_161_361), (3, 2_164_593, 2_161_649)]
)
def test_parameters_are_as_many_as_keras_counts(channels: int, total: int, trainable: int) -> None:
    theirs = keras_unet.unet(channels)
    found = count_parameters(build_model("tutorial", channels))
    assert (found.total, found.trainable) == (total, trainable)
    assert theirs.count_params() == total
    assert sum(int(np.prod(v.shape)) for v in theirs.trainable_weights) == trainable


def test_batch_norm_has_the_epsilon_of_keras() -> None:
    norms = [m for m in build_model("tutorial").modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = keras_unet.unet().get_layer("c1_norm1")
    assert len(norms) == 18
    assert {norm.eps for norm in norms} == {1e-3} == {theirs.epsilon}


def test_running_means_move_as_in_keras(float64: None) -> None:
    theirs, ours = twins(dtype="float64", n_filters=4)
    before = {name: tensor.clone() for name, _, tensor, _ in keras_unet.pairs(theirs, ours)}
    image, _ = batch()
    with torch.no_grad():
        theirs(keras_unet.channels_last(image), training=True)
        ours.train()(image)
    for name, variable, tensor, _ in keras_unet.pairs(theirs, ours):
        if name.endswith("moving_mean"):
            assert (tensor - before[name]).abs().max() > 1e-4, name
            torch.testing.assert_close(tensor, variable.value.detach(), rtol=0, atol=1e-12)


def test_running_variances_move_as_in_keras_but_for_bessels_correction(float64: None) -> None:
    theirs, ours = twins(dtype="float64", n_filters=4)
    old = {name: tensor.clone() for name, _, tensor, _ in keras_unet.pairs(theirs, ours)}
    image, _ = batch()
    with torch.no_grad():
        theirs(keras_unet.channels_last(image), training=True)
        ours.train()(image)
    for name, variable, tensor, _ in keras_unet.pairs(theirs, ours):
        if name.endswith("moving_variance"):
            level = min(int(name[1]), 10 - int(name[1])) - 1
            count = image[:, 0].numel() // 4**level
            kept = 0.99 * old[name]
            expected = (variable.value.detach() - kept) * count / (count - 1)
            torch.testing.assert_close(tensor - kept, expected, rtol=1e-8, atol=0)


def test_dropout_follows_each_pooling_and_each_join(monkeypatch: pytest.MonkeyPatch) -> None:
    # What dropout does at random, a shrinking does for certain: it shows where dropout stands.
    def shrink() -> keras.layers.Layer:
        return keras.layers.Rescaling(0.8, offset=0.1)

    keras.utils.set_random_seed(7)
    theirs = keras_unet.unet(n_filters=4, make_drop=shrink)
    keras_unet.randomise(theirs, seed=8)
    ours = build_model("tutorial", n_filters=4)
    keras_unet.carry_over(theirs, ours)
    monkeypatch.setattr(blocks.Dropout, "forward", lambda _, x: 0.8 * x + 0.1)
    image = batch(torch.float32)[0]
    with torch.no_grad():
        expected = keras_unet.channels_first(theirs(keras_unet.channels_last(image)))
        torch.testing.assert_close(torch.sigmoid(ours.eval()(image)), expected, rtol=0, atol=1e-5)


def test_dropout_drops_the_share_of_keras() -> None:
    shares = {m.p for m in build_model("tutorial").modules() if isinstance(m, nn.Dropout)}
    theirs = [la.rate for la in keras_unet.unet().layers if isinstance(la, keras.layers.Dropout)]
    assert len(theirs) == 8
    assert shares == set(theirs) == {0.1}


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_weights_start_as_spread_as_those_of_keras(upsample: UpsampleMode) -> None:
    keras.utils.set_random_seed(3)
    theirs = keras_unet.unet(upsample=upsample)
    ours = build_model("tutorial", upsample=upsample)
    for name, variable, tensor, axes in keras_unet.pairs(theirs, ours):
        expected, found = variable.value.detach().permute(axes), tensor.detach()
        if not name.endswith("kernel"):
            assert torch.equal(found, expected), name
        elif found.numel() > 1000:
            assert found.std() == pytest.approx(expected.std().item(), rel=0.05), name
            assert nearly_largest(found) == pytest.approx(nearly_largest(expected), rel=0.05), name


def nearly_largest(weights: Tensor) -> float:
    """The size that one weight in a hundred exceeds: it tells a normal start from a cut one."""
    sizes = weights.abs().flatten()
    return sizes.kthvalue(round(0.99 * sizes.numel())).values.item()
