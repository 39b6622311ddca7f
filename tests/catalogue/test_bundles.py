"""The catalogue of faults, E94 to E103: trained nets and packages."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from cases import At, Case, Catalogue, Words, check
from made import write_pair
from made_files import noise
from made_maps import make_classes, make_predictor, save_bundle
from whatwhere.bundle import CARD, _sealed
from whatwhere.errors import WhatwhereError
from whatwhere.packages import open_package

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bundles(case: Case, tmp_path: Path, nets: Path) -> None:
    begun = time.process_time()
    result = check(case, tmp_path, nets)
    if case.code == 4:  # file, cause and remedy in one line
        assert re.fullmatch(r"error: /\S+: .+[.:] [A-Z].+\n", result.output), result.output
    assert case.code != 4 or time.process_time() - begun < 10
    assert not (tmp_path / "canary").exists(), "code of a file was run"


def image(at: At, bands: int = 1) -> Path:
    path = at.folder / "image.png"
    Image.fromarray(noise(32, 32) if bands == 1 else noise(32, 32, bands)).save(path)
    return path


def predict(at: At, net: Path, bands: int = 1) -> Words:
    return "predict", net, image(at, bands), "-o", at.out


def bundle(at: At, **how: Any) -> Path:
    """A bundle of its own, to be spoilt."""
    return save_bundle(at.folder / "net", make_predictor(**{"bands": ("grey",), **how}))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


def with_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change a card and give it a hash that fits, as somebody who means it would."""
    head = json.loads((folder / CARD).read_text())
    head.pop("card_sha256", None)
    change(head)
    (folder / CARD).write_bytes(_sealed(head))
    return folder


def with_weights(folder: Path, data: bytes) -> Path:
    """Put other weights into a bundle, with their own hash, as somebody who means it would."""
    weights_of(folder).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return with_card(folder, lambda head: head["weights"].update(sha256=digest))


def changed(folder: Path, change: Callable[[dict[str, NDArray[Any]]], None]) -> Path:
    tensors = dict(load(weights_of(folder).read_bytes()))
    change(tensors)
    return with_weights(folder, save(tensors))


# ---------------------------------------------------------------- 94: of something else


@case("E94-other-bands", 3, r"image\.png: .*\b3\b.*band")
def _(at: At) -> Words:
    return predict(at, bundle(at, bands=("a", "b", "c", "d")), 3)


@case("E94-other-classes", 3, "the class table does not know 7", "of the bundle +in the masks")
def _(at: At) -> Words:
    for i in range(3):
        write_pair(at.data, f"p{i}", noise(32, 32, seed=i), (noise(32, 32) >> 7) * np.uint8(7))
    return "evaluate", at.net("grey"), at.data


@case("E94-another-net", 2, "in the bundle +wanted", r"n_filters +2 +4", "does not go with this")
def _(at: At) -> Words:
    net = bundle(at)
    with_card(net, lambda head: head["card"]["recipe"].update(model="tutorial", n_filters=2))
    for i in range(4):
        write_pair(at.data, f"p{i}", noise(32, 32, seed=i), noise(32, 32, seed=i + 9) >> 7)
    words = ("--n-filters", 4, "--pretrained-path", net)
    return "train", at.data, "-o", at.out, *words


@case("E94-of-several-classes", 2, "takes the most likely one and has no threshold to tune")
def _(at: At) -> Words:
    for i in range(4):
        write_pair(at.data, f"p{i}", noise(32, 32, seed=i), noise(32, 32, seed=i + 9) % 3)
    return "tune", bundle(at, classes=make_classes(3, "multiclass")), at.data


# ---------------------------------------------------------------- 95 to 98: damaged weights

HASH = r"weights-\w+\.safetensors: the weights are damaged: their hash is not the one in .*Copy the"


@case("E95-flipped-byte", 4, HASH)
def _(at: At) -> Words:
    path = weights_of(net := bundle(at))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return predict(at, net)


@case(
    "E95-flipped-byte-in-the-card", 4, r"bundle\.json: the card is damaged, or was changed by hand"
)
def _(at: At) -> Words:
    path = (net := bundle(at)) / CARD
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6", 1))
    return predict(at, net)


@case("E96-cut-short", 4, HASH)
def _(at: At) -> Words:
    path = weights_of(net := bundle(at))
    path.write_bytes(path.read_bytes()[:-100])
    return predict(at, net)


@case("E96-empty-weights", 4, HASH)
def _(at: At) -> Words:
    weights_of(net := bundle(at)).write_bytes(b"")
    return predict(at, net)


@case("E96-no-weights", 4, r"weights-\w+\.safetensors: the weights cannot be read: .*No such file")
def _(at: At) -> Words:
    weights_of(net := bundle(at)).unlink()
    return predict(at, net)


@case("E96-a-pipe-for-weights", 4, r"weights-\w+\.safetensors: this is not a plain file\. Copy")
def _(at: At) -> Words:
    path = weights_of(net := bundle(at))
    path.unlink()
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(path)
    return predict(at, net)


@case("E96-half-a-card", 4, r"bundle\.json: this is not JSON: .*\. Copy the bundle again\.")
def _(at: At) -> Words:
    path = (net := bundle(at)) / CARD
    path.write_bytes(path.read_bytes()[:500])
    return predict(at, net)


@case("E96-an-empty-card", 4, r"bundle\.json: this is not JSON")
def _(at: At) -> Words:
    ((net := bundle(at)) / CARD).write_bytes(b"")
    return predict(at, net)


def drop(tensors: dict[str, NDArray[Any]]) -> None:
    del tensors[min(tensors)]


@case("E97-a-tensor-is-missing", 4, r"c1\S*|head\S*")
def _(at: At) -> Words:
    return predict(at, changed(bundle(at), drop))


@case("E97-a-tensor-too-many", 4, "surplus")
def _(at: At) -> Words:
    return predict(at, changed(bundle(at), lambda t: t.update(surplus=np.zeros(3, np.float32))))


@case("E97-another-shape", 4, r"head\S*weight")
def _(at: At) -> Words:
    def turned(tensors: dict[str, NDArray[Any]]) -> None:
        name = next(name for name in tensors if name.startswith("head") and "weight" in name)
        tensors[name] = np.ascontiguousarray(np.repeat(tensors[name], 2, axis=1))

    return predict(at, changed(bundle(at), turned))


@case("E97-another-type", 4, r"head\S*weight are of the type int8, and the net's are float32")
def _(at: At) -> Words:
    def coarse(tensors: dict[str, NDArray[Any]]) -> None:
        name = next(name for name in tensors if name.startswith("head") and "weight" in name)
        tensors[name] = tensors[name].astype(np.int8)

    return predict(at, changed(bundle(at), coarse))


@case("E98-weights-that-are-no-numbers", 4, r"the weights \S+ are not finite")
def _(at: At) -> Words:
    def spoil(tensors: dict[str, NDArray[Any]]) -> None:
        name = next(name for name in tensors if "weight" in name)
        tensors[name] = np.full_like(tensors[name], np.nan)

    return predict(at, changed(bundle(at), spoil))


# ---------------------------------------------------------------- 99, 100: formats that do harm


class Evil:
    """What a pickle may hold: a call that is made when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


for ending in (".pt", ".pth", ".ckpt", ".pkl", ".npy", ".h5", ".keras", ".bin"):

    @case(
        f"E99-a-pickle{ending}", 4, rf"net\{ending}: files of this kind can run code when they are"
    )
    def _(at: At, ending: str = ending) -> Words:
        path = at.folder / f"net{ending}"
        path.write_bytes(pickle.dumps(Evil(at.folder / "canary")))
        return predict(at, path)


@case("E99-a-pickle-in-the-place-of-weights", 4, "these are no safetensors")
def _(at: At) -> Words:
    data = pickle.dumps(Evil(at.folder / "canary"))
    return predict(at, with_weights(bundle(at), data))


@case("E99-a-pickle-of-pretrained-weights", 2, r"net\.pth")
def _(at: At) -> Words:
    path = at.folder / "net.pth"
    path.write_bytes(pickle.dumps(Evil(at.folder / "canary")))
    write_pair(at.data, "p0", noise(32, 32), noise(32, 32, seed=9) >> 7)
    words = ("--model", "resnet18", "--pretrained-path", path)
    return "train", at.data, "-o", at.out, *words


def tensors(head: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


@case("E100-a-hundred-thousand-tensors", 4, "it holds 100,000 tensors, and no net has so many")
def _(at: At) -> Words:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return predict(at, with_weights(bundle(at), tensors({f"t{i}": empty for i in range(100_000)})))


@case("E100-a-head-without-end", 4, r"these are no safetensors: the head would be .* bytes long")
def _(at: At) -> Words:
    return predict(at, with_weights(bundle(at), struct.pack("<Q", 2**62) + b"{}"))


@case("E100-tensors-over-each-other", 4, "these are no safetensors")
def _(at: At) -> Words:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return predict(at, with_weights(bundle(at), tensors({"a": one, "b": one}, bytes(8))))


@case("E100-beyond-the-end", 4, "these are no safetensors")
def _(at: At) -> Words:
    one = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    return predict(at, with_weights(bundle(at), tensors({"a": one}, bytes(8))))


# ---------------------------------------------------------------- 101 to 103: packages and cards


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


PACKAGES: dict[str, list[tuple[zipfile.ZipInfo | str, bytes]]] = {
    "E101-out-of-the-folder": [("../canary", b"x")],
    "E101-an-absolute-name": [("/tmp/canary", b"x")],
    "E101-a-drive": [("C:\\canary", b"x")],
    "E101-a-link": [(member("net.emd", 0o120777), b"/etc/passwd")],
    "E101-twice": [("net.emd", b"{}"), ("net.emd", b"{ }")],
    "E101-twice-but-for-the-case": [("net.emd", b"{}"), ("NET.emd", b"{ }")],
    "E101-a-bomb": [("net.emd", b"{}"), ("net.pth", bytes(2**25))],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", PACKAGES)
def test_packages_that_do_harm(name: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in PACKAGES[name]:
            archive.writestr(info, data)
    path = tmp_path / "in" / "net.dlpk"
    path.parent.mkdir()
    path.write_bytes(stream.getvalue())
    (tmp_path / "out").mkdir()
    limit = {"most_bytes": 2**24} if name.endswith("bomb") else {}
    with pytest.raises(WhatwhereError, match=r"net\.dlpk: .*\.") as caught:
        open_package(path, tmp_path / "out", **limit)
    assert caught.value.exit_code in (3, 4) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir()) and not Path("/tmp/canary").exists()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", "out"]


@case("E101-bundles-are-no-archives", 4, r"net\.dlpk: there is no bundle in it\. Give a run folder")
def _(at: At) -> Words:
    path = at.folder / "net.dlpk"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net.emd", b"{}")
    return predict(at, path)


@case(
    "E102-a-newer-format", 4, "the bundle has format 2, this version reads 1. Take the version of"
)
def _(at: At) -> Words:
    return predict(at, with_card(bundle(at), lambda head: head.update(format=2)))


@case("E103-a-line-that-no-card-has", 4, r"has the unknown \['_target_'\]\. Take the version")
def _(at: At) -> Words:
    def hook(head: dict[str, Any]) -> None:
        head["card"]["_target_"] = "os.system"

    return predict(at, with_card(bundle(at), hook))


@case("E103-a-hook-among-the-arguments", 4, "_instantiator|unknown|argument")
def _(at: At) -> Words:
    def hook(head: dict[str, Any]) -> None:
        head["card"]["arguments"]["_instantiator"] = "os.system"

    return predict(at, with_card(bundle(at), hook))


@case("E103-a-module-as-a-model", 4, "os.system")
def _(at: At) -> Words:
    def hook(head: dict[str, Any]) -> None:
        head["card"]["model"] = "os.system"

    return predict(at, with_card(bundle(at), hook))


@case("E103-a-key-twice", 4, r"bundle\.json: this is not JSON: 'sha256' is there twice\. Copy")
def _(at: At) -> Words:
    path = (net := bundle(at)) / CARD
    text = path.read_text()
    path.write_text(
        text.replace('"model"', '"model": "os.system", "model"', 1).replace(
            '"weights": {', '"weights": {"sha256": "0", ', 1
        )
    )
    return predict(at, net)
