"""How settings are written as words."""

from __future__ import annotations

from typing import Any

import pytest

from whatwhere.errors import UsageError
from whatwhere.notation import (
    parse_arguments,
    parse_bands,
    parse_channels,
    parse_class_weights,
    parse_loss,
    parse_size,
    parse_split,
)


@pytest.mark.parametrize(
    ("text", "size"), [("", None), ("128", (128, 128)), ("128x96", (128, 96)), ("8X4", (8, 4))]
)
def test_sizes(text: str, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "-3", "1x2x3", "x", "12x", "1.5", "²", " 5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="resize must be like 128 or 128x96"):
        parse_size(text)


def test_splits_are_shares_of_their_sum() -> None:
    assert parse_split("70/15/15") == pytest.approx((0.7, 0.15, 0.15))
    assert parse_split("3/1/0") == pytest.approx((0.75, 0.25, 0))


@pytest.mark.parametrize("text", ["", "70/30", "a/b/c", "1/2/-1", "0/0/0", "nan/1/1", "inf/1/1"])
def test_what_is_no_split(text: str) -> None:
    with pytest.raises(UsageError, match="split must be like 70/15/15"):
        parse_split(text)


@pytest.mark.parametrize("text", ["0/1/1", "1/0/1"])
def test_a_split_trains_and_validates(text: str) -> None:
    with pytest.raises(UsageError, match="split needs pairs to train on and to validate on"):
        parse_split(text)


def test_bands() -> None:
    assert [parse_bands(text) for text in ("auto", "grey", "rgb")] == ["auto", "grey", "rgb"]
    assert parse_bands("4, 3,2") == {"band 4": 4, "band 3": 3, "band 2": 2}
    assert parse_bands("Red, nir,2") == {"red": 0, "nir": 0, "band 2": 2}
    assert parse_bands("Red=1, nir = 4,2") == {"red": 1, "nir": 4, "band 2": 2}


@pytest.mark.parametrize("text", ["", "red,red", "0", "1,,2", "1,1", "a=1,a=2", "-1", "³"])
def test_what_are_no_bands(text: str) -> None:
    with pytest.raises(UsageError, match="bands must be auto, grey, rgb or numbers from 1"):
        parse_bands(text)


def test_channels() -> None:
    assert parse_channels("") == () and parse_channels("64, 32") == (64, 32)
    with pytest.raises(UsageError, match="decoder_channels must be like 256,128,64,32,16, not '0'"):
        parse_channels("0")


def test_arguments_are_numbers_truths_or_words() -> None:
    text = "drop_path_rate=0.1, output_stride=16,act_layer=gelu,no_skip=TRUE"
    found: dict[str, Any] = {"drop_path_rate": 0.1, "output_stride": 16}
    assert parse_arguments(text) == {**found, "act_layer": "gelu", "no_skip": True}
    assert parse_arguments("") == {}


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a b=1", "a=1,a=2", "a=1,"])
def test_what_are_no_arguments(text: str) -> None:
    with pytest.raises(UsageError, match="backbone_args must be like drop_path_rate=0.1, not"):
        parse_arguments(text)


def test_losses_are_sums() -> None:
    assert parse_loss("cross_entropy") == {"cross_entropy": 1.0}
    assert parse_loss("dice + 0.5*focal") == {"dice": 1.0, "focal": 0.5}


@pytest.mark.parametrize("text", ["", "bce", "dice+dice", "0*dice", "-1*dice", "x*dice", "dice+"])
def test_what_is_no_loss(text: str) -> None:
    with pytest.raises(UsageError, match="loss must be a sum of cross_entropy, dice"):
        parse_loss(text)


def test_class_weights() -> None:
    assert parse_class_weights("") == "" and parse_class_weights("balanced") == "balanced"
    assert parse_class_weights("1, 5") == (1.0, 5.0)
    with pytest.raises(UsageError, match="class_weights must be `balanced` or numbers above 0"):
        parse_class_weights("1,0")
