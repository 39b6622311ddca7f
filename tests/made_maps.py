"""Nets nobody trained and rasters nobody took, for the tests of maps."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from whatwhere.bundle import Card, save
from whatwhere.nn.build import build_model, geometry
from whatwhere.predict.backends import TorchBackend
from whatwhere.predict.engine import Predictor
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization, default_color

UTM = CRS.from_epsg(32645)
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 3000000)


def make_classes(count: int = 2, task: str = "binary") -> Classes:
    infos = tuple(
        ClassInfo(f"class {i}", i, default_color(i), "background" if i == 0 else "class", (i,))
        for i in range(count)
    )
    return Classes(infos, task)  # type: ignore[arg-type]


def make_predictor(
    model: str = "tutorial",
    *,
    bands: Sequence[str] = ("red", "green", "blue"),
    classes: Classes | None = None,
    seed: int = 0,
    tile: int = 0,
    pixel_size: float | None = None,
    shape: Geometry | None = None,
    **arguments: Any,
) -> Predictor:
    """A net with weights from a seed, whose probabilities spread over [0, 1]."""
    classes = classes or make_classes()
    if model == "tutorial":
        arguments = {"n_filters": 2, **arguments}
    torch.manual_seed(seed)
    net = build_model(model, len(bands), classes.n_outputs, **arguments)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    net.eval()
    with torch.inference_mode():
        logits = net(torch.randn(1, len(bands), *[(shape or geometry(net)).window(64)] * 2))
        gain = 2 / float(logits.std())
    last = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= gain
        if last.bias is not None:
            last.bias.copy_((last.bias - logits.mean()) * gain)
    softmax = classes.task == "multiclass"
    card = Card(
        model=model,
        arguments=arguments,
        parameters=1,
        classes=classes,
        bands=Bands(tuple(bands)),
        normalization=Normalization((100.0,) * len(bands), (50.0,) * len(bands)),
        resize=None,
        chip_size=(128, 128),
        orientation="free",
        geometry=shape or geometry(net),
        pixel_size=pixel_size,
        thresholds=() if softmax else (0.5,) * len(classes.labels),
        scores={},
        tuning={},
        objects={},
        self_test={},
        recipe={},
        data={},
        versions={},
        created=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).isoformat(),
    )
    return Predictor(card, TorchBackend(net, classes.task), tile, digest=f"{model}-{seed}")


def save_bundle(folder: Path, predictor: Predictor) -> Path:
    """Save the net as a bundle."""
    weights = {name: t.numpy() for name, t in predictor.net.state_dict().items()}
    save(folder, predictor.card, weights)
    return folder


def write_scene(
    path: Path,
    pixels: NDArray[Any],
    *,
    transform: Affine = NORTH_UP,
    crs: CRS | None = UTM,
    **profile: Any,
) -> Path:
    """Write `(C, H, W)` as a GeoTIFF."""
    count, height, width = pixels.shape
    settings = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, **profile}
    placed = {"crs": crs, "transform": transform} if crs or transform != Affine.identity() else {}
    settings |= {"height": height, "width": width, "count": count, "dtype": pixels.dtype, **placed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as file:
            file.write(pixels)
    return path


def make_pixels(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth patches with noise, uint8, never 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (bands, -(-height // 16), -(-width // 16)))
    fine = np.kron(coarse, np.ones((16, 16)))[:, :height, :width] + rng.normal(
        0, 12, (bands, height, width)
    )
    return np.clip(fine, 1, 255).astype(np.uint8)
