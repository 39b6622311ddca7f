"""Made-up exports of ArcGIS Pro for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from whatwhere.io.esri import DEFINITION, MAP, SUMS

EXAMPLES = {
    "Framework": "e.g. CNTK",
    "ModelConfiguration": "some description",
    "ImageHeight": "e.g. 256",
    "ImageWidth": "e.g. 256",
}
"""What some versions of Pro leave to be filled in."""


def write_chip(folder: Path, name: str, image: NDArray[Any], label: NDArray[Any]) -> None:
    """Write a chip `(C, H, W)` and its label `(H, W)`; names with their endings."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    if name.endswith(".tif"):
        pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        contig: Any = {"planarconfig": "contig"} if len(image) > 1 else {}
        tifffile.imwrite(folder / "images" / name, pixels, photometric="minisblack", **contig)
        tifffile.imwrite(folder / "labels" / name, label)
        return
    Image.fromarray(np.moveaxis(image, 0, -1)).save(folder / "images" / name)
    Image.fromarray(label).save(folder / "labels" / f"{Path(name).stem}.png")


def made_export(
    folder: Path,
    *,
    count: int = 6,
    side: int = 16,
    values: Sequence[int] = (1, 2),
    named: Sequence[Mapping[str, Any]] | None = None,
    bands: Sequence[str] = ("", "", ""),
    ending: str = ".tif",
    mode: str = "Classified_Tiles",
    lines: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write an export whose classes each have a brightness of their own, and all three files.

    Args:
        folder: Where it is made.
        count: Chips.
        side: Of a chip [px].
        values: What the labels hold.
        named: `Classes` of the definition; None names the values but 0.
        bands: Their names.
        ending: Of the chips.
        mode: The kind of export.
        lines: More lines of the definition.
        seed: What the pixels are drawn from.
    """
    rng = np.random.default_rng(seed)
    rows = [{"Value": v, "Name": f"kind {v}", "Color": [-1, -1, -1]} for v in values if v]
    names = [f"{number:09d}{ending}" for number in range(count)]
    for name in names:
        places = rng.integers(0, len(values), (side // 8, side // 8))
        index = np.kron(places, np.ones((8, 8), dtype=np.int64))
        shade = 40 + 150 * index / max(len(values) - 1, 1)
        image = np.stack([np.clip(shade + rng.normal(0, 9, index.shape), 0, 255) for _ in bands])
        label = np.array(values)[index].astype(np.uint8 if max(values) < 256 else np.uint16)
        write_chip(folder, name, image.astype(np.uint8), label)
    told = {
        **EXAMPLES,
        "MetaDataMode": mode,
        "InputRastersProps": {"RasterCount": 1, "BandNames": list(bands)},
        "Classes": rows if named is None else list(named),
        **(lines or {}),
    }
    sums = {"NumBands": len(bands), "NumTiles": count, "MetaDataMode": mode}
    (folder / DEFINITION).write_text(json.dumps(told), encoding="utf-8")
    (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")
    labels = names if ending == ".tif" else [f"{Path(name).stem}.png" for name in names]
    write_map(folder, zip(names, labels, strict=True))
    return folder


def write_map(folder: Path, chips: Any) -> None:
    """List chips as Pro does: with backslashes, and blanks at the end of a line."""
    text = "".join(f"images\\{image}  labels\\{label} \r\n" for image, label in chips)
    (folder / MAP).write_bytes(text.encode())
