"""No false alarm: data that nothing is wrong with; and that the catalogue has no gap."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cases import At, Case, Words, check
from made_scenes import Place, bright_scene, truth_of, write_places
from told import call

TYPES: dict[str, tuple[str, ...]] = {  # of images, and the endings that can hold them
    "uint8": (".png", ".tif", ".bmp", ".webp", ".jpg"),
    "uint16": (".png", ".tif"),
    "int32": (".tif",),
    "float32": (".tif",),
}
NUMBERS = ((0, 1), (0, 255), (0, 1, 2), (0, 3, 7), (1, 2, 3, 4), (0, 65535), (0, 9))
LAYOUTS = ("flat", "nested", "split", "labels", "several labels", "exact")


@pytest.mark.parametrize("seed", range(24))
def test_clean_images_raise_no_alarm(seed: int, tmp_path: Path, nets: Path) -> None:
    check(Case(f"clean {seed}", 0, ("0 errors, 0 warnings",), made(seed)), tmp_path, nets)


def made(seed: int) -> Callable[[At], Words | Path]:
    """A data set of which everything is drawn from a seed."""
    rng = np.random.default_rng([seed, 41])
    dtype = list(TYPES)[seed % len(TYPES)]
    ending = str(rng.choice(TYPES[dtype]))
    small = ending in (".bmp", ".jpg", ".webp") or (ending == ".png")
    bands = int(rng.choice([1, 3] if small else [1, 3, 4, 6]))
    bands = 3 if ending == ".webp" else 1 if (ending, dtype) == (".png", "uint16") else bands
    numbers = NUMBERS[int(rng.integers(len(NUMBERS)))]
    layout = LAYOUTS[seed % len(LAYOUTS)]

    def make(at: At) -> Path:
        for i in range(6):
            height, width = (40, 56) if layout == "exact" else rng.integers(9, 70, 2).tolist()
            coarse = rng.integers(len(numbers), size=(height // 8 + 1, width // 8 + 1))
            coarse.flat[: len(numbers)] = range(len(numbers))
            index = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
            picture = rng.integers(0, 100, (height, width, bands)) + 40 * index[..., None] % 150
            stem = f"{'a/' if layout == 'nested' else ''}p{i}"
            root = at.data / ("train", "val")[i // 4] if layout == "split" else at.data
            save(root / "images" / f"{stem}{ending}", picture.astype(dtype))
            if layout == "several labels":
                for name in ("roof", "wall"):
                    plane = rng.permutation(index.ravel()).reshape(index.shape) == 1
                    save(root / "masks" / name / f"{stem}.png", plane[..., None].astype(np.uint8))
            else:
                masks = "labels" if layout == "labels" else "masks"
                mask = np.array(numbers, dtype=np.uint16 if max(numbers) > 255 else np.uint8)
                save(root / masks / f"{stem}.png", mask[index][..., None])
        return at.data

    return make


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        how = {} if flat.ndim == 2 else {"planarconfig": "contig"}
        tifffile.imwrite(path, flat, photometric="minisblack", **how)
    else:
        Image.fromarray(np.squeeze(pixels, 2) if pixels.shape[2] == 1 else pixels).save(path)


@pytest.mark.parametrize("seed", range(6))
def test_clean_scenes_raise_no_alarm(seed: int, tmp_path: Path, nets: Path) -> None:
    rng = np.random.default_rng([seed, 43])
    size, bands = rng.integers(200, 260, 2).tolist(), int(rng.choice([1, 3, 4]))
    places: list[Place] = [(r, c, 45, 55) for r in (5, 65, 125) for c in (9, 70, 131)]
    kinds = [1 + i % (1 + seed % 3) for i in range(len(places))]
    ending = (".gpkg", ".geojson", ".fgb")[seed % 3]

    def make(at: At) -> Words:
        truth = truth_of((size[0], size[1]), places, kinds)
        scene = bright_scene(at.data / "scene.tif", truth, bands=bands, seed=seed)
        columns = {"kind": [f"kind {kind}" for kind in kinds]}
        labels = write_places(at.data / f"labels{ending}", places, columns=columns)
        return "inspect", scene, "--labels", labels, "--class-field", "kind"

    check(Case("", 0, ("0 errors, 0 warnings",), make), tmp_path, nets)


REAL = (  # beside the folders of images in tests/test_real_data.py
    "oam_banepa/scene_train.tif --labels oam_banepa/buildings.geojson",
    "nc_landsat7/scene_6band.tif --labels nc_landsat7/landsat96_labelled_pixels.tif",
    "nc_landsat7/scene_6band.tif --labels nc_landsat7/landsat96_polygons.shp "
    "--class-field label --aoi nc_landsat7/landsat96_polygons.shp "
    "--classes developed,forest,herbaceous,sediment,shrubland,water",
    "spacenet/sample_geotiff.tif --labels spacenet/geotiff_labels.geojson",
    "spacenet/road_mask_input.tif --labels spacenet/sample_roads_for_masking.geojson --buffer-m 4",
)


@pytest.mark.parametrize("words", REAL)
def test_real_scenes_raise_no_alarm(words: str, real_data: Callable[[str], Path]) -> None:
    root = real_data(words.split("/")[0]).parent
    found = call("inspect", *(root / word if "/" in word else word for word in words.split()))
    assert found.exit_code == 0 and "\n0 errors, 0 warnings" in found.output, found.output


def test_every_fault_has_a_case() -> None:
    """A1 to E103 of the list are each named by a case, or by a test that says its number."""
    told = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = {int(n) for n in re.findall(r"\b[A-E](\d\d+)\b", told)}
    named |= {int(n) for n in re.findall(r"def test_d(\d\d)_", told)}
    assert set(range(1, 104)) <= named, set(range(1, 104)) - named
