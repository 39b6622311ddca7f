"""The bundle: exact, checked, and never a mixture of an old and a new one."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from whatwhere import bundle, files
from whatwhere.bundle import CARD, Bundle, Card
from whatwhere.errors import BundleError, OutputError
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization

SHAPE = {"stride": 16, "margin": 92, "border": 0, "remainder": 0}


def make_card(**changes: Any) -> Card:
    infos = (
        ClassInfo("background", 0, (0, 0, 0), "background", (0,)),
        ClassInfo("salt", 255, (230, 159, 0), "class", (1, 255, 65535)),
    )
    return Card(
        model="tutorial",
        arguments={"n_filters": 4},
        parameters=12,
        classes=Classes(infos, "binary", (7,)),
        bands=Bands(("grey",), convert=True),
        normalization=Normalization((0.1 + 0.2,), (1 / 3,)),
        resize=(128, 96),
        chip_size=(101, 101),
        orientation="upright",
        geometry=Geometry(16, 92),
        pixel_size=None,
        objects={},
        self_test={},
        thresholds=(0.437,),
        scores={"val_loss": 0.1},
        tuning={"metric": "iou"},
        recipe={"epochs": 3},
        data={"sha256": "0"},
        versions={"torch": "2"},
        created="2026-01-01T00:00:00Z",
    ).replace(**changes)


def make_weights(seed: int = 1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.normal(size=(3, 2, 3)).astype(np.float32),
        "a.turned": rng.normal(size=(4, 5)).astype(np.float32).T,
        "a.steps": np.array(17, dtype=np.int64),
        "a.half": rng.normal(size=2).astype(np.float16),
        "a.double": np.array([np.pi, -0.0, 5e-324]),
        "a.none": np.zeros((0, 3), np.float32),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundle.save(tmp_path / "run" / "bundle", make_card(), make_weights())
    return tmp_path / "run" / "bundle"


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def assert_holds(folder: Path, card: Card, weights: dict[str, NDArray[Any]]) -> None:
    found = bundle.load(folder)
    assert found.card == card and set(found.weights) == set(weights)
    for name, tensor in weights.items():
        same = found.weights[name]
        assert same.dtype == tensor.dtype and same.shape == tensor.shape
        assert same.tobytes() == np.ascontiguousarray(tensor).tobytes()


def edit(folder: Path, **changes: Any) -> None:
    head = json.loads((folder / CARD).read_bytes())
    (folder / CARD).write_text(json.dumps({**head, **changes}))


def test_what_is_saved_is_loaded_bit_for_bit(saved: Path) -> None:
    assert_holds(saved, make_card(), make_weights())


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": None},
        {
            "bands": Bands(("band 4", "band 2"), (4, 2)),
            "normalization": Normalization((1, 2), (3, 4)),
        },
        {"orientation": "free", "geometry": Geometry(1, None, 8, 0), "pixel_size": 0.3},
    ],
)
def test_cards_survive_json(changes: dict[str, Any]) -> None:
    card = make_card(**changes)
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_a_run_its_bundle_and_its_card_mean_the_same(saved: Path) -> None:
    for path in (saved.parent, saved, saved / CARD):
        assert bundle.bundle_folder(path) == saved
        assert bundle.load_card(path) == make_card()


def test_saving_again_replaces_and_leaves_no_old_weights(saved: Path) -> None:
    bundle.save(saved, make_card(geometry=Geometry(16, 1)), make_weights(2))
    assert_holds(saved, make_card(geometry=Geometry(16, 1)), make_weights(2))
    assert len(list(saved.iterdir())) == 2


def test_saving_over_damaged_weights_mends_them(saved: Path) -> None:
    weights_of(saved).write_bytes(b"damaged")
    bundle.save(saved, make_card(), make_weights())
    assert_holds(saved, make_card(), make_weights())


def test_a_card_is_replaced_without_its_weights(saved: Path) -> None:
    before = weights_of(saved).stat().st_mtime_ns
    bundle.save_card(saved, make_card(thresholds=(0.9,)))
    assert_holds(saved, make_card(thresholds=(0.9,)), make_weights())
    assert weights_of(saved).stat().st_mtime_ns == before


@pytest.mark.parametrize("writes", [0, 1])
def test_a_write_that_fails_keeps_the_old_bundle_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """It fails at the weights, or after them at the card."""
    left, replace = iter([True] * writes), os.replace

    def fill(old: Any, new: Any) -> None:
        if not next(left, False):
            raise OSError(28, "No space left on device")
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill)
        with pytest.raises(OutputError, match="No space left"):
            bundle.save(saved, make_card(geometry=Geometry(16, 1)), make_weights(2))
    assert_holds(saved, make_card(), make_weights())
    bundle.save(saved, make_card(geometry=Geometry(16, 1)), make_weights(2))
    assert len(list(saved.iterdir())) == 2


def test_weights_that_are_not_finite_are_not_saved(saved: Path) -> None:
    for number in (np.nan, np.inf):
        with pytest.raises(
            BundleError, match=r"the weights bad are not finite: they are not saved"
        ):
            bundle.save(saved, make_card(), {"bad": np.array([1.0, number])})
    assert_holds(saved, make_card(), make_weights())


def forge(folder: Path, data: bytes) -> None:
    """Weights of which the card says that they are right."""
    weights_of(folder).write_bytes(data)
    head = {"file": weights_of(folder).name, "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, weights=head)


def test_weights_that_are_not_finite_are_not_loaded(saved: Path) -> None:
    from safetensors.numpy import save

    forge(saved, save({"bad": np.array([np.nan])}))
    with pytest.raises(BundleError, match=r"\.safetensors: the weights bad are not finite"):
        bundle.load(saved)


def test_other_bytes_and_number_types_are_no_weights(saved: Path) -> None:
    head = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    for data in (b"text", struct.pack("<Q", len(head)) + head + b"\0\0"):
        forge(saved, data)
        with pytest.raises(BundleError, match="these are no safetensors"):
            bundle.load(saved)


def test_every_flipped_byte_of_the_weights_is_found(saved: Path) -> None:
    whole = weights_of(saved).read_bytes()
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 1
        weights_of(saved).write_bytes(data)
        with pytest.raises(BundleError, match=r"the weights are damaged.*Copy the bundle again"):
            bundle.load(saved)


@pytest.mark.parametrize("length", [0, 10, 200])
def test_weights_cut_short_are_found(saved: Path, length: int) -> None:
    path = weights_of(saved)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BundleError, match=rf"{path.name}: the weights are damaged"):
        bundle.load(saved)


def test_missing_weights_are_named(saved: Path) -> None:
    name = weights_of(saved).name
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: the weights cannot be read: "):
        bundle.load(saved)


def test_a_missing_bundle_is_told(tmp_path: Path) -> None:
    advice = "Give a run folder that `whatwhere train` made"
    with pytest.raises(BundleError, match=f"no: there is no such folder. {advice}"):
        bundle.load(tmp_path / "no")
    with pytest.raises(BundleError, match=f"there is no bundle in it. {advice}"):
        bundle.load_card(tmp_path)


def test_a_file_beside_a_card_is_not_the_bundle(saved: Path) -> None:
    (saved / "other.txt").write_text("x")
    with pytest.raises(BundleError, match=r"other\.txt: there is no bundle in it"):
        bundle.bundle_folder(saved / "other.txt")


@pytest.mark.parametrize(
    "name", ["best.pt", "model.PTH", "last.ckpt", "a.pkl", "unet.h5", "a.keras"]
)
def test_files_that_could_run_code_are_refused_with_advice(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError, match=r"can run code when they are opened.*Give a run folder"):
        bundle.load(tmp_path / name)


@pytest.mark.parametrize("number", [2, 0, "1", None])
def test_another_format_is_refused_with_advice(saved: Path, number: Any) -> None:
    edit(saved, format=number)
    message = (
        rf"bundle\.json: the bundle has format {number!r}, this version reads 1\. Take the ver"
    )
    for call in (bundle.load, bundle.load_card):
        with pytest.raises(BundleError, match=message):
            call(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not JSON"),
        ("{", r"this is not JSON: .*Copy the bundle again"),
        ("[" * 100_000, "this is not JSON"),
        ("\xff", "this is not JSON"),
        ("[1]", "this is no card of a bundle"),
        ("{}", "this is no card of a bundle"),
        ('{"format": 1}', "the card does not name its weights"),
        ('{"format": 1, "weights": {"file": "a"}}', "the card does not name its weights"),
        (" " * (16 * 2**20 + 1), "a card of more than 16 MB is not read"),
    ],
)
def test_what_is_no_card_is_told(saved: Path, text: str, message: str) -> None:
    (saved / CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"bundle\.json: " + message):
        bundle.load(saved)


@pytest.mark.parametrize(
    "name", ["../w.safetensors", "/etc/w.safetensors", "x/w.safetensors", "w.pt", ""]
)
def test_weights_lie_beside_their_card_and_nowhere_else(saved: Path, name: str) -> None:
    data = weights_of(saved).read_bytes()
    (saved.parent / "w.safetensors").write_bytes(data)
    edit(saved, weights={"file": name, "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match="is no name of a weights file"):
        bundle.load(saved)


def test_unknown_and_missing_lines_of_a_card_are_named(saved: Path) -> None:
    lines = make_card().to_json()
    del lines["geometry"]
    edit(saved, card={**lines, "halo": 3})
    message = (
        r"bundle\.json: the card lacks \['geometry'\] and has the unknown \['halo'\]\. Take the"
    )
    with pytest.raises(BundleError, match=message):
        bundle.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": {"mean": [float("nan")], "std": [1]}}, "numbers that are not finite"),
        ({"normalization": {"mean": [0], "std": [0]}}, "deviation or pixel size out of its r"),
        ({"normalization": {"mean": [0, 0], "std": [1, 1]}}, "do not agree"),
        ({"normalization": {"mean": [0], "std": [1, 1]}}, "do not agree"),
        ({"geometry": dict(SHAPE, stride=0)}, "stride, margin or border out of its range"),
        ({"geometry": dict(SHAPE, margin=-1)}, "stride, margin or border out of its range"),
        ({"geometry": dict(SHAPE, remainder=16)}, "a remainder that is not below its stride"),
        ({"geometry": {"stride": 16}}, "the geometry cannot be read: KeyError"),
        ({"geometry": dict(SHAPE, stride=10**6)}, "a stride or border above 1024 px"),
        ({"pixel_size": -1}, "pixel size out of its range"),
        ({"self_test": 3}, "the card cannot be read: TypeError"),
        (
            {"geometry": dict(SHAPE, stride=float("inf"))},
            "the geometry cannot be read: OverflowErr",
        ),
        ({"thresholds": []}, "thresholds do not agree"),
        ({"thresholds": [1.5]}, "a threshold that is not from 0 to 1"),
        ({"chip_size": None}, "a size or orientation that there is not"),
        ({"resize": [0, 5]}, "a size or orientation that there is not"),
        ({"orientation": "sideways"}, "a size or orientation that there is not"),
        ({"classes": {"task": "binary", "table": []}}, "the class table cannot be read: KeyError"),
    ],
)
def test_lines_that_hold_what_they_cannot_are_told(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    edit(saved, card={**make_card().to_json(), **changes})
    with pytest.raises(BundleError, match=r"bundle\.json: .*" + message):
        bundle.load(saved)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from leaves(inner, (*path, key))


def test_no_altered_card_raises_anything_but_bundle_errors() -> None:
    whole = json.loads(json.dumps(make_card().to_json()))
    for path in list(leaves(whole)):
        for value in (None, [], {}, "x", -1, 10**400, float("inf"), float("nan"), [None], True):
            card = copy.deepcopy(whole)
            place = card
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            try:
                Card.from_json(card).classes.palette()
            except BundleError:
                continue


def test_a_card_read_while_another_is_written_is_one_of_them(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Bundle] = []
    write = files.write_bytes

    def spy(path: Path, data: bytes) -> Path:
        seen.append(bundle.load(saved))
        done = write(path, data)
        seen.append(bundle.load(saved))
        return done

    monkeypatch.setattr(files, "write_bytes", spy)
    bundle.save(saved, make_card(geometry=Geometry(16, 1)), make_weights(2))
    assert [one.card.geometry.margin for one in seen] == [92, 92, 92, 1]
    for one in seen:
        wanted = make_weights(2 if one.card.geometry.margin == 1 else 1)
        assert np.array_equal(one.weights["a.weight"], wanted["a.weight"])
