"""Probabilities of an image's own size, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from whatwhere.bundle import Bundle, Card
from whatwhere.data.classes import find_classes
from whatwhere.errors import BundleError, NumericsError, ShapeError, UsageError
from whatwhere.nn.build import build_model
from whatwhere.predict.backends import (
    TorchBackend,
    check_answers,
    choose_device,
    open_backend,
)
from whatwhere.predict.engine import Predictor, usual_tile
from whatwhere.tiling import tiles
from whatwhere.types import Bands, Geometry, Normalization


def card(**changes: Any) -> Card:
    lines: dict[str, Any] = {
        "model": "tutorial", "arguments": {}, "parameters": 1,
        "classes": find_classes([], "0=background,1=salt"), "bands": Bands(("grey",)),
        "normalization": Normalization((100.0,), (50.0,)), "resize": None, "chip_size": (32, 32),
        "orientation": "upright", "geometry": Geometry(16, 122), "thresholds": (0.5,), "scores": {},
        "pixel_size": None, "objects": {}, "self_test": {},
        "tuning": {}, "recipe": {}, "data": {}, "versions": {}, "created": "",
    }  # fmt: skip
    return Card(**{**lines, **changes})


def predictor(tile: int = 1024, **changes: Any) -> Predictor:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    return Predictor(card(**changes), TorchBackend(net, "binary"), tile)


class Recorder:
    """A backend that notes what it is given and answers with a sigmoid of it."""

    normalizes = False

    def __init__(self) -> None:
        self.seen: list[NDArray[np.float32]] = []

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.seen.append(images)
        return (1 / (1 + np.exp(-images))).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_any_size_gives_its_own_size(height: int, width: int) -> None:
    image = np.random.default_rng(height).integers(0, 255, (1, height, width), dtype=np.uint8)
    p = predictor().probabilities(image)
    assert p.shape == (1, height, width)
    assert p.dtype == np.float32
    assert ((p >= 0) & (p <= 1)).all()


def test_the_net_sees_normalised_bands_and_zero_where_there_is_no_data() -> None:
    backend = Recorder()
    image = np.array([[[100, 150], [50, 255]]], dtype=np.uint8)
    valid = np.array([[True, True], [True, False]])
    p = Predictor(card(), backend).probabilities(image, valid)
    assert backend.seen[0].tolist() == [[[[0.0, 1.0], [-1.0, 0.0]]]]
    assert p[0, 0, 1] == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_stretched_net_sees_its_size_and_answers_at_the_images() -> None:
    backend = Recorder()
    image = np.full((1, 50, 30), 150, dtype=np.uint8)
    p = Predictor(card(resize=(16, 24)), backend).probabilities(image)
    assert backend.seen[0].shape == (1, 1, 16, 24)
    assert p.shape == (1, 50, 30)
    assert np.allclose(p, 1 / (1 + np.exp(-1)), atol=1e-6)


def test_large_images_are_cut_and_each_pixel_is_answered_from_its_own_place() -> None:
    backend = Recorder()
    image = np.random.default_rng(0).integers(0, 255, (1, 301, 417), dtype=np.uint8)
    cut = Predictor(card(geometry=Geometry(16, 20)), backend, tile=128).probabilities(image)
    assert len(backend.seen) > 4
    assert max(max(part.shape[2:]) for part in backend.seen) <= 128
    whole = Predictor(card(geometry=Geometry(16, 20)), Recorder()).probabilities(image)
    assert np.array_equal(cut, whole)


class Corner:
    """A backend that answers with the image, and with 0 in its upper left corner."""

    normalizes, engine, device = True, "torch", "cpu"

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = images.copy()
        answer[..., 0, 0] = 0
        return answer


@pytest.mark.parametrize(
    ("orientation", "resize", "size", "corners"),
    [
        ("upright", None, (2, 3), {(0, 0): 1 / 2, (0, 2): 1 / 2}),
        ("free", None, (2, 3), dict.fromkeys([(0, 0), (0, 2), (1, 0), (1, 2)], 3 / 4)),
        ("free", (2, 2), (2, 2), dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)], 3 / 4)),
        ("free", None, (2, 4), dict.fromkeys([(0, 0), (0, 3), (1, 0), (1, 3)], 3 / 4)),
        ("free", (2, 4), (2, 4), dict.fromkeys([(0, 0), (0, 3), (1, 0), (1, 3)], 3 / 4)),
    ],
)
def test_the_mean_over_the_symmetries_of_the_training(
    orientation: str, resize: Any, size: tuple[int, int], corners: dict[tuple[int, int], float]
) -> None:
    """By hand: each symmetry loses one corner, and all of them as many of each."""
    image = np.ones((1, *size), dtype=np.float32)
    changes = {"orientation": orientation, "resize": resize, "geometry": Geometry(1, 0)}
    changes["chip_size"] = size
    expected = np.ones(size)
    for place, value in corners.items():
        expected[place] = value
    backend: Any = Corner()
    found = Predictor(card(**changes), backend, tta=True).probabilities(image)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    alone = Predictor(card(**changes), backend).probabilities(image)
    assert alone[0, 0, 0] == 0 and alone[0].sum() == image.size - 1


def test_a_flip_of_the_image_flips_the_mean_over_the_symmetries() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (1, 37, 41), dtype=np.uint8)
    valid = rng.random((37, 41)) < 0.9
    looked = predictor()
    looked.tta = True
    one = looked.probabilities(image, valid)
    other = looked.probabilities(image[..., ::-1], valid[..., ::-1])
    np.testing.assert_allclose(other[..., ::-1], one, atol=1e-6)
    assert np.abs(one - predictor().probabilities(image, valid)).max() > 1e-3


def test_a_tile_that_is_too_small_says_what_to_take() -> None:
    with pytest.raises(UsageError, match="Take at least 272 px"):
        predictor(tile=200).probabilities(np.zeros((1, 300, 300), dtype=np.uint8))
    assert predictor(tile=272).probabilities(np.zeros((1, 300, 300))).shape == (1, 300, 300)


def test_other_bands_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ShapeError, match="bands grey are wanted, the image has 3 that differ"):
        predictor().probabilities(rng.integers(0, 255, (3, 8, 8)))
    with pytest.raises(ShapeError, match="bands grey are wanted, the image has 2"):
        predictor().probabilities(rng.integers(0, 255, (2, 8, 8)))


def test_a_net_that_answers_no_number_is_not_believed() -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * torch.nan

    with pytest.raises(NumericsError, match="the net's output is not finite"):
        Predictor(card(), TorchBackend(Broken(), "binary")).probabilities(np.zeros((1, 4, 4)))


def test_devices_that_are_not_there_are_told() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device must be auto, cpu, cuda, mps, not 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") in ("cpu", "mps")
        with pytest.raises(UsageError, match="there is no cuda device here"):
            choose_device("cuda")


def test_a_card_that_asks_for_a_huge_net_is_refused_before_memory_is_taken() -> None:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    fitting = Bundle(card(arguments={"n_filters": 2}), weights)
    assert open_backend(fitting, "cpu").run(np.zeros((1, 1, 8, 8), np.float32)).shape == (
        1,
        1,
        8,
        8,
    )
    with pytest.raises(BundleError, match="the weights do not fit the net: c1.layers.0.bias"):
        open_backend(Bundle(card(arguments={"n_filters": 60_000}), weights), "cpu")
    with pytest.raises(BundleError, match="the card gives tutorial the arguments code"):
        open_backend(Bundle(card(arguments={"code": "x"}), weights), "cpu")


def test_an_image_whose_answer_is_no_number_is_named(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * torch.nan

    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(NumericsError, match=r"a.png: the net's output is not finite"):
        Predictor(card(), TorchBackend(Broken(), "binary")).read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True}, "the card gives test_resnet the arguments pretrained"),
        ({"backbone_args": {"pretrained": True}}, "pretrained cannot be given to test_resnet"),
        ({"backbone_args": {"checkpoint_path": "/x"}}, "checkpoint_path cannot be given"),
        ({"backbone_args": {"pretrained_cfg": {"url": "http://x"}}}, "pretrained_cfg cannot be"),
        ({"backbone_args": {"in_chans": 3}}, "in_chans cannot be given"),
    ],
)
def test_a_card_cannot_fetch_or_read_anything(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_backend(Bundle(card(model="test_resnet", arguments=arguments), {}), "cpu")


def test_an_encoder_for_a_net_that_has_its_own_is_refused() -> None:
    with pytest.raises(UsageError, match="on tutorial, and takes no encoder="):
        open_backend(Bundle(card(), {}), "cpu", nn.Identity())


def test_a_self_test_of_another_size_takes_no_memory() -> None:
    net = TorchBackend(build_model("tutorial", n_filters=2), "binary")
    wrong = card(geometry=Geometry(10**9, 0), self_test={"seed": 0, "side": 32})
    with pytest.raises(BundleError, match="the card's self-test cannot be read"):
        check_answers(net, wrong)


@pytest.mark.parametrize("margin", [None, 0, 122, 542])
@pytest.mark.parametrize("stride", [16, 32, 384, 512])
def test_the_usual_tile_has_room_for_a_core(stride: int, margin: int | None) -> None:
    side = usual_tile(Geometry(stride, margin))
    list(tiles(3000, 2000, side, stride, 128 if margin is None else margin))  # raises without room
    assert side >= 1024
