"""How long a training step takes beside peers', and how much of it is waiting for data.

    python benchmarks/training.py --python PEERS/bin/python     # tutorial, resnet34 and real chips
    python benchmarks/training.py --what chips

The tutorial's net (32 images of 128 px) beside Keras on TensorFlow; a U-Net on resnet34 (8 images
of 256 px) beside a plain loop over segmentation_models_pytorch and fastai's `Learner`. Ours is what
`whatwhere train` runs, with all that it does beside the step. Each has a process of its own, and
they take turns; the ratios are of one round each: seconds of the peer divided by ours. Peers are
installed as `minutes.py` says; one that is missing is left out.

`chips` trains on real images, from a folder of PNG and from a scene, and tells the share of the
steps' time that went by waiting for them, in the first epoch, which reads them, and later. Images
that fit into memory are read once; what is cut from the scene is another part each time.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import append

PEERS = Path(__file__).parent / "peers" / "steps.py"
WORKS = {"tutorial": ("keras",), "resnet34": ("smp", "fastai")}
OURS = """
import sys
import torch
from torch.utils.data import DataLoader
from whatwhere.config import make_recipe
from whatwhere.nn.build import build_model
from whatwhere.talk import QUIET
from whatwhere.train.fit import fit
name, count = sys.argv[1], int(sys.argv[2])
size, bands, side = (32, 1, 128) if name == "tutorial" else (8, 3, 256)
torch.manual_seed(0)
image, labels = torch.randn(size, bands, side, side), torch.randint(0, 2, (size, side, side))
batch = {"image": image, "labels": labels, "valid": torch.ones_like(labels, dtype=torch.bool)}
batch["index"] = torch.arange(size)
train, val = (DataLoader([batch] * n, batch_size=None) for n in (count, 1))
recipe = make_recipe(model=name, pretrained=False, epochs=1, batch_size=size)
net = build_model(name, bands, 1)
found = fit(net, train, val, recipe, "binary", 2, on_best=lambda *_: None, talk=QUIET)
print(found.step_seconds)
"""


def main() -> None:
    """Measure, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--what", nargs="+", default=[*WORKS, "chips"], choices=[*WORKS, "chips"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of each process in a round")
    parser.add_argument("--python", default=sys.executable, help="of the peers' environment")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no rows")
    given = parser.parse_args()
    for name in given.what:
        file = "waiting" if name == "chips" else "training"
        for row in chips() if name == "chips" else beside(name, given):
            if given.dry_run:
                print(row)
            else:
                append(file, **row)


def beside(name: str, given: Any) -> list[dict[str, Any]]:
    """Return a row for each peer of a net."""
    ours = [sys.executable, "-c", OURS, name, str(given.steps)]
    times: dict[str, list[float]] = {"ours": []}
    times |= {peer: [] for peer in WORKS[name]}
    for _ in range(given.rounds):
        for who in list(times):
            words = ours if who == "ours" else [given.python, str(PEERS), who, str(given.steps)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{who} is left out: {done.stderr.strip().splitlines()[-1]}")
                del times[who]
                continue
            times[who].append(float(done.stdout.split()[-1]))
    rows = []
    for who in times:
        if who == "ours":
            continue
        ratios = [a / b for a, b in zip(times[who], times["ours"], strict=True)]
        rows.append(
            {
                "what": f"{name} beside {who}",
                "rounds": given.rounds,
                "ours_s": round(statistics.median(times["ours"]), 3),
                "other_s": round(statistics.median(times[who]), 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
            }
        )
    return rows


def chips() -> list[dict[str, Any]]:
    """Return a row for each kind of real data: the shares of waiting."""
    from whatwhere import Talk, jobs

    data = Path(os.environ["WHATWHERE_DATA"])
    banepa = data / "oam_banepa"
    sets = {
        "PNG, 101x101 stretched to 128x128": (
            data / "tgs_salt",
            {"resize": "128", "epochs": 2, "epoch_chips": 0},
        ),
        "GeoTIFF and polygons, chips of 256x256": (
            banepa / "scene_train.tif",
            {"labels": banepa / "buildings.geojson", "batch_size": 8, "chip_size": 256},
        ),
    }
    rows = []
    for name, (source, settings) in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            short = {"epochs": 4, "epoch_chips": 16 * int(str(settings.get("batch_size", 32)))}
            jobs.train(source, run, **{**short, **settings}, talk=Talk())  # type: ignore[arg-type]
            with open(run / "log.csv", newline="", encoding="utf-8") as stream:
                shares = [float(row["waiting"]) for row in csv.DictReader(stream)]
        later = statistics.median(shares[1:])
        rows.append(
            {
                "what": f"tutorial, {name}",
                "first_epoch_share": shares[0],
                "later_share": later,
                "ratio": round(1 / (1 - later), 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
