"""Buildings of Banepa: trained on a scene and its polygons, scored on blocks held out, mapped.

    python benchmarks/banepa.py
    python benchmarks/banepa.py --epochs 20 --keep FOLDER

The raster is in Web Mercator, the polygons are in longitude and latitude. The scene is cut into
blocks, of which some validate and some test, with a gap between. The threshold is tuned on the
validation blocks before the test blocks are scored. Then the second scene, which has no labels, is
mapped. `--keep` leaves the run, the map and its polygons to be looked at.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

from rows import append

from whatwhere import Talk, jobs

NET = "tf_efficientnet_lite0"


def main() -> None:
    """Train, tune, score, map; keep a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recipe", default="modern")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    data = Path(os.environ["WHATWHERE_DATA"]) / "oam_banepa"
    weights = Path(os.environ["WHATWHERE_WEIGHTS"]) / f"{NET}.safetensors"
    with tempfile.TemporaryDirectory() as place:
        folder = asked.keep or Path(place)
        run, talk = folder / "run", Talk()
        labels = data / "buildings.geojson"
        started = time.monotonic()
        jobs.train(
            data / "scene_train.tif",
            run,
            labels=labels,
            recipe=asked.recipe,
            model=NET,
            pretrained_path=str(weights),
            chip_size=256,
            batch_size=8,
            epochs=asked.epochs,
            seed=asked.seed,
            talk=talk,
        )
        seconds = time.monotonic() - started
        tuned = jobs.tune(run, data / "scene_train.tif", labels=labels, talk=talk)
        scores = jobs.evaluate(run, data / "scene_train.tif", labels=labels, talk=talk)
        started = time.monotonic()
        made = jobs.predict(
            run,
            data / "scene_predict.tif",
            folder / "map.tif",
            polygons=folder / "map.gpkg",
            square=True,
            min_area_m2=5,
            nodata=255,
            talk=talk,
        )
        mapped = time.monotonic() - started
        with open(run / "log.csv", newline="", encoding="utf-8") as stream:
            epochs = len(list(csv.DictReader(stream)))
    (label,) = tuned["labels"].values()
    building = scores["classes"][1]
    append(
        "banepa",
        net=NET,
        recipe=asked.recipe,
        seed=asked.seed,
        epochs=epochs,
        train_seconds=round(seconds),
        threshold=label["threshold"],
        val_iou=round(label["value"], 4),
        test_blocks=scores["images"],
        test_iou=round(building["iou"], 4),
        test_precision=round(building["precision"], 4),
        test_recall=round(building["recall"], 4),
        map_seconds=round(mapped),
        map_share=round(made[0].pixels[building["name"]] / made[0].valid, 4),
        polygons=made[0].objects,
    )


if __name__ == "__main__":
    main()
