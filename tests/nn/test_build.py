"""Models by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from whatwhere.errors import UsageError
from whatwhere.nn.build import (
    build_model,
    count_parameters,
    geometry,
    list_models,
    stage_shapes,
)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no model 'tutorail'\. Did you mean tutorial\?"):
        build_model("tutorail")


def test_a_model_like_none_says_where_to_look() -> None:
    with pytest.raises(UsageError, match=r"no model 'qqq'\. `whatwhere models` lists some\."):
        build_model("qqq")


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no argument 'n_filter'\. Did you mean n_filters"):
        build_model("tutorial", n_filter=8)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("in_channels", 0, "in_channels must be at least 1, not 0"),
        ("n_classes", 0, "n_classes must be at least 1, not 0"),
        ("n_filters", -2, "n_filters must be at least 1, not -2"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), not 1.0"),
        ("dropout", -0.1, r"dropout must be in \[0, 1\), not -0.1"),
        ("dropout", float("nan"), r"dropout must be in \[0, 1\), not nan"),
        ("kernel_size", 4, "kernel_size must be odd, not 4"),
        ("kernel_size", -1, "kernel_size must be odd, not -1"),
        ("upsample", "cubic", "upsample must be one of transposed, nearest, bilinear, not 'cubic'"),
    ],
)
def test_an_argument_out_of_range_is_named(argument: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model("tutorial", **{argument: value})


def test_all_arguments_out_of_range_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"n_filters.*dropout.*kernel_size.*upsample"):
        build_model("tutorial", n_filters=0, dropout=2, kernel_size=2, upsample="cubic")


@pytest.mark.parametrize("bn_momentum", [-0.5, 1.5, float("nan")])
def test_a_momentum_out_of_range_is_named(bn_momentum: float) -> None:
    with pytest.raises(UsageError, match="bn_momentum"):
        build_model("tutorial", n_filters=1, bn_momentum=bn_momentum)


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_each_class_has_a_logit(n_classes: int) -> None:
    net = build_model("tutorial", in_channels=3, n_classes=n_classes, n_filters=2)
    assert net(torch.zeros(1, 3, 33, 20)).shape == (1, n_classes, 33, 20)


def test_arguments_reach_the_net() -> None:
    net = build_model("tutorial", n_filters=2, dropout=0.3, bn_momentum=0.9, kernel_size=5)
    replaced = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert replaced == pytest.approx([0.1] * 18)
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert net.get_submodule("c5").layers[0].weight.shape == (32, 16, 5, 5)
    plain = build_model("tutorial", batchnorm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


def test_shapes_lead_down_to_the_middle_and_back() -> None:
    shapes = stage_shapes(build_model("tutorial", n_classes=4), (1, 128, 128))
    assert shapes[0] == ("image", (1, 128, 128))
    assert shapes[-1] == ("logits", (4, 128, 128))
    found = dict(shapes)
    assert found["c5"] == (256, 8, 8)
    assert found["p4"] == (128, 8, 8)
    for level in range(4):
        expected = (16 * 2**level, 128 // 2**level, 128 // 2**level)
        for name in (f"c{level + 1}", f"u{9 - level}", f"c{9 - level}"):
            assert found[name] == expected
        assert found[f"p{level + 1}"] == (expected[0], expected[1] // 2, expected[2] // 2)
    order = "image c1 p1 c2 p2 c3 p3 c4 p4 c5 u6 c6 u7 c7 u8 c8 u9 c9 head logits"
    assert [name for name, _ in shapes] == order.split()


def test_shapes_of_an_odd_image_are_those_of_its_mirrored_one() -> None:
    found = dict(stage_shapes(build_model("tutorial"), (1, 101, 75)))
    assert found["c5"] == (256, 7, 5)
    assert found["head"] == (1, 112, 80)
    assert found["logits"] == (1, 101, 75)


@pytest.mark.parametrize("training", [True, False])
def test_asking_for_shapes_leaves_the_net_as_it_was(training: bool) -> None:
    net = build_model("tutorial", n_filters=2).train(training)
    before = copy.deepcopy(net.state_dict())
    stage_shapes(net, (1, 32, 32))
    assert net.training == training
    assert {str(t.device) for t in net.state_dict().values()} == {"cpu"}
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    hooks = [m for m in net.modules() if m._forward_hooks]
    assert not hooks


def test_frozen_weights_count_in_the_total_alone() -> None:
    net = build_model("tutorial")
    head = net.get_submodule("head").requires_grad_(False)
    frozen = sum(p.numel() for p in head.parameters())
    found = count_parameters(net)
    assert (found.total, found.trainable) == (2_164_305, 2_161_361 - frozen)


def test_the_geometry_of_the_default_net_is_known() -> None:
    found = geometry(build_model("tutorial"))
    assert (found.stride, found.margin) == (16, 122)


def test_the_geometry_of_a_foreign_net_is_not_known() -> None:
    with pytest.raises(UsageError, match="geometry of a Conv2d is not known"):
        geometry(nn.Conv2d(1, 1, 3))


def test_models_are_listed_by_pattern() -> None:
    assert list_models("tut*") == list_models("tutorial") == ["tutorial"]
    assert list_models()[:2] == ["tutorial", "unet2015"] and "resnet34" in list_models()
    assert list_models("resnet3*") == ["resnet32ts", "resnet33ts", "resnet34", "resnet34d"]
    assert list_models("qqq*") == []
