"""The tutorial's net by its effects: sizes, gradients, what a pixel sees, and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from whatwhere.errors import ShapeError
from whatwhere.nn.blocks import UPSAMPLE_MODES, UpsampleMode
from whatwhere.nn.build import build_model, geometry
from whatwhere.nn.unet import STRIDE
from whatwhere.tiling import tiles

SIDES = st.one_of(st.sampled_from([1, 15, 16, 17, 32, 33]), st.integers(1, 70))


def net_with_statistics(upsample: UpsampleMode, kernel_size: int = 3) -> nn.Module:
    """A small float64 net whose batch norm does something, ready to predict."""
    torch.manual_seed(5)
    net = build_model("tutorial", n_filters=2, upsample=upsample, kernel_size=kernel_size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.double().eval()


@given(st.integers(1, 2), SIDES, SIDES, st.sampled_from(UPSAMPLE_MODES), st.booleans())
@example(1, 1, 1, "transposed", True)
@example(1, 16, 16, "nearest", True)
@example(1, 1, 70, "bilinear", False)
@settings(max_examples=50, deadline=None)
def test_any_size_comes_out_as_it_went_in(
    n: int, height: int, width: int, upsample: UpsampleMode, training: bool
) -> None:
    torch.manual_seed(2)
    net = build_model("tutorial", 2, 3, n_filters=2, upsample=upsample).train(training)
    logits = net(torch.randn(n, 2, height, width))
    assert logits.shape == (n, 3, height, width)
    assert torch.isfinite(logits).all()
    if training:
        (logits * torch.randn_like(logits)).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if min(height, width) >= 32:
                assert parameter.grad.any(), name


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (33, 47), (101, 101)])
def test_odd_sizes_are_predicted_as_their_mirrored_images(shape: tuple[int, int]) -> None:
    net = net_with_statistics("transposed")
    image = torch.randn(1, 1, *shape, dtype=torch.float64)
    missing = [-side % STRIDE for side in shape]
    mirrored = np.pad(image.numpy(), ((0, 0), (0, 0), *((0, m) for m in missing)), mode="reflect")
    with torch.no_grad():
        whole = net(torch.from_numpy(mirrored))
        torch.testing.assert_close(net(image), whole[..., : shape[0], : shape[1]], rtol=0, atol=0)


def test_predicting_leaves_the_image_as_it_was() -> None:
    net = net_with_statistics("transposed")
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    before = image.clone()
    net(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 3, 32, 32), (1, 1, 0, 32), (1, 1, 32, 0)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"takes \(N, 1, H, W\), and was given \(.*32"):
        build_model("tutorial", n_filters=2)(torch.zeros(shape))


@pytest.mark.parametrize("upsample", UPSAMPLE_MODES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_pixel_sees_as_far_as_the_margin_and_no_farther(
    upsample: UpsampleMode, kernel_size: int
) -> None:
    # With nothing negative and no maximum, each pixel seen has a gradient above 0.
    net = build_model("tutorial", n_filters=1, upsample=upsample, kernel_size=kernel_size)
    for parameter in net.parameters():
        parameter.data.abs_().add_(0.01)
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
    image = torch.rand(1, 1, 352, 352, dtype=torch.float64, requires_grad=True)
    logits = net.double().eval()(image)
    reach = max(_reach(logits, image, at) for at in range(160, 176))
    assert reach == net.margin() == geometry(net).margin


def _reach(logits: Tensor, image: Tensor, at: int) -> int:
    """How far the pixel in row and column `at` sees."""
    (gradient,) = torch.autograd.grad(logits[0, 0, at, at], image, retain_graph=True)
    rows, columns = gradient[0, 0].nonzero(as_tuple=True)
    ends = torch.stack([rows.min(), rows.max(), columns.min(), columns.max()])
    assert ends.min() > 0
    assert ends.max() < 351  # not cut by the image
    return int((ends - at).abs().max())


@pytest.mark.parametrize(
    ("upsample", "kernel_size", "shape", "tile"),
    [
        ("transposed", 3, (401, 601), 400),
        ("bilinear", 3, (330, 545), 400),
        *((u, 1, s, 130) for u in UPSAMPLE_MODES for s in [(200, 300), (193, 305), (97, 512)]),
    ],
)
def test_tiled_predictions_are_those_of_the_whole(
    upsample: UpsampleMode, kernel_size: int, shape: tuple[int, int], tile: int
) -> None:
    net = net_with_statistics(upsample, kernel_size)
    image = torch.randn(1, 1, *shape, dtype=torch.float64)
    known = geometry(net)
    tiled = torch.full_like(image, torch.nan)
    n = 0
    with torch.no_grad():
        whole = net(image)
        for part in tiles(*shape, tile, known.stride, known.margin):
            logits = net(image[..., *part.window.slices])
            tiled[..., *part.core.slices] = logits[..., *part.inner.slices]
            n += 1
    assert n >= 4
    assert whole.std() > 0.01
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
