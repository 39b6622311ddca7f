"""The U-Net of 2015: its sizes, its start, and the overlap-tile strategy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from whatwhere.bundle import Card
from whatwhere.errors import ShapeError, UsageError
from whatwhere.nn.build import build_model, count_parameters, geometry
from whatwhere.predict.backends import TorchBackend
from whatwhere.predict.engine import Predictor
from whatwhere.tiling import frames, mirror
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization

LEGAL = [side for side in range(188, 700) if side % 16 == 12]


def small(bands: int = 1, classes: int = 1, **more: Any) -> nn.Module:
    torch.manual_seed(6)
    return build_model("unet2015", bands, classes, n_filters=1, **more).eval()


def test_the_papers_tile_comes_out_as_in_the_paper() -> None:
    net = small(classes=2)
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        assert net(torch.zeros(2, 1, 188, 220)).shape == (2, 2, 4, 36)


@pytest.mark.parametrize(("bands", "classes", "filters"), [(1, 2, 64), (3, 1, 5)])
def test_the_parameters_are_those_of_the_figure(bands: int, classes: int, filters: int) -> None:
    f = [filters * 2**level for level in range(5)]
    wanted = 0
    for inner, outer in zip([bands, *f], f, strict=False):  # down: two 3×3 convolutions each
        wanted += 9 * inner * outer + outer + 9 * outer * outer + outer
    for outer in f[:4]:  # up: 2×2, then two 3×3 on twice the channels and on them
        wanted += 4 * 2 * outer * outer + outer
        wanted += 9 * 2 * outer * outer + outer + 9 * outer * outer + outer
    wanted += filters * classes + classes
    net = build_model("unet2015", bands, classes, n_filters=filters)
    assert count_parameters(net).total == wanted
    if filters == 64:  # a well-known Keras version has another end: 3×3 to 2 maps, 1×1 to one
        assert wanted - (64 * 2 + 2) + (9 * 64 * 2 + 2) + (2 + 1) == 31_031_685


def test_there_are_twenty_three_convolutions() -> None:
    """As the paper says at the end of section 2."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    assert sum(isinstance(module, kinds) for module in small().modules()) == 23


@given(st.integers(1, 690), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_other_sizes_are_refused_and_the_nearest_named(side: int, other: int) -> None:
    good = LEGAL[other]
    net = small().to("meta")
    if side in LEGAL:
        assert net(torch.zeros(1, 1, side, good, device="meta")).shape == (
            *(1, 1, side - 184, good - 184),
        )
        return
    for shape in ((side, good), (good, side)):
        with pytest.raises(ShapeError, match=f"cannot take {shape[0]}×{shape[1]}") as caught:
            net(torch.zeros(1, 1, *shape, device="meta"))
        told = str(caught.value)
        assert "a side must be 12 (mod 16) and at least 188" in told
        named = told.split(f"Nearest to {side}: ")[1].rstrip(".").split(" or ")
        below = [n for n in range(188, side) if n % 16 == 12][-1:]
        above = [n for n in range(max(side, 188), side + 200) if n % 16 == 12][:1]
        assert named == [str(n) for n in below + above]


@pytest.mark.parametrize("shape", [(1, 188, 188), (1, 2, 188, 188)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"takes \(N, 1, H, W\), and was given \(1.*188"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("in_channels", 0, "in_channels must be at least 1, not 0"),
        ("n_classes", 0, "n_classes must be at least 1, not 0"),
        ("n_filters", 0, "n_filters must be at least 1, not 0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), not 1.0"),
    ],
)
def test_an_argument_out_of_range_is_named(argument: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model("unet2015", **{argument: value})


def test_it_takes_no_pretrained_weights() -> None:
    with pytest.raises(UsageError, match="no pretrained weights for unet2015. Take a backbone"):
        build_model("unet2015", pretrained=True)


def test_each_output_sees_its_window_and_nothing_beside_it() -> None:
    """With nothing negative and no maximum, each pixel seen has a gradient above 0."""
    net = small().double()
    for parameter in net.parameters():
        parameter.data.abs_().add_(0.01)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
    image = torch.rand(1, 1, 412, 412, dtype=torch.float64, requires_grad=True)
    logits = net(image)
    assert logits.shape[-1] == 412 - 2 * geometry(net).border
    for at in range(96, 112):  # a window may start at 96; the smallest has 188 px and 4 logits
        (slope,) = torch.autograd.grad(logits[0, 0, at, at], image, retain_graph=True)
        for seen in slope[0, 0].nonzero(as_tuple=True):
            last = 96 + 187 if at < 100 else 96 + 187 + 16
            assert (int(seen.min()), int(seen.max())) == (96, last)
    found = geometry(net)
    assert found == Geometry(stride=16, margin=92, border=92, remainder=12)


def test_dropout_stands_at_the_end_of_the_contracting_path() -> None:
    net = small(dropout=0.5)
    image = torch.randn(1, 1, 188, 188)
    assert torch.equal(net(image), net(image))
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Dropout)]
    assert [name.split(".")[0] for name in names] == ["c4", "c5"]
    assert not any(isinstance(m, nn.Dropout) for m in small(dropout=0.0).modules())


def test_the_start_is_hes() -> None:
    """Deviations of √(2 / N), N the incoming nodes of one neuron (the paper's section 3)."""
    torch.manual_seed(0)
    net = build_model("unet2015", 1, 2, n_filters=32)
    checked = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            incoming = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        elif isinstance(module, nn.ConvTranspose2d):  # windows of 2 at stride 2 do not overlap
            incoming = module.in_channels
        else:
            continue
        weight = module.weight.detach()
        assert not module.bias.any(), name
        if weight.numel() > 5000:
            assert float(weight.std()) == pytest.approx(math.sqrt(2 / incoming), rel=0.03), name
            assert abs(float(weight.mean())) < 0.05 * math.sqrt(2 / incoming), name
            checked += 1
    assert checked == 21


# ---------------------------------------------------------------- overlapping tiles


def card() -> Card:
    return Card(
        model="unet2015", arguments={}, parameters=1, bands=Bands(("grey",)), pixel_size=None,
        classes=Classes((ClassInfo("a", 1, (0, 0, 0), raw=(1,)),), "multilabel"),
        normalization=Normalization((0.0,), (1.0,)), resize=None, chip_size=(32, 32),
        orientation="upright", geometry=Geometry(16, 92, 92, 12), thresholds=(0.5,), scores={},
        objects={}, self_test={}, tuning={}, recipe={}, data={}, versions={}, created="",
    )  # fmt: skip


def padded(image: NDArray[Any]) -> NDArray[Any]:
    """The image with mirrored borders, at the smallest legal size, by NumPy."""
    pads = []
    for side in image.shape[1:]:
        whole = next(n for n in range(188, 10_000, 16) if n - 184 >= side)
        pads.append((92, whole - 92 - side))
    return np.pad(image, ((0, 0), *pads), mode="reflect")


SIZES = [(1, 1), (1, 40), (3, 300), (17, 5), (131, 97), (205, 388), (400, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_overlapping_tiles_are_as_one_exactly(size: tuple[int, int]) -> None:
    net = small(dropout=0.0).double()
    shape = geometry(net)
    image = np.random.default_rng(0).normal(size=(1, *size))
    with torch.no_grad():
        whole = net(torch.from_numpy(padded(image)[None]))[0].numpy()[:, : size[0], : size[1]]
        extended = mirror(image, (shape.window(size[0]), shape.window(size[1])), (92, 92))
        assert np.array_equal(extended, padded(image))
        tiled = np.full_like(image, np.nan)
        for row, rows, high in frames(size[0], 252, shape):
            for column, columns, wide in frames(size[1], 252, shape):
                window = extended[None, :, row : row + rows, column : column + columns]
                part = net(torch.from_numpy(window))[0].numpy()
                tiled[:, row : row + high, column : column + wide] = part[:, :high, :wide]
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-12)
    assert max(size) < 10 or whole.std() > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_the_predictors_tiles_are_as_one(size: tuple[int, int]) -> None:
    net = small(dropout=0.0)
    image = np.random.default_rng(0).uniform(size=(1, *size)).astype(np.float32)
    with torch.no_grad():
        logits = net(torch.from_numpy(padded(image)[None]))[0, :, : size[0], : size[1]]
    seen: list[tuple[int, ...]] = []
    backend = TorchBackend(net, "multilabel")

    class Noting:
        normalizes = False

        def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(images.shape)
            return backend.run(images)

    tiled = Predictor(card(), Noting(), tile=236).probabilities(image)
    assert tiled.shape == (1, *size)
    np.testing.assert_allclose(tiled, logits.sigmoid().numpy(), rtol=0, atol=1e-6)
    assert max(max(shape[2:]) for shape in seen) <= 236
    assert len(seen) == math.prod(-(-n // 48) if n > 52 else 1 for n in size)


def test_a_tile_that_is_too_small_says_what_to_take() -> None:
    backend = TorchBackend(small(), "multilabel")
    image = np.zeros((1, 300, 300), dtype=np.float32)
    with pytest.raises(UsageError, match="a tile of 200 px is too small.* Take at least 204 px"):
        Predictor(card(), backend, tile=200).probabilities(image)
    assert Predictor(card(), backend, tile=204).probabilities(image[:, :20]).shape == (1, 20, 300)


def test_training_reaches_every_parameter() -> None:
    net = small(dropout=0.0).train()
    logits: Tensor = net(torch.randn(1, 1, 220, 188, generator=torch.Generator().manual_seed(2)))
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
