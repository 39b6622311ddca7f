"""Every flipped bit and every cut of a bundle and of a state is found, or changes nothing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from test_bundle import make_card, make_weights
from whatwhere import bundle
from whatwhere.bundle import CARD
from whatwhere.errors import BundleError, UsageError
from whatwhere.nn.pretrained import make_encoder
from whatwhere.train.state import States, encode, read_state

Read = Callable[[], Any]


def flips_and_cuts(path: Path, read: Read, flips: int, cuts: int, seed: int) -> None:
    """Flip single bits of a file, and cut it; reading must fail each time."""
    whole = path.read_bytes()
    chance = random.Random(seed)
    read()
    for _ in range(flips):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        data = bytearray(whole)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(BundleError):
            read()
    for _ in range(cuts):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(BundleError):
            read()
    path.write_bytes(whole)
    read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose card has small numbers, and weights."""
    card = make_card(scores={"val_loss": 1.25e-07, "epoch": 3.0})
    bundle.save(tmp_path / "net", card, make_weights())
    return tmp_path / "net"


def check_bundle(folder: Path, flips: int, cuts: int) -> None:
    """A third of the flips in the card, where a number is easily another one."""
    (weights,) = folder.glob("weights-*.safetensors")
    for path, share in ((folder / CARD, 3), (weights, 1.5)):
        many = round(flips / share), round(cuts / share)
        flips_and_cuts(path, lambda: bundle.load(folder), *many, seed=flips)


def check_state(folder: Path, flips: int, cuts: int) -> None:
    weights = {"a": torch.randn(40, 3), "b": torch.arange(7)}
    data = encode({"state_dict": weights, "lr": 1e-05, "rows": [{"epoch": 1, "loss": 0.5}]})
    path = States(folder / "states").write(7, data)
    flips_and_cuts(path, lambda: read_state(path), flips, cuts, seed=flips)


def test_a_bundle_that_is_not_whole_is_found(folder: Path) -> None:
    check_bundle(folder, 300, 100)


def test_a_state_that_is_not_whole_is_found(tmp_path: Path) -> None:
    check_state(tmp_path, 300, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_flips_are_found(folder: Path, tmp_path: Path) -> None:
    check_bundle(folder, 10_000, 1000)
    check_state(tmp_path, 10_000, 1000)


def test_every_bit_of_a_card_counts(folder: Path) -> None:
    """Also the letter of an exponent, and the case of a digit of a hash."""
    path = folder / CARD
    whole = path.read_bytes()
    assert b"1.25e-07" in whole
    spots = [whole.index(b"e-07"), whole.index(b'"sha256": "') + 11, whole.index(b'"bytes"') + 9]
    for place in [*spots, *range(90), len(whole) - 1]:
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            for read in (bundle.load, bundle.load_card):
                with pytest.raises(BundleError):
                    read(folder)


def test_a_card_that_was_changed_is_refused_and_not_sealed_again(folder: Path) -> None:
    path = folder / CARD
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"upright"', '"free"'), encoding="utf-8")
    told = r"bundle\.json: the card is damaged, or was changed by hand: its hash is not the one"
    for read in (bundle.load, bundle.load_card):
        with pytest.raises(BundleError, match=told):
            read(folder)
    with pytest.raises(BundleError, match=told):
        bundle.save_card(folder, make_card())
    head = json.loads(text)
    path.write_text(json.dumps(head))  # the same in other words
    with pytest.raises(BundleError, match=told):
        bundle.load(folder)


def test_a_card_of_an_old_version_has_no_hash(folder: Path) -> None:
    path = folder / CARD
    head = json.loads(path.read_bytes())
    before = bundle.load(folder)
    del head["card_sha256"]
    path.write_text(json.dumps(head))
    found = bundle.load(folder)
    assert found.card == before.card and found.digest == before.digest
    path.write_text(json.dumps({**head, "card_sha257": "0" * 64}))
    with pytest.raises(BundleError, match="the card is damaged"):
        bundle.load(folder)
    path.write_text(json.dumps(head))
    bundle.save_card(folder, found.card)
    assert bundle.load(folder).card == found.card
    assert list(json.loads(path.read_bytes())) == ["card_sha256", "format", "weights", "card"]


def test_hashes_cost_little(tmp_path: Path) -> None:
    """A second for 500 MB; here a tenth of that, with room for others at work."""
    weights = {"a": np.zeros((50, 2**18), dtype=np.float32)}
    bundle.save(tmp_path / "net", make_card(), weights)
    begun = time.process_time()
    bundle.load(tmp_path / "net")
    assert time.process_time() - begun < 1.0


def test_weights_of_another_net_are_not_taken_for_a_backbone(tmp_path: Path) -> None:
    """timm takes what fits, and leaves all else as chance made it."""
    path = tmp_path / "w.safetensors"
    body = make_encoder("test_resnet", 3).body
    save_file(body.state_dict(), path)
    found = make_encoder("test_resnet", 3, pretrained=path).body.state_dict()
    assert all(torch.equal(found[name], one) for name, one in body.state_dict().items())
    save_file({name: one.half() for name, one in body.state_dict().items()}, path)
    make_encoder("test_resnet", 3, pretrained=path)
    few = dict([next(iter(body.state_dict().items()))])
    for other in ({"x": torch.zeros(3, 3)}, {}, few):
        save_file(other, path)
        with pytest.raises(
            UsageError, match=r"w\.safetensors: these weights do not fit test_resnet"
        ):
            make_encoder("test_resnet", 3, pretrained=path)
    path.write_bytes((2**25).to_bytes(8, "little") + b" " * 2**25)
    with pytest.raises(UsageError, match="these are no weights of a backbone: their head is too l"):
        make_encoder("test_resnet", 3, pretrained=path)
