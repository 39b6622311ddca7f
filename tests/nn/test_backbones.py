"""The contract that nets on backbones keep, whatever the backbone is.

Twenty-five backbones of different families, each with every way of doubling the size. Six of very
different kinds run in the quick suite: a plain residual net, one whose finest maps have the image's
own size, one that starts with patches of 4 px, one whose channels come last, one with
squeeze-and-excitation, and a plain transformer with maps of one size alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, export

from whatwhere import bundle
from whatwhere.bundle import Card
from whatwhere.nn.build import build_model, count_parameters
from whatwhere.nn.dynamic import STEP_MODES, DynamicUNet, StepMode
from whatwhere.predict.backends import TorchBackend, note_answers
from whatwhere.predict.engine import load
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization

QUICK = (
    "test_resnet",
    "darknet17",  # has maps of the image's own size
    "test_convnext",  # has none of half the size
    "test_mambaout",  # (N, H, W, C)
    "test_efficientnet",
    "test_vit",  # three maps of one size
)
OTHERS = (
    "vgg11",
    "test_byobnet",
    "test_nfnet",
    "mobilenetv3_small_050",
    "regnetx_002",
    "hrnet_w18_small",
    "edgenext_xx_small",
    "ghostnet_050",
    "repvgg_a0",
    "poolformer_s12",
    "pvt_v2_b0",
    "densenet121",
    "dla46_c",
    "resnest14d",  # batch norm over pooled maps
    "res2next50",
    "efficientvit_b0",
    "starnet_s050",
    "test_maxvit",  # windows of 5
    "test_coatnet",  # takes 160×160 alone
)
BACKBONES = (*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS))

NOT_EXPORTED = {  # one window, or one square, is another graph than several
    "test_maxvit": r"Guard failed: torch\.sym_max\(1, .* // 160\) != 1",
    "test_coatnet": r"Guard failed: image\.size\(\)\[[23]\] >= 161",
}
"""Why the sizes of some cannot be left free in an export; the test turns red when they can."""

LABELS = Classes(
    tuple(ClassInfo(name, i, (i, i, i), raw=(i,)) for i, name in enumerate("ab")), "multilabel"
)
SIZES = ((1, 1), (5, 40), (33, 64), (131, 97))

each_backbone = pytest.mark.parametrize("name", BACKBONES)
each_mode = pytest.mark.parametrize("upsample", STEP_MODES)


@cache
def _made(name: str, upsample: StepMode) -> nn.Module:
    torch.manual_seed(3)
    return build_model(name, 3, 2, upsample=upsample)


def made(name: str, upsample: StepMode = "nearest") -> DynamicUNet:
    """A net of its own for each test."""
    return cast(DynamicUNet, copy.deepcopy(_made(name, upsample)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_there_are_25_backbones() -> None:
    assert len({*QUICK, *OTHERS}) == len(QUICK) + len(OTHERS) == 25


@each_mode
@each_backbone
def test_any_size_comes_out_as_it_went_in(name: str, upsample: StepMode) -> None:
    net = made(name, upsample).eval()
    with torch.no_grad():
        for count, (height, width) in zip((1, 2, 1, 2), SIZES, strict=True):
            image = noise(count, 3, height, width)
            before = image.clone()
            logits = net(image)
            assert logits.shape == (count, 2, height, width)
            assert torch.isfinite(logits).all()
            assert torch.equal(image, before)


@given(st.integers(1, 131), st.integers(1, 97), st.integers(1, 2), st.booleans())
@example(1, 97, 1, True)
@example(131, 1, 2, True)
@settings(max_examples=15, deadline=None)
def test_any_size_at_all(height: int, width: int, count: int, training: bool) -> None:
    for name in ("test_resnet", "test_vit", "test_mambaout"):
        logits = made(name, "shuffle").train(training)(noise(count, 3, height, width))
        assert logits.shape == (count, 2, height, width)


@each_mode
@each_backbone
def test_every_parameter_learns_even_from_one_small_image(name: str, upsample: StepMode) -> None:
    net = made(name, upsample).train()
    for count, (height, width) in ((1, (1, 1)), (2, (13, 40)), (1, (37, 21))):
        net.zero_grad(set_to_none=True)
        logits = net(noise(count, 3, height, width))
        assert logits.shape == (count, 2, height, width)
        (logits * noise(*logits.shape, seed=1)).sum().backward()
        for key, parameter in net.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key


def card_of(name: str, net: DynamicUNet, arguments: dict[str, Any]) -> Card:
    return Card(
        model=name, arguments=arguments, parameters=count_parameters(net).total,
        classes=LABELS,
        bands=Bands(("red", "green", "blue")),
        normalization=Normalization((0.0,) * 3, (1.0,) * 3), resize=None, chip_size=(64, 64),
        orientation="upright", geometry=Geometry(net.encoder.stride, None), pixel_size=None,
        thresholds=(0.5, 0.5), scores={}, tuning={}, objects={}, self_test={}, recipe={}, data={},
        versions={}, created="",
    )  # fmt: skip


@each_mode
@each_backbone
def test_a_bundle_gives_the_same_answers_bit_for_bit(
    name: str, upsample: StepMode, tmp_path: Path
) -> None:
    net = made(name, upsample)
    with torch.no_grad():  # weights and statistics that no fresh net has
        net.train()(noise(2, 3, 48, 48))
    backend = TorchBackend(net, "multilabel")
    card = card_of(name, net, {"upsample": upsample})
    card = card.replace(self_test=note_answers(backend, card))
    weights = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    bundle.save(tmp_path / "bundle", card, weights)
    image = noise(3, 41, 58).numpy()
    with torch.no_grad():
        wanted = torch.sigmoid(net(torch.from_numpy(image)[None]))[0].numpy()
    found = load(tmp_path, device="cpu").probabilities(image)
    assert np.array_equal(found, wanted)


def exported(net: DynamicUNet, example: Sequence[int]) -> Any:
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return export(net, (noise(*example),), strict=False, dynamic_shapes=(free,)).module()


def assert_exports(name: str, upsample: StepMode) -> None:
    net = made(name, upsample).eval()
    stride = net.encoder.stride
    program = exported(net, (2, 3, 2 * stride + 5, 3 * stride + 9))
    sizes = [(1, 3, 5, 7), (3, 3, stride + 1, 2 * stride), (1, 3, 131, 97)]
    with torch.no_grad():
        for size in sizes:
            image = noise(*size)
            torch.testing.assert_close(program(image), net(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "upsample"), [*zip(QUICK, 2 * STEP_MODES, strict=False)])
def test_an_export_leaves_the_sizes_free(name: str, upsample: StepMode) -> None:
    assert_exports(name, upsample)


@pytest.mark.slow
@each_mode
@pytest.mark.parametrize("name", [name for name in (*QUICK, *OTHERS) if name not in NOT_EXPORTED])
def test_an_export_of_every_kind_leaves_the_sizes_free(name: str, upsample: StepMode) -> None:
    assert_exports(name, upsample)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_cannot_be_exported_is_known(name: str) -> None:
    with pytest.raises(Exception, match=NOT_EXPORTED[name]):  # torch has many kinds
        assert_exports(name, "nearest")
