"""Memory and disk for scenes of any size: 10,000 × 10,000 px against 100,000 × 100,000.

    python benchmarks/big_scene.py
    python benchmarks/big_scene.py --model resnet18 --side 100000

The scenes are sparse: data stands in a corner and in the middle, 1,500 px squared each, the rest of
the file is left out. Each run has a process of its own; its peak memory is told above what it had
when the net was loaded, and the parts on the disk are looked at all the while.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window
from rows import append

PATCH = 1500


def main() -> None:
    """Make the scenes, map each in a process of its own, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--model", default="tutorial")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(*asked.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        for side in asked.side:
            scene, out = Path(folder) / f"{side}.tif", Path(folder) / f"map-{side}.tif"
            make_scene(scene, side)
            command = [sys.executable, __file__, "--worker", str(scene), str(out), asked.model]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            append("big_scene", model=asked.model, side=side, **found)


def make_scene(path: Path, side: int) -> None:
    """Write a sparse GeoTIFF of three bands."""
    rng = np.random.default_rng(0)
    profile: dict[str, Any] = {"driver": "GTiff", "tiled": True, "compress": "deflate"}
    profile |= {"blockxsize": 512, "blockysize": 512, "nodata": 0, "SPARSE_OK": True}
    profile |= {"crs": "EPSG:32645", "BIGTIFF": "YES", "dtype": "uint8", "count": 3}
    profile["transform"] = rasterio.transform.from_origin(500000, 3000000, 0.5, 0.5)
    with rasterio.open(path, "w", height=side, width=side, **profile) as file:
        for start in (0, side // 2):
            noise = rng.integers(1, 255, (3, PATCH, PATCH), dtype=np.uint8)
            file.write(noise, window=Window(start, start, PATCH, PATCH))


def work(scene: str, out: str, model: str) -> None:
    """Map one scene and print what it took."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from made_maps import make_predictor
    from whatwhere.machine import large_pages, peak_memory_mb
    from whatwhere.predict.maps import MapOptions, map_scene
    from whatwhere.talk import QUIET

    large_pages()  # as the command line does
    arguments = {"n_filters": 16} if model == "tutorial" else {}
    predictor = make_predictor(model, **arguments)
    largest, over = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not over.wait(0.2):
            sizes = 0
            for path in Path(f"{out}.parts").glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    sizes += path.stat().st_size
            largest = max(largest, sizes)

    watcher = threading.Thread(target=watch, daemon=True)
    before, started = peak_memory_mb() or 0, time.monotonic()
    watcher.start()
    map_scene([predictor], Path(scene), Path(out), MapOptions(thresholds=(0.5,)), QUIET)
    seconds = time.monotonic() - started
    over.set()
    watcher.join()
    size = Path(out).stat().st_size
    found = {
        "seconds": round(seconds, 1),
        "peak_mb_above_start": (peak_memory_mb() or 0) - before,
        "map_bytes": size,
        "most_bytes_of_parts": largest,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
