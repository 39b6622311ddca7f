"""The pieces of the net by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whatwhere.nn.blocks import (
    UPSAMPLE_MODES,
    ConvBlock,
    Dropout,
    UpsampleMode,
    make_upsample,
    mirror_up,
)


@given(
    old=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    more=st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
@settings(max_examples=50, deadline=None)
def test_mirroring_is_numpys_reflection(old: tuple[int, int], more: tuple[int, int]) -> None:
    image = torch.arange(2.0 * old[0] * old[1]).reshape(1, 2, *old)
    found = mirror_up(image, old[0] + more[0], old[1] + more[1])
    pad = ((0, 0), (0, 0), (0, more[0]), (0, more[1]))
    np.testing.assert_array_equal(found.numpy(), np.pad(image.numpy(), pad, mode="reflect"))


@pytest.mark.parametrize("mode", UPSAMPLE_MODES)
def test_upsampling_doubles_the_size_and_sets_the_channels(mode: UpsampleMode) -> None:
    assert make_upsample(6, 4, mode)(torch.zeros(2, 6, 5, 7)).shape == (2, 4, 10, 14)


def test_a_transposed_convolution_lacks_the_last_row_and_column_of_the_full_one() -> None:
    torch.manual_seed(2)
    layer = make_upsample(3, 2, "transposed").double()
    image = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = layer.conv.weight, layer.conv.bias
    assert isinstance(weight, torch.Tensor) and isinstance(bias, torch.Tensor)
    full = torch.nn.functional.conv_transpose2d(image, weight, bias, stride=2)
    found, wanted = layer(image), full[..., :-1, :-1]
    torch.testing.assert_close(found, wanted)
    ways = torch.randn_like(wanted)
    inputs = (image, weight, bias)
    for one, other in zip(
        torch.autograd.grad(found, inputs, ways),
        torch.autograd.grad(wanted, inputs, ways),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_block_keeps_the_size_and_sets_the_channels(kernel_size: int) -> None:
    block = ConvBlock(3, 4, kernel_size=kernel_size)
    assert block(torch.randn(2, 3, 5, 7)).shape == (2, 4, 5, 7)


def test_a_block_without_batch_norm_has_convolutions_alone() -> None:
    block = ConvBlock(3, 4, batchnorm=False)
    assert [tuple(p.shape) for p in block.parameters()] == [(4, 3, 3, 3), (4,), (4, 4, 3, 3), (4,)]
    assert not list(block.buffers())


def test_the_momentum_is_the_share_of_the_running_mean_that_stays() -> None:
    block = ConvBlock(1, 2, momentum=0.75)
    conv, norm = block.layers[0], block.layers[1]
    norm.running_mean.fill_(8.0)
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        means = conv(image).mean(dim=(0, 2, 3))
        block.train()(image)
    torch.testing.assert_close(norm.running_mean, 0.75 * 8.0 + 0.25 * means)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_a_share_and_keeps_the_mean(p: float, layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    drop = Dropout(p).train()
    image = torch.rand(3, 5, 67, 71).add(1).contiguous(memory_format=layout).requires_grad_()
    found = drop(image)
    kept = found != 0
    count = kept.numel()
    assert abs(float(kept.float().mean()) - (1 - p)) < 4 * (p * (1 - p) / count) ** 0.5
    torch.testing.assert_close(found[kept], image[kept] / (1 - p), rtol=2e-4, atol=0)
    assert found.is_contiguous(memory_format=layout)
    found.backward(torch.full_like(found, 2.0))
    torch.testing.assert_close(image.grad, kept / (1 - p) * 2, rtol=2e-4, atol=0)
    # Neighbours have nothing to do with each other, also those of one draw.
    flat = kept.flatten().float() - kept.float().mean()
    for apart in (1, 2, 3, 4, 71):
        assert abs(float((flat[apart:] * flat[:-apart]).mean())) < 4 * p * (1 - p) / count**0.5


def test_dropout_follows_the_seed_and_rests_when_nothing_is_learned() -> None:
    image, drop = torch.rand(1, 2, 9, 9), Dropout(0.5)
    torch.manual_seed(1)
    first = drop(image)
    assert not torch.equal(first, drop(image))
    torch.manual_seed(1)
    assert torch.equal(first, drop(image))
    assert torch.equal(drop.eval()(image), image)
    assert torch.equal(Dropout(0.0).train()(image), image)


def test_dropout_keeps_the_mean_in_sixteen_bits() -> None:
    torch.manual_seed(4)
    found = Dropout(0.1).train()(torch.ones(2**16, dtype=torch.bfloat16))
    assert set(found.tolist()) == {0.0, float(torch.tensor(1 / 0.9).bfloat16())}


def test_dropout_in_place_gives_the_same_in_the_same_memory() -> None:
    image = torch.rand(2, 3, 9, 9, requires_grad=True)
    results = []
    for inplace in (False, True):
        torch.manual_seed(5)
        doubled = 2 * image
        found = Dropout(0.3, inplace=inplace).train()(doubled)
        assert (found.data_ptr() == doubled.data_ptr()) is inplace
        results.append((found.detach(), torch.autograd.grad(found.square().sum(), image)[0]))
    assert all(map(torch.equal, *results))


def test_the_gradient_of_dropout_is_that_of_what_was_kept() -> None:
    image = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def same(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        found: torch.Tensor = Dropout(0.4).train()(x)
        return found

    assert torch.autograd.gradcheck(same, (image,))
