"""Chips and batches: every pixel once in validation, chance from (seed, epoch, index) alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from made_chips import READER, cut, made, same, save
from whatwhere.data.augment import Augmentation
from whatwhere.data.loader import (
    Chips,
    EndsWith,
    EpochSampler,
    chip_shape,
    lattice,
    make_loader,
)
from whatwhere.errors import DataError
from whatwhere.types import Classes, ClassInfo, Geometry

# ---------------------------------------------------------------- the reader


def test_a_pair_is_read_as_the_net_sees_it(tmp_path: Path) -> None:
    (pair,), _ = made(tmp_path, (6, 9))
    stored = np.asarray(Image.open(pair.image)).astype(float)
    image, labels, valid = READER(pair)
    assert np.allclose(image[0], (stored - 100) / 50) and image.dtype == np.float32
    assert np.array_equal(labels, stored > 128) and valid.all()


def test_what_does_not_count_is_zero_or_not_valid(tmp_path: Path) -> None:
    (pair,), _ = made(tmp_path, (2, 4))
    image = np.full((2, 4), 150.0, np.float32)
    image[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    save(pair.masks[0], np.array([[9, 1, 7, 0]] * 2, np.uint8) * np.uint8([[1], [0]]))
    pixels, labels, valid = READER(replace(pair, image=tmp_path / "a.tif"))
    assert pixels[0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert labels[0].tolist() == [0, 1, 0, 0]
    # 9 is unknown, but lies where the image has no data; 7 is to be ignored.
    assert valid.tolist() == [[False, True, False, True], [True] * 4]


@pytest.mark.parametrize(("known", "number"), [((0, 1), 3), ((1, 2), 0)])
def test_an_unknown_number_is_told(tmp_path: Path, known: tuple[int, ...], number: int) -> None:
    (pair,), _ = made(tmp_path, (2, 4))
    save(pair.masks[0], np.array([[known[0], known[1], number, number]] * 2, np.uint8))
    infos = (
        ClassInfo("a", 0, (0, 0, 0), raw=known[:1]),
        ClassInfo("b", 1, (1, 1, 1), raw=known[1:]),
    )
    table = Classes(infos, "binary")
    message = rf"0\.png: the class table does not know {number}; it knows {known[0]}, {known[1]}\."
    with pytest.raises(DataError, match=message) as told:
        replace(READER, classes=table)(pair)
    assert "Correct the mask." in str(told.value) and len(told.value.problems) == 1


def test_a_mask_of_another_size_and_other_bands_are_told(tmp_path: Path) -> None:
    (pair,), _ = made(tmp_path, (6, 9))
    other = save(tmp_path / "m.png", np.zeros((9, 6), np.uint8))
    with pytest.raises(DataError, match=r"m\.png: the mask is not of its image's size"):
        READER(replace(pair, masks=(other,)))
    colours = save(tmp_path / "c.png", np.random.default_rng(2).integers(0, 9, (6, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"c\.png: the bands grey are wanted, the image has 3 that"):
        READER(replace(pair, image=colours))


def test_resizing_stretches_image_labels_and_validity(tmp_path: Path) -> None:
    (pair,), _ = made(tmp_path, (6, 9))
    plain, small = READER(pair), replace(READER, resize=(12, 18))(pair)
    assert [part.shape[-2:] for part in small] == [(12, 18)] * 3
    assert np.array_equal(small[1], plain[1].repeat(2, 0).repeat(2, 1))
    assert small[0].mean() == pytest.approx(plain[0].mean(), abs=0.05)


def test_each_labels_masks_become_a_plane(tmp_path: Path) -> None:
    (pair,), _ = made(tmp_path, (6, 9))
    empty = np.zeros((6, 9, 2), np.uint8)
    empty[1:, :, 1] = 255  # the first row does not count
    other = save(tmp_path / "other.png", empty)
    infos = tuple(ClassInfo(name, 1, (1, 1, 1), raw=(1, 255)) for name in "ab")
    reader = replace(READER, classes=Classes(infos, "multilabel"))
    _, labels, valid = reader(replace(pair, masks=(pair.masks[0], other)))
    assert labels.shape == (2, 6, 9) and labels[0].any() and not labels[1].any()
    assert not valid[0].any() and valid[1:].all()


# ---------------------------------------------------------------- chips


@pytest.mark.parametrize(
    ("sizes", "asked", "shape"),
    [
        ([(101, 90)] * 3, 0, (101, 90)),
        ([(256, 256)], 0, (256, 256)),
        ([(101, 101), (100, 101)], 0, (101, 101)),
        ([(512, 512)] * 2, 0, (256, 256)),
        ([(512, 512)], 128, (128, 128)),
    ],
)
def test_images_up_to_256_are_taken_whole(
    sizes: list[tuple[int, int]], asked: int, shape: tuple[int, int]
) -> None:
    assert chip_shape(sizes, asked) == shape


side = st.integers(1, 40)


@given(side, side, side, side)
def test_a_lattice_covers_each_pixel_once(h: int, w: int, rows: int, columns: int) -> None:
    seen = np.zeros((h, w), int)
    for window in lattice((h, w), (rows, columns)):
        assert window.height <= rows and window.width <= columns
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_validation_chips_hold_each_pixel_once(tmp_path: Path) -> None:
    chips = cut(tmp_path, (19, 8), (5, 30), (8, 8), training=False)
    for which, size in ((0, (19, 8)), (1, (5, 30)), (2, (8, 8))):
        image, *_ = READER(chips.pairs[which])
        mine = [chips[0, i] for i in range(len(chips)) if chips.key(i) == str(which)]
        values = np.concatenate([chip["image"][0][chip["valid"]] for chip in mine])
        assert len(values) == size[0] * size[1]
        assert np.array_equal(np.sort(values), np.sort(image.ravel()))
        assert all(chip["image"].shape == (1, 8, 8) for chip in mine)
        assert all(same(chip, chips[3, chip["index"]]) for chip in mine)  # whatever the epoch


def test_an_epoch_has_as_many_training_chips_as_cover_the_images(tmp_path: Path) -> None:
    assert len(cut(tmp_path, (19, 8), (5, 30))) == 3 + 4


def test_training_chips_vary_with_the_epoch_and_repeat_between_runs(tmp_path: Path) -> None:
    chips, again = (cut(tmp_path, (40, 40)) for _ in range(2))
    assert all(same(chips[e, i], again[e, i]) for e, i in ((0, 0), (3, 2), (0, 1)))
    drawn = {chips[epoch, index]["image"].tobytes() for epoch in range(5) for index in range(5)}
    assert len(drawn) > 20
    assert not same(chips[0, 0], cut(tmp_path, (40, 40), seed=6)[0, 0])


def test_training_chips_reach_all_borders(tmp_path: Path) -> None:
    chips = cut(tmp_path, (12, 10))
    image = READER(chips.pairs[0])[0][0]
    seen = np.zeros(image.shape, bool)
    for epoch in range(60):
        chip = chips[epoch, 0]["image"][0]
        seen |= np.isin(image, chip)
    assert seen.all()


@pytest.mark.parametrize("training", [True, False])
def test_labels_lie_under_their_pixels(tmp_path: Path, training: bool) -> None:
    for chips in (
        cut(tmp_path / "large", (20, 20), training=training),
        cut(tmp_path / "small", (3, 1), training=training),
    ):
        for index in range(len(chips)):
            chip = chips[1, index]
            assert np.array_equal(chip["labels"], chip["image"][0] > (128 - 100) / 50)


@pytest.mark.parametrize("training", [True, False])
def test_what_an_image_lacks_to_a_chip_is_mirrored_and_does_not_count(
    tmp_path: Path, training: bool
) -> None:
    chips = cut(tmp_path, (5, 3), training=training)
    image = READER(chips.pairs[0])[0][0]
    for epoch in range(4):
        chip = chips[epoch, 0]
        assert chip["valid"].sum() == 15 and chip["image"].shape == (1, 8, 8)
        row, column = np.argwhere(chip["valid"])[0]
        edges = ((row, 3 - row), (column, 5 - column))
        assert np.array_equal(chip["image"][0], np.pad(image, edges, mode="reflect"))


def test_training_chips_come_at_a_multiple_of_the_stride(tmp_path: Path) -> None:
    chips = cut(tmp_path, (20, 20), shape=(9, 9), geometry=Geometry(16, 0))
    assert chips[0, 0]["image"].shape == (1, 16, 16) and chips[0, 0]["valid"].sum() == 81
    chips = cut(tmp_path, (20, 20), shape=(9, 9), geometry=Geometry(16, 0), training=False)
    assert chips[0, 0]["image"].shape == (1, 9, 9)


UNPADDED = Geometry(16, 92, 92, 12)


def surrounded(image: NDArray[Any], row: int, column: int, side: tuple[int, int]) -> NDArray[Any]:
    """A rectangle of an image that goes on as its mirror image, by NumPy."""
    wide = np.pad(image, 400, mode="reflect")
    return wide[400 + row : 400 + row + side[0], 400 + column : 400 + column + side[1]]


@pytest.mark.parametrize("shape", [(4, 4), (20, 33), (64, 64)])
@pytest.mark.parametrize("training", [True, False])
def test_chips_of_an_unpadded_net_see_what_lies_around_them(
    tmp_path: Path, training: bool, shape: tuple[int, int]
) -> None:
    chips = cut(tmp_path, (150, 70), (9, 5), shape=shape, geometry=UNPADDED, training=training)
    legal = [min(n for n in range(188, 600, 16) if n - 184 >= side) for side in shape]
    for index in range(0, len(chips), 1 + len(chips) // 10):
        image, *_ = READER(chips.pairs[int(chips.key(index))])
        height, width = image.shape[1:]
        for epoch in range(3 if training else 1):
            chip = chips[epoch, index]
            assert chip["image"].shape == (1, *legal)
            assert chip["labels"].shape == chip["valid"].shape == tuple(legal)
            core = without_ring(chip["valid"])
            rows, columns = np.nonzero(core)
            high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert core.sum() == high * wide
            assert high <= min(shape[0], height) and wide <= min(shape[1], width)
            window = chips.plan[index][1]
            if training:
                places = [(r, c) for r in range(height - high + 1) for c in range(width - wide + 1)]
            else:
                places = [(window.row, window.column)]
            inner = chip["image"][0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            fitting = [
                (r, c)
                for r, c in places
                if np.array_equal(image[0, r : r + high, c : c + wide], inner)
            ]
            assert fitting
            whole = [
                surrounded(image[0], r - rows.min(), c - columns.min(), legal) for r, c in fitting
            ]
            assert any(np.array_equal(one, chip["image"][0]) for one in whole)
            assert np.array_equal(chip["labels"], chip["image"][0] > (128 - 100) / 50)


def without_ring(valid: Any) -> Any:
    """What a net's result of 92 px less on each side speaks of."""
    core = np.zeros_like(valid)
    core[92:-92, 92:-92] = valid[92:-92, 92:-92]
    return core


def test_validation_chips_of_an_unpadded_net_count_each_pixel_once(tmp_path: Path) -> None:
    chips = cut(tmp_path, (150, 70), (9, 5), shape=(64, 64), geometry=UNPADDED, training=False)
    for which, size in ((0, (150, 70)), (1, (9, 5))):
        image, *_ = READER(chips.pairs[which])
        mine = [chips[0, i] for i in range(len(chips)) if chips.key(i) == str(which)]
        values = np.concatenate([chip["image"][0][without_ring(chip["valid"])] for chip in mine])
        assert len(values) == size[0] * size[1]
        assert np.array_equal(np.sort(values), np.sort(image.ravel()))


def test_a_ring_of_pixels_that_are_there_is_not_mirrored(tmp_path: Path) -> None:
    """In the middle of a large image the ring is the image itself."""
    chips = cut(tmp_path, (600, 600), shape=(20, 20), geometry=UNPADDED, training=False)
    image, *_ = READER(chips.pairs[0])
    index = next(i for i, (_, w) in enumerate(chips.plan) if (w.row, w.column) == (300, 280))
    assert np.array_equal(chips[0, index]["image"][0], image[0, 208:412, 188:392])
    assert chips[0, index]["valid"].all()  # for losses that look beyond the result


def test_a_ring_of_mirrored_pixels_does_not_count(tmp_path: Path) -> None:
    chips = cut(tmp_path, (30, 20), shape=(20, 20), geometry=UNPADDED, training=False)
    valid = chips[0, 0]["valid"]  # rows 0 to 19 of 30, all columns
    wanted = np.zeros_like(valid)
    wanted[92 : 92 + 20, 92 : 92 + 20] = True
    assert np.array_equal(without_ring(valid), wanted)
    ring = valid & ~wanted
    assert ring.sum() == 10 * 20 and ring[112:122, 92:112].all()  # the rows below are there


def test_a_cache_changes_nothing_but_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((20, 12), (9, 9))
    kept, none = cut(tmp_path, *sizes, cache_mb=1), cut(tmp_path, *sizes, cache_mb=0)
    for _ in range(2):
        assert all(same(kept[2, i], none[2, i]) for i in range(len(kept)))
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert all(kept[2, i]["image"].any() for i in range(len(kept)))
    with pytest.raises(DataError, match="there is no such file"):
        none[2, 0]


# ---------------------------------------------------------------- batches


def batches(chips: Chips, workers: int = 0, epochs: tuple[int, ...] = (0, 1)) -> list[Any]:
    loader = make_loader(chips, 3, augmentation=Augmentation("free"), workers=workers)
    found = []
    for epoch in epochs:
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found += list(loader)
    return found


def test_batches_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    chips = cut(tmp_path, (20, 12), (9, 9), cache_mb=0)
    alone, helped = batches(chips), batches(chips, workers=2)
    assert len(alone) == len(helped) == 2 * -(-len(chips) // 3)
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


ORPHANS = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from made_chips import cut
from whatwhere.data.loader import make_loader
if __name__ == "__main__":
    batches = iter(make_loader(cut(Path({folder!r}), (20, 12), (9, 9)), 3, workers=1))
    print(batches._workers[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but being forgotten."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_process_that_reads_ahead_ends_with_the_one_that_was_killed_while_it_started(
    tmp_path: Path,
) -> None:
    script = tmp_path / "orphans.py"
    here = Path(__file__).parent
    path = [str(here), str(here.parent)]
    script.write_text(ORPHANS.format(path=path, folder=str(tmp_path / "data")))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
    for _ in range(600):
        if ended(pid):
            break
        time.sleep(0.1)
    assert ended(pid)


def test_a_process_whose_parent_is_another_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, left = iter([7, 7, 1]), list[int]()
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr("whatwhere.data.loader._LOOK_S", 0.0)
    EndsWith(7)._watch()
    assert left == [1] and next(parents, None) is None


def test_a_batch_depends_on_the_epoch_and_not_on_those_before(tmp_path: Path) -> None:
    chips = cut(tmp_path, (20, 12))
    first, second = batches(chips)[:2], batches(chips)[2:]
    alone = batches(chips, epochs=(1,))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(second, alone, strict=True))
    assert not torch.equal(first[0]["image"], second[0]["image"])


def test_every_chip_is_changed_anew_in_every_epoch(tmp_path: Path) -> None:
    chips = cut(tmp_path, *[(8, 8)] * 6)  # whole images: nothing else varies
    plain = {chips[epoch, index]["image"].tobytes() for epoch, index in np.ndindex(20, 6)}
    assert len(plain) == 6
    found = batches(chips, epochs=tuple(range(20)))
    assert len({image.numpy().tobytes() for batch in found for image in batch["image"]}) == 20 * 6


def test_types_of_a_batch(tmp_path: Path) -> None:
    batch = batches(cut(tmp_path, (20, 12)))[0]
    found = {name: (str(part.dtype), tuple(part.shape)) for name, part in batch.items()}
    assert found == {
        "image": ("torch.float32", (3, 1, 8, 8)),
        "labels": ("torch.int64", (3, 8, 8)),
        "valid": ("torch.bool", (3, 8, 8)),
        "index": ("torch.int64", (3,)),
    }


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(20, seed, shuffle=True)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3) and len(EpochSampler(20, 1, True)) == 20
    indexes = {tuple(index for _, index in order(s, e)) for s in range(3) for e in range(3)}
    assert len(indexes) == 9
    assert sorted(order(1, 3)) == [(3, index) for index in range(20)]
    assert list(EpochSampler(3, 1, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
