"""Defects that were seen in arcgis.learn, and that this package does not have.

The numbers are those of the list they are on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from made_esri import made_export
from whatwhere import jobs, load
from whatwhere.face.data import SegmentationData
from whatwhere.io.image import read_image
from whatwhere.learn import UnetClassifier, prepare_data
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)


def training_pixels(data: SegmentationData) -> NDArray[np.float64]:
    """All pixels that train, `(C, N)`."""
    images = [read_image(pair.image)[0] for pair in data.train_ds]
    return np.concatenate([one.reshape(len(one), -1) for one in images], axis=1).astype(np.float64)


def shift(root: Path, by: float, factor: float = 1.0) -> None:
    """Make the chips of an export 16-bit, of other values."""
    for path in (root / "images").iterdir():
        pixels = np.moveaxis(read_image(path)[0], 0, -1).astype(np.float64) * factor + by
        tifffile.imwrite(
            path,
            np.ascontiguousarray(pixels.astype(np.uint16)),
            photometric="minisblack",
            planarconfig="contig",
        )


def test_4_the_variance_of_several_folders_counts_the_shift_of_their_means(tmp_path: Path) -> None:
    dark, bright = (made_export(tmp_path / name, seed=s) for s, name in enumerate("ab"))
    shift(bright, 20_000.0)
    shift(dark, 100.0)
    data = prepare_data([dark, bright], working_dir=tmp_path / "work", talk=QUIET)
    pixels = training_pixels(data)
    np.testing.assert_allclose(data.normalization.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(data.normalization.std, pixels.std(axis=1), rtol=1e-12)
    assert min(data.normalization.std) > 5_000  # without the shift it is that of one folder, < 200


def test_5_values_are_measured_alike_whatever_chance_did_before(tmp_path: Path) -> None:
    root = made_export(tmp_path, count=30)
    shift(root, 0.0, 37.0)
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        data = prepare_data(root, norm_pct=0.3, talk=QUIET)
        found.append(data.normalization)
        np.testing.assert_allclose(found[-1].mean, training_pixels(data).mean(axis=1), rtol=1e-12)
    assert found[0] == found[1]


def test_6_one_hot_pixel_does_not_flatten_the_image(tmp_path: Path) -> None:
    root = made_export(tmp_path, count=12, side=64)
    shift(root, 1_000.0)
    before = prepare_data(root, talk=QUIET)
    pair = before.train_ds[0]
    pixels = np.moveaxis(read_image(pair.image)[0], 0, -1).copy()
    pixels[3, 5] = 65_535
    tifffile.imwrite(pair.image, pixels, photometric="minisblack", planarconfig="contig")
    after = prepare_data(root, talk=QUIET)
    image = after.plan.reader(pair)[0]
    usual = np.delete(image.reshape(3, -1), 3 * 64 + 5, axis=1)
    spread = usual.max(axis=1) - usual.min(axis=1)
    stretched = (pixels.reshape(-1, 3).astype(np.float64) - 1_000) / (65_535 - 1_000)
    theirs = np.ptp(np.delete(stretched, 3 * 64 + 5, axis=0), axis=0)
    assert (spread > 0.5).all()  # in deviations
    assert (theirs < 0.01).all()  # of the range from 0 to 1
    between = np.array(after.normalization.mean) - np.array(before.normalization.mean)
    assert (np.abs(between) < 2).all()


@pytest.mark.parametrize("stratify", [False, True])
def test_7_nothing_is_printed(
    tmp_path: Path, stratify: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    root = made_export(tmp_path / "data", count=12)
    prepare_data(root, stratify=stratify, val_split_pct=0.3, working_dir=tmp_path, talk=QUIET)
    assert capfd.readouterr() == ("", "")


# The net


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> UnetClassifier:
    """A net that was trained for a second."""
    root = made_export(tmp_path_factory.mktemp("data"), count=8)
    data = prepare_data(root, batch_size=4, val_split_pct=0.25, talk=QUIET)
    unet = UnetClassifier(data, "tutorial", n_filters=4)
    unet.fit(2, lr=0.01)
    return unet


@pytest.mark.parametrize("augmented", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_8_tiles_leave_no_seam_with_augmentation_or_without(
    unet: UnetClassifier, tmp_path: Path, augmented: bool
) -> None:
    """Probabilities of small tiles are those of one that holds the whole picture."""
    rng = np.random.default_rng(3)
    tifffile.imwrite(tmp_path / "wide.tif", rng.integers(0, 256, (320, 300, 3), dtype=np.uint8))
    found = []
    for tile in (288, 1024):
        (made,) = unet.predict_raster(
            tmp_path / "wide.tif", tmp_path / f"{tile}.tif", tile=tile, tta=augmented,
            probabilities=True,
        )  # fmt: skip
        found.append(tifffile.imread(made.files[1]).astype(np.int64))
    assert np.abs(found[0] - found[1]).max() <= 1  # a step of 8 bits, by rounding
    assert len(np.unique(found[0])) > 2


def test_9_a_net_is_exported_as_onnx(unet: UnetClassifier, tmp_path: Path) -> None:
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    saved = unet.save(tmp_path / "net")
    told = jobs.export(saved, tmp_path / "net.onnx", talk=QUIET)
    assert told["largest_difference"] < 1e-4
    image = np.random.default_rng(4).integers(0, 256, (3, 70, 90), dtype=np.uint8)
    answers = [load(path).probabilities(image) for path in (tmp_path / "net.onnx", saved)]
    np.testing.assert_allclose(*answers, atol=1e-4)
    assert unet.predict(image).shape == (70, 90)
