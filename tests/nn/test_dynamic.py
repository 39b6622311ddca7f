"""U-Nets on backbones: what the decoder is planned from, what it does, and how far it sees."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from own_nets import Chain, Patches, Squares
from whatwhere.errors import ShapeError, UsageError
from whatwhere.nn.blocks import ShuffleUp, cut_back, mirror_up
from whatwhere.nn.build import (
    build_model,
    depth_groups,
    freeze,
    geometry,
    unfreeze,
)
from whatwhere.nn.dynamic import STEP_MODES, DynamicUNet, StepMode, join_presence, plan_decoder
from whatwhere.nn.encoder import Encoder, Level
from whatwhere.nn.memory import inference_memory_mb, training_memory_mb
from whatwhere.predict.backends import TorchBackend
from whatwhere.predict.engine import Predictor
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization


def net_of(backbone: str | nn.Module, bands: int = 3, classes: int = 1, **more: Any) -> DynamicUNet:
    torch.manual_seed(4)
    return cast(DynamicUNet, build_model(backbone, bands, classes, **more)).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shapes_into_steps(net: DynamicUNet, image: Tensor) -> list[tuple[int, int | None]]:
    """(channels that come up, channels of the skip) of each step, as they are when it runs."""
    seen: list[tuple[int, int | None]] = []

    def note(_step: nn.Module, inputs: tuple[Any, ...]) -> None:
        skip = inputs[1] if len(inputs) > 1 else None
        seen.append((inputs[0].shape[1], None if skip is None else skip.shape[1]))

    hooks = [step.register_forward_pre_hook(note) for step in net.decoder]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    return seen


# ---------------------------------------------------------------- the plan


def test_a_level_that_is_missing_becomes_a_step_without_a_skip() -> None:
    net = net_of("test_convnext")
    assert [level.reduction for level in net.encoder.levels] == [4, 8, 16, 32]
    skips = [skip for _, skip in shapes_into_steps(net, noise(1, 3, 64, 64))]
    assert skips == [48, 32, 24, None, None]


def test_maps_of_the_images_own_size_are_joined_last() -> None:
    net = net_of("darknet17")
    assert net.encoder.levels[0] == Level(32, 1)
    steps = shapes_into_steps(net, noise(1, 3, 64, 64))
    assert [skip for _, skip in steps] == [512, 256, 128, 64, 32]
    image = noise(1, 3, 64, 64).requires_grad_()
    assert net(image).shape == (1, 1, 64, 64)


def test_patches_of_14_px_go_up_once_and_are_then_enlarged() -> None:
    net = net_of(Patches(14), 3)
    assert (net.encoder.stride, net.rest, len(net.decoder)) == (14, 7, 1)
    with torch.no_grad():
        logits = net(noise(1, 3, 28, 28))
        bottom = net.head(net.decoder[0](net.encoder(noise(1, 3, 28, 28))[-1]))
    assert bottom.shape == (1, 1, 4, 4)
    wanted = nn.functional.interpolate(bottom, size=(28, 28), mode="bilinear")
    torch.testing.assert_close(logits, wanted)


def test_timms_patches_of_14_px_are_taken() -> None:
    net = net_of("eva02_tiny_patch14_224")
    with torch.no_grad():
        assert net(noise(1, 3, 45, 29)).shape == (1, 1, 45, 29)
    assert net.encoder.stride == 14


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 14, 16, 28, 32, 64]), min_size=1))
def test_a_plan_comes_back_to_the_images_size(reductions: list[int]) -> None:
    levels = [Level(3 + r, r) for r in sorted(set(reductions))]
    plan, rest = plan_decoder(levels)
    assert 2 ** len(plan) * rest == levels[-1].reduction and rest % 2
    for step, skip in enumerate(plan, start=1):
        reduction = levels[-1].reduction // 2**step
        wanted = [level for level in levels[:-1] if level.reduction == reduction]
        assert [skip] == (wanted or [None])


# ---------------------------------------------------------------- modules of one's own


def test_a_module_of_ones_own_is_measured() -> None:
    """Stride-2 convolutions with padding, and nothing said about the features."""
    net = net_of(Chain(2, (4, 6, 8)), 2, 3)
    assert net.encoder.levels == (Level(4, 2), Level(6, 4), Level(8, 8))
    assert (net.encoder.stride, net.encoder.exact) == (8, True)
    assert shapes_into_steps(net, noise(2, 2, 9, 23)) == [(8, 6), (64, 4), (32, None)]
    assert net(noise(2, 2, 9, 23)).shape == (2, 3, 9, 23)


def test_maps_with_the_channels_last_are_turned() -> None:
    torch.manual_seed(0)
    plain = Chain(2, (4, 6))
    turned = Chain(2, (4, 6), last=True)
    turned.load_state_dict(plain.state_dict())
    one, other = Encoder(plain, 2, "plain"), Encoder(turned, 2, "turned")
    assert one.levels == other.levels
    image = noise(1, 2, 16, 24)
    for a, b in zip(one(image), other(image), strict=True):
        assert torch.equal(a, b)


def test_several_maps_of_one_size_are_joined() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 3, 4, 4), nn.Conv2d(3, 5, 1)

        def forward(self, image: Tensor) -> list[Tensor]:
            first = self.first(image)
            return [first, self.second(first)]

    encoder = Encoder(Twice(), 1, "Twice")
    assert encoder.levels == (Level(8, 4),)
    (joined,) = encoder(noise(1, 1, 8, 12))
    first = encoder.body.first(noise(1, 1, 8, 12))
    torch.testing.assert_close(joined, torch.cat([first, encoder.body.second(first)], dim=1))


def test_maps_that_are_not_quite_a_fraction_of_the_image_are_fitted() -> None:
    """Unpadded convolutions: maps a little smaller than a power of two would be."""
    net = net_of(Chain(1, (4, 6, 8), padding=0), 1)
    assert not net.encoder.exact
    assert [level.reduction for level in net.encoder.levels] == [2, 4, 8]
    for side in (1, 8, 33, 50):
        image = noise(1, 1, side, side + 5)
        logits = net(image)
        assert logits.shape == image.shape and torch.isfinite(logits).all()


def test_a_module_of_one_size_gets_the_image_in_squares() -> None:
    torch.manual_seed(0)
    body = Squares(96)
    encoder = Encoder(body, 2, "Squares")
    assert (encoder.stride, encoder.square) == (96, 96)
    assert [level.reduction for level in encoder.levels] == [4, 8]
    image = noise(2, 2, 192, 288)
    for number, maps in enumerate(encoder(image)):
        side = 96 // encoder.levels[number].reduction
        for row in range(2):
            for column in range(3):
                square = image[..., row * 96 : row * 96 + 96, column * 96 : column * 96 + 96]
                part = maps[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
                torch.testing.assert_close(part, body(square)[number])
    net = net_of(Squares(96), 2)
    assert net(noise(1, 2, 101, 5)).shape == (1, 1, 101, 5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_norm_over_pooled_maps_learns_from_one_image_too(batch: int) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 2, 2)
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid()
            )

        def forward(self, image: Tensor) -> list[Tensor]:
            x = self.conv(image)
            return [x * self.gate(x)]

    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Pooled()(noise(1, 1, 8, 8))
    net = net_of(Pooled(), 1).train()
    net(noise(batch, 1, 9, 9)).mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


class Tensors(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


class Flat(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.flatten(1)]


class Nothing(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return []


class Moody(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        if image.shape[-1] == image.shape[-2] >= 64:
            raise ValueError("no large squares")
        return [image[:, :1].expand(-1, image.shape[-1], -1, -1)]


class Empty(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image[..., :0, :0]]


class Strict(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        raise ValueError("no image is good enough")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (Tensors(), "Tensors takes no image .* returns no list of feature maps"),
        (Nothing(), "Nothing takes no image .* returns no list of feature maps"),
        (Flat(), "gives features of 2 dimensions, not 4"),
        (Empty(), "gives empty features"),
        (Moody(), "its feature maps depend on the image's size"),
        (Strict(), r"no image is good enough\). Take resnet34"),
    ],
)
def test_a_module_that_gives_no_feature_maps_is_told(body: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(body, 3)


def test_a_module_takes_no_arguments_of_timms() -> None:
    with pytest.raises(UsageError, match="Chain is a module: set its own arguments and weights"):
        build_model(Chain(1, (2,)), 1, drop_path_rate=0.1)
    with pytest.raises(UsageError, match="Chain is a module"):
        build_model(Chain(1, (2,)), 1, pretrained=True)


# ---------------------------------------------------------------- the decoder's arguments


def test_the_decoder_is_as_wide_as_asked() -> None:
    net = net_of("test_resnet", decoder_channels=(40, 30, 20, 10, 6))
    assert [up for up, _ in shapes_into_steps(net, noise(1, 3, 64, 64))] == [96, 40, 30, 20, 10]
    assert net.head.in_channels == 6
    usual = net_of("test_resnet")
    assert [up for up, _ in shapes_into_steps(usual, noise(1, 3, 64, 64))] == [96, 256, 128, 64, 32]


def test_another_number_of_widths_is_told() -> None:
    with pytest.raises(UsageError, match=r"needs 5 numbers, from the deepest step.*, not 2"):
        build_model("test_resnet", decoder_channels=(8, 4))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("in_channels", 0, "in_channels must be at least 1, not 0"),
        ("n_classes", 0, "n_classes must be at least 1, not 0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), not 1.0"),
        ("dropout", -0.1, r"dropout must be in \[0, 1\), not -0.1"),
        ("upsample", "cubic", "upsample must be one of nearest, bilinear, transposed, shuffle"),
        ("norm", "layer", "norm must be one of batch, group, none, not 'layer'"),
        ("activation", "tanh", "activation must be one of relu, leaky_relu, gelu, silu, not 'ta"),
    ],
)
def test_an_argument_out_of_range_is_named(argument: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DynamicUNet(Chain(3, (4,)), **{argument: value})


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_step_is_made_of_what_was_asked(norm: str, activation: str) -> None:
    """The last step of a net against its formula, written with NumPy."""
    net = net_of(Chain(1, (4,)), 1, norm=norm, activation=activation, decoder_channels=(8,))
    with torch.no_grad():
        for module in net.decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
        net = net.double()
        image = noise(1, 1, 8, 6).double()
        found = net(image)[0].numpy()
        (maps,) = net.encoder(image)
    x = np.kron(maps[0].numpy(), np.ones((2, 2)))
    state = {key: value.numpy() for key, value in net.decoder[0].layers.state_dict().items()}
    for conv, after in ((0, 1), (3, 4)):
        weight = state[f"{conv}.weight"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        x = np.zeros((8, *x.shape[1:]))
        for row in range(3):
            for column in range(3):
                shifted = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
                x += np.tensordot(weight[:, :, row, column], shifted, axes=1)
        if norm == "none":
            x += state[f"{conv}.bias"][:, None, None]
        elif norm == "batch":
            mean, var = state[f"{after}.running_mean"], state[f"{after}.running_var"]
            x = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
        else:  # two groups of four
            groups = x.reshape(2, -1)
            middle, spread = groups.mean(axis=1), groups.var(axis=1)
            x = ((groups - middle[:, None]) / np.sqrt(spread[:, None] + 1e-5)).reshape(x.shape)
        erf = np.vectorize(math.erf)(x / math.sqrt(2))
        x = {
            "relu": np.maximum(x, 0),
            "leaky_relu": np.where(x > 0, x, 0.01 * x),
            "gelu": x * (1 + erf) / 2,
            "silu": x / (1 + np.exp(-x)),
        }[activation]
    head = net.head.weight.detach().numpy()[:, :, 0, 0]
    wanted = np.tensordot(head, x, axes=1) + net.head.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_dropout_drops_in_training_alone() -> None:
    net = net_of(Chain(1, (4, 4)), 1, dropout=0.5, norm="none")
    image = noise(1, 1, 16, 16)
    assert torch.equal(net(image), net(image))
    net.train()
    assert not torch.equal(net(image), net(image))
    still = net_of(Chain(1, (4, 4)), 1, norm="none").train()
    assert torch.equal(still(image), still(image))


def test_a_fresh_shuffle_shows_no_checkerboard() -> None:
    torch.manual_seed(0)
    out = ShuffleUp(6, 5)(noise(2, 6, 4, 7)).detach()
    assert out.shape == (2, 5, 8, 14) and out.std() > 0.1
    blocks = out.reshape(2, 5, 4, 2, 7, 2)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


def test_a_fresh_shuffle_is_spread_as_he_asks() -> None:
    torch.manual_seed(0)
    weight = ShuffleUp(300, 400).conv.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_what_is_mirrored_up_is_cut_back(height: int, width: int, more: int, right: int) -> None:
    image = noise(1, 2, height, width)
    assert torch.equal(
        cut_back(mirror_up(image, height + more, width + right), height, width), image
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32), (1, 3, 32, 0)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"takes \(N, 3, H, W\), and was given \(.*32"):
        net_of("test_resnet")(torch.zeros(shape))


def test_odd_sizes_are_predicted_as_their_mirrored_images() -> None:
    net = net_of("test_resnet").double()
    image = noise(1, 3, 37, 50).double()
    mirrored = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 27), (0, 14)), mode="reflect")
    with torch.no_grad():
        whole = net(torch.from_numpy(mirrored))
        torch.testing.assert_close(net(image), whole[..., :37, :50], rtol=0, atol=0)


# ---------------------------------------------------------------- anything


def logit_of_product(a: float, b: float) -> float:
    """In 64 bits, without the logarithm of a number near 0 or 1."""
    return -(np.logaddexp(np.logaddexp(-a, -b), -a - b))


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_joining_is_the_logit_of_the_product(a: float, b: float) -> None:
    found = join_presence(
        torch.full((1, 1, 1, 1), a, dtype=torch.float64), torch.full((1, 1), b, dtype=torch.float64)
    ).item()
    p = 1 / (1 + np.exp(-np.float64(a))) * (1 / (1 + np.exp(-np.float64(b))))
    assert 1 / (1 + np.exp(-found)) == pytest.approx(p, rel=1e-12)
    if p < 0.999:  # else 1 - p has lost its digits
        assert found == pytest.approx(float(np.log(p / (1 - p))), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("a", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("b", [-100.0, 0.0, 100.0])
def test_joining_is_stable_far_from_zero(a: float, b: float) -> None:
    pixels = torch.full((1, 1, 2, 2), a, requires_grad=True)
    presence = torch.full((1, 1), b, requires_grad=True)
    joined = join_presence(pixels, presence)
    np.testing.assert_allclose(
        joined.detach().numpy(), logit_of_product(a, b), rtol=1e-6, atol=1e-9
    )
    joined.sum().backward()
    assert torch.isfinite(pixels.grad).all() and torch.isfinite(presence.grad).all()


def test_presence_multiplies_the_pixels_and_comes_from_the_deepest_maps() -> None:
    net = net_of("test_resnet", classes=2, anything=True)
    image = noise(2, 3, 40, 33)
    with torch.no_grad():
        pixels, presence = net.parts(image)
        deepest = net.encoder(mirror_up(image, 64, 64))[-1]
        wanted = deepest.mean(dim=(2, 3)) @ net.presence.weight.T + net.presence.bias
        torch.testing.assert_close(presence, wanted)
        product = pixels.sigmoid() * presence.sigmoid()[:, :, None, None]
        torch.testing.assert_close(net(image).sigmoid(), product)
    assert net_of("test_resnet").parts(image)[1] is None


# ---------------------------------------------------------------- freezing and depth


def step(net: nn.Module) -> None:
    """One step of training, with momentum to have something to remember."""
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.train()
    logits = net(noise(2, 3, 32, 32, seed=1))
    (logits * noise(*logits.shape, seed=2)).sum().backward()
    optimiser.step()


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def test_a_frozen_backbone_stands_still_and_the_decoder_learns() -> None:
    net = net_of("test_resnet")
    before = copy.deepcopy(net.state_dict())
    freeze(net)
    step(net)
    moved = changed(net, before)
    assert not {key for key in moved if key.startswith("encoder")}
    decoder = {key for key, _ in net.named_parameters() if not key.startswith("encoder")}
    assert decoder <= moved
    assert any(key.endswith("running_mean") for key in moved)


def test_a_backbone_learns_again_when_it_is_set_free() -> None:
    net = net_of("test_resnet")
    freeze(net)
    net.train()
    unfreeze(net)
    assert net.encoder.body.training
    before = copy.deepcopy(net.state_dict())
    step(net)
    moved = changed(net, before)
    assert {key for key in before if key.endswith("running_mean")} <= moved
    assert {"encoder.body.conv1.0.weight", "head.weight"} <= moved
    freeze(net)
    net.eval()
    unfreeze(net)
    assert not any(module.training for module in net.modules())


def test_what_rested_before_rests_on() -> None:
    net = net_of("test_resnet")
    still = net.encoder.body.get_parameter("conv1.0.weight")
    still.requires_grad_(False)
    freeze(net)
    freeze(net)
    unfreeze(net)
    resting = [key for key, one in net.named_parameters() if not one.requires_grad]
    assert resting == ["encoder.body.conv1.0.weight"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("test_resnet", {"conv1.0.weight"}),
        ("resnet10t", {"conv1.0.weight"}),
        ("test_vit", {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}),
    ],
)
def test_the_first_filters_may_learn_while_the_rest_stands_still(
    name: str, first: set[str]
) -> None:
    net = net_of(name)
    before = copy.deepcopy(net.state_dict())
    freeze(net, but_first=True)
    step(net)
    encoder = {key for key in changed(net, before) if key.startswith("encoder")}
    assert encoder == {f"encoder.body.{key}" for key in first}
    unfreeze(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    net.encoder.body.get_parameter(min(first)).requires_grad_(False)
    freeze(net, but_first=True)
    learning = {key for key, one in net.encoder.body.named_parameters() if one.requires_grad}
    assert learning == first - {min(first)}


@pytest.mark.parametrize("call", [freeze, unfreeze])
def test_a_net_without_a_backbone_cannot_be_frozen(call: Any) -> None:
    with pytest.raises(UsageError, match="a TutorialUNet has no backbone to freeze"):
        call(build_model("tutorial", n_filters=2))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "hrnet_w18_small"])
def test_depth_groups_have_each_parameter_once(name: str) -> None:
    net = net_of(name)
    groups = depth_groups(net)
    numbers = [id(parameter) for group in groups for parameter in group]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {id(parameter) for parameter in net.parameters()}
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    assert not any(names[id(p)].startswith("encoder") for p in groups[-1])


def test_depth_groups_go_from_the_stem_to_the_decoder() -> None:
    net = net_of("resnet10t")
    freeze(net)
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    groups = [[names[id(p)].removeprefix("encoder.body.") for p in g] for g in depth_groups(net)]
    assert len(groups) == 6
    assert all(name.startswith(("conv1", "bn1")) for name in groups[0])
    for number, group in enumerate(groups[1:-1], start=1):
        assert group and all(name.startswith(f"layer{number}") for name in group)
    assert not any(p.requires_grad for p in net.encoder.parameters())  # as it was
    assert depth_groups(build_model("tutorial", n_filters=2))[1:] == []


# ---------------------------------------------------------------- how far a pixel sees


def net_with_statistics(body: nn.Module) -> DynamicUNet:
    net = net_of(body, 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


@pytest.mark.parametrize("upsample", STEP_MODES)
@pytest.mark.parametrize("body", [Chain(1, (3, 4)), Chain(1, (3, 4, 5)), Patches(8, 1)])
def test_the_margin_is_as_far_as_a_gradient_reaches(body: nn.Module, upsample: StepMode) -> None:
    """With nothing negative each pixel that is seen has a gradient above 0.

    What counts are whole strips, for windows start at multiples of the stride.
    """
    net = net_of(copy.deepcopy(body), 1, upsample=upsample, norm="none").double()
    for parameter in net.parameters():
        parameter.data.abs_().add_(0.01)
    side, stride = 144, net.encoder.stride
    image = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    logits = net(image)
    reach, strips = 0, 0
    for at in range(72, 72 + stride):
        (slope,) = torch.autograd.grad(logits[0, 0, at, at], image, retain_graph=True)
        rows, columns = slope[0, 0].nonzero(as_tuple=True)
        for seen in (rows, columns):
            first, last = int(seen.min()), int(seen.max())
            assert first > 0 and last < side - 1  # not cut by the image
            reach = max(reach, at - first, last - at)
            strips = max(strips, at - (first // stride * stride + stride - 1))
            strips = max(strips, last // stride * stride - at)
    found = geometry(net)
    assert (found.stride, found.margin, found.border) == (stride, strips, 0)
    assert reach - stride < strips <= reach


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mobilenetv3_small_050", {}),  # squeeze-and-excitation
        ("test_vit", {}),  # attention
        ("test_resnet", {"norm": "group"}),
        ("test_resnet", {"anything": True}),
        ("test_maxvit", {}),  # windows and grids
    ],
)
def test_a_net_that_sees_everything_has_no_margin(name: str, more: dict[str, Any]) -> None:
    assert geometry(net_of(name, **more)).margin is None


@pytest.mark.slow
def test_a_net_of_shifted_windows_has_no_margin() -> None:
    found = geometry(net_of("swin_tiny_patch4_window7_224"))
    assert (found.stride, found.margin) == (32, None)


def test_asking_for_the_geometry_leaves_the_net_as_it_was() -> None:
    net = net_of(Chain(1, (3, 4)), 1).train()
    before = copy.deepcopy(net.state_dict())
    geometry(net)
    assert net.training and not changed(net, before)


LABELS = Classes((ClassInfo("a", 1, (0, 0, 0), raw=(1,)),), "multilabel")


def predictor(net: nn.Module, shape: Geometry, tile: int, bands: int) -> Predictor:
    from whatwhere.bundle import Card

    card = Card(
        model="own:x", arguments={}, parameters=1, classes=LABELS, pixel_size=None,
        bands=Bands(tuple(f"b{i}" for i in range(bands)), tuple(range(1, bands + 1))),
        normalization=Normalization((0.0,) * bands, (1.0,) * bands), resize=None,
        chip_size=(32, 32), orientation="upright", geometry=shape, thresholds=(0.5,), scores={},
        objects={}, self_test={}, tuning={}, recipe={}, data={}, versions={}, created="",
    )  # fmt: skip
    return Predictor(card, TorchBackend(net, "multilabel"), tile)


@pytest.mark.parametrize(
    ("backbone", "bands", "size", "tile"),
    [
        (Chain(1, (3, 4, 5)), 1, (150, 333), 104),
        (Squares(64), 2, (130, 300), 200),
        ("resnet10t", 3, (60, 1400), 800),
        ("vgg11", 3, (40, 900), 544),
    ],
)
def test_tiles_give_the_answers_of_the_whole(
    backbone: Any, bands: int, size: tuple[int, int], tile: int
) -> None:
    net = net_of(backbone, bands)
    shape = geometry(net)
    assert shape.margin is not None and 2 * shape.margin < tile < max(size)
    image = noise(bands, *size).numpy()
    cut = predictor(net, shape, tile, bands)
    whole = predictor(net, shape, 10_000, bands).probabilities(image)
    np.testing.assert_allclose(cut.probabilities(image), whole, rtol=0, atol=1e-5)
    assert whole.std() > 1e-3 and not cut.approximate


def test_a_net_that_sees_the_whole_tile_says_that_its_tiles_differ() -> None:
    net = net_of("test_vit")
    one = predictor(net, geometry(net), 64, 3)
    assert one.probabilities(noise(3, 40, 150).numpy()).shape == (1, 40, 150)
    assert one.approximate


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["tutorial", "unet2015", "test_resnet", "test_mambaout"])
def test_the_memory_told_is_what_a_run_keeps(name: str) -> None:
    """On real arrays: each memory that the way back holds, counted by its address."""
    torch.manual_seed(0)
    net = build_model(name, 3).train()
    side = 188 if name == "unet2015" else 192
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(torch.zeros(1, 3, side, side))
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    held = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    assert training_memory_mb(net, side) == pytest.approx(held / 2**20, rel=0.1, abs=1)


def test_memory_on_the_way_through_is_counted_as_it_comes_and_goes() -> None:
    def layers(count: int) -> nn.Module:
        return nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(count)])

    plane = 4 * 512 * 512 * 4 / 2**20  # four channels of 32 bits
    # What goes in, what comes out, and the one before: more layers do not hold more.
    assert inference_memory_mb(layers(2), 4, 512) == pytest.approx(2 * plane, abs=plane + 1)
    assert inference_memory_mb(layers(9), 4, 512) == inference_memory_mb(layers(3), 4, 512)
