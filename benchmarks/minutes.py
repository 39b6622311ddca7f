"""Quality for a given time: `whatwhere train --minutes` beside what others make of the same data.

    python benchmarks/minutes.py --system ours --set salt --seed 1
    python benchmarks/minutes.py --system smp --set salt --seed 1 --minutes 10
    python benchmarks/minutes.py --system fastai --set india --seed 2 --scratch

A call is one training: one system, one set, one seed. What has its row already is not done again.
Every system gets the same folder: `train`, `val` and `test`, each with `images` and `masks`, all
PNG. It has so many minutes of wall time, from the start of its process on, for learning and for
finding its threshold on the validation split. Then it writes masks of the test images, which are
scored here, once; ours a second time with `--tta`, which is a row of its own. The data come from
`WHATWHERE_DATA`, the weights of the backbone, which all systems begin with that can, from
`WHATWHERE_WEIGHTS`.

Peers are not among this project's dependencies: make an environment of their own, and name its
Python.

    pip install -r benchmarks/peers/requirements.txt    # Ultralytics' is under the AGPL
    python benchmarks/minutes.py --system smp --set salt --seed 1 --python PEERS/bin/python
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rows import RESULTS, append

NET = "tf_efficientnet_lite0"
HERE = Path(__file__).parent
SYSTEMS = ("ours", "smp", "fastai", "nnunet", "ultralytics")
SCRATCH = ("nnunet", "ultralytics")  # whose nets are not timm's
CLASSES = {
    "salt": "background,salt",
    "banepa": "other,building",
    "india": "0=ignore,1=built-up,2=vegetation,3=water",
}
IGNORED = {"salt": None, "banepa": None, "india": 0}
INDIA_KEY = 16  # the deal of `s2_india.py`
TTA = " --tta"  # of ours: a row of its own for the mean over the symmetries
TILE = 512  # of the scene of Banepa [px]


def main() -> None:
    """Train once, score once, keep a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--system", choices=SYSTEMS, required=True)
    parser.add_argument("--set", choices=list(CLASSES), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--scratch", action="store_true", help="no system gets pretrained weights")
    parser.add_argument("--net", default=NET, help="of a peer, without pretrained weights")
    parser.add_argument("--python", default=sys.executable, help="of the peers' environment")
    parser.add_argument("--keep", type=Path, help="leave data, run and masks in this folder")
    parser.add_argument("--again", action="store_true", help="also where the row is there")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no row")
    asked = parser.parse_args()
    if asked.net != NET and asked.system not in ("smp", "fastai"):
        parser.error(f"--net is for smp and fastai, {asked.system} takes its own")
    asked.scratch |= asked.net != NET
    if not (asked.dry_run or asked.again) and done(asked):
        print("this row is there")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = (asked.keep or Path(place)) / asked.set
        name = f"{asked.system}-{start(asked)}-{asked.seed}-{asked.minutes:g}"
        name += f"-{asked.net}" if asked.net != NET else ""
        data, out = folder / "data", folder / name
        if not data.exists():
            SETS[asked.set](Path(os.environ["WHATWHERE_DATA"]), data)
        told = out / "trained.json"  # of a call that ended before its row was kept
        if not told.exists():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            train = ours if asked.system == "ours" else peer
            told.write_text(json.dumps(train(asked, data, out)), encoding="utf-8")
        seconds, about = json.loads(told.read_text(encoding="utf-8"))
        found = {
            f"{asked.system}{flag}": score(data / "test" / "masks", masks, asked.set)
            for flag in ("", TTA)
            if (masks := out / f"masks{flag.replace(' ', '')}").exists()
        }
    row = {
        "set": asked.set,
        "system": "",
        "start": start(asked),
        "seed": asked.seed,
        "minutes": asked.minutes,
        "seconds": round(seconds, 1),
        **{name: about.get(name, "") for name in ("release", "net", "steps", "threshold")},
    }
    for system, scores in found.items():
        if asked.dry_run:
            print({**row, "system": system, **scores})
        else:
            append("minutes", **{**row, "system": system, **scores})


def start(asked: Any) -> str:
    """Say what a system begins with."""
    return "scratch" if asked.scratch or asked.system in SCRATCH else "pretrained"


def done(asked: Any) -> bool:
    """Whether the row is there."""
    wanted = [asked.set, asked.system, start(asked), str(asked.seed), str(asked.minutes)]
    try:
        with open(RESULTS / "minutes.csv", newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError:
        return False
    names = ("set", "system", "start", "seed", "minutes")
    own = asked.system in ("ours", *SCRATCH)  # which take no net that is named
    return any(
        [row[name] for name in names] == wanted and (own or asked.net == row["net"].split()[-1])
        for row in rows
    )


def ours(asked: Any, data: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Train as a user would, and predict; the seconds of the training, and what was taken."""
    run = out / "run"
    words = ["train", data, "-o", run, "--minutes", f"{asked.minutes:g}", "--seed", asked.seed]
    words += ["--classes", CLASSES[asked.set]]
    words += ["--no-pretrained"] if asked.scratch else []
    words += ["--orientation", "upright" if asked.set == "salt" else "free"]
    environ = dict(os.environ)
    if not asked.scratch:
        environ |= hub(out / "hub")
    began = time.monotonic()
    whatwhere(words, environ)
    seconds = time.monotonic() - began
    predict = ["predict", run, data / "test" / "images", "-o"]
    whatwhere([*predict, out / "masks"], environ)
    whatwhere([*predict, out / f"masks{TTA.strip()}", TTA.strip()], environ)
    card = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))["card"]
    choice = json.loads((run / "report" / "choice.json").read_text(encoding="utf-8"))
    print(json.dumps(choice, indent=1))
    with open(run / "log.csv", newline="", encoding="utf-8") as stream:
        print(stream.read())
    thresholds = [round(value, 3) for value in card.get("thresholds") or []]
    about = {
        "release": card["versions"].get("whatwhere", ""),
        "net": card["model"],
        "steps": choice["plan"]["training"],
        "threshold": thresholds[0] if len(thresholds) == 1 else "",
    }
    return seconds, about


def whatwhere(words: list[Any], environ: dict[str, str]) -> None:
    """Run a command of ours."""
    command = [sys.executable, "-m", "whatwhere", *map(str, words)]
    subprocess.run(command, check=True, env=environ)


def hub(folder: Path) -> dict[str, str]:
    """Lay the weights where timm looks for what it fetched before; the environment to say so."""
    home = folder / "hub" / f"models--timm--{NET}.in1k"
    for part in ("refs", "snapshots/local"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text("local", encoding="utf-8")
    (home / "snapshots" / "local" / "model.safetensors").symlink_to(weights())
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def weights() -> Path:
    """Return the file that all pretrained systems begin with."""
    return Path(os.environ["WHATWHERE_WEIGHTS"]).resolve() / f"{NET}.safetensors"


def peer(asked: Any, data: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Let a peer train and predict; the seconds until it says that it has trained."""
    job = {
        "data": str(data),
        "out": str(out / "masks"),
        "work": str(out / "work"),
        "seconds": 60 * asked.minutes,
        "seed": asked.seed,
        "weights": "" if asked.scratch else str(weights()),
        "net": asked.net,
        "values": [int(value) for value in values(asked.set)],
        "ignored": IGNORED[asked.set],
        "turns": asked.set != "salt",  # as ours is told: seen from above, all turns are alike
    }
    (out / "work").mkdir()
    command = [asked.python, str(HERE / "peers" / f"train_{asked.system}.py"), json.dumps(job)]
    began, seconds, about = time.monotonic(), 0.0, {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("trained "):
                seconds, about = time.monotonic() - began, json.loads(line.split(" ", 1)[1])
    if process.returncode or not seconds:
        raise SystemExit(f"{asked.system} ended with {process.returncode}")
    return seconds, about


def values(name: str) -> list[int]:
    """Return the numbers of the classes in the masks."""
    return [1, 2, 3] if name == "india" else [0, 1]


def score(truths: Path, masks: Path, name: str) -> dict[str, Any]:
    """Return the IoU of the classes over all pixels of the test images that count."""
    numbers = values(name)
    hits, unions = np.zeros(len(numbers)), np.zeros(len(numbers))
    by_image, right, total = [], 0, 0
    for path in sorted(truths.glob("*.png")):
        truth, said = read(path), read(masks / path.name)
        counts = truth != IGNORED[name] if IGNORED[name] is not None else np.ones(truth.shape, bool)
        right, total = right + int((truth == said)[counts].sum()), total + int(counts.sum())
        for i, value in enumerate(numbers):
            there, seen = (truth == value) & counts, (said == value) & counts
            hits[i] += (there & seen).sum()
            unions[i] += (there | seen).sum()
        there, seen = (truth == numbers[-1]) & counts, (said == numbers[-1]) & counts
        both = (there | seen).sum()
        by_image.append((there & seen).sum() / both if both else 1.0)
    ious = hits / unions
    return {
        "test_images": len(by_image),
        "test_mean_iou": round(float(ious.mean()), 4),
        "test_iou_last_class": round(float(ious[-1]), 4),
        "test_iou_last_class_by_image": round(float(np.mean(by_image)), 4),
        "test_accuracy": round(right / total, 4),
    }


def read(path: Path) -> NDArray[np.uint8]:
    """Return the numbers of a mask."""
    with Image.open(path) as image:
        return np.asarray(image)


def keep(folder: Path, name: str, image: NDArray[Any], mask: NDArray[Any]) -> None:
    """Write a pair."""
    for kind, pixels in (("images", image), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")


def make_salt(source: Path, data: Path) -> None:
    """Deal the pairs out: 315 for validation, as many for the test, 2,522 for training."""
    names = sorted(path.stem for path in (source / "tgs_salt" / "images").glob("*.png"))
    order = np.random.RandomState(42).permutation(len(names))
    for place, at in enumerate(order):
        part = "val" if place < 315 else "test" if place < 630 else "train"
        image = read(source / "tgs_salt" / "images" / f"{names[at]}.png")
        mask = read(source / "tgs_salt" / "masks" / f"{names[at]}.png") > 0
        keep(data / part, names[at], image, mask.astype(np.uint8))


def make_banepa(source: Path, data: Path) -> None:
    """Cut the scene into 36 tiles: one column of them validates, one tests."""
    import rasterio
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    folder = source / "oam_banepa"
    found = json.loads((folder / "buildings.geojson").read_text(encoding="utf-8"))["features"]
    with rasterio.open(folder / "scene_train.tif") as scene:
        pixels = np.moveaxis(scene.read([1, 2, 3]), 0, -1)
        shapes = transform_geom("OGC:CRS84", scene.crs, [one["geometry"] for one in found])
        burnt = rasterize(shapes, scene.shape, transform=scene.transform, dtype="uint8")
    for row in range(0, pixels.shape[0], TILE):
        for column in range(0, pixels.shape[1], TILE):
            part = {1: "val", 4: "test"}.get(column // TILE, "train")
            window = slice(row, row + TILE), slice(column, column + TILE)
            image = np.ascontiguousarray(pixels[window])
            keep(data / part, f"r{row}c{column}", image, burnt[window])


def make_india(source: Path, data: Path) -> None:
    """Deal the scenes out: 16, 4 and 4; three bands, black where there are none."""
    folder = source / "s2_india"
    names = sorted(path.stem for path in (folder / "images").glob("*.png"))
    order = np.random.Generator(np.random.Philox(key=[INDIA_KEY, 0])).permutation(len(names))
    for place, at in enumerate(order):
        part = "train" if place < 16 else "val" if place < 20 else "test"
        with Image.open(folder / "images" / f"{names[at]}.png") as image:
            colour = np.asarray(image.convert("RGBA"))
        mask = read(folder / "masks" / f"{names[at]}.png").copy()
        mask[colour[..., 3] == 0] = 0
        keep(data / part, names[at], np.ascontiguousarray(colour[..., :3]), mask)


SETS: dict[str, Callable[[Path, Path], None]] = {
    "salt": make_salt,
    "banepa": make_banepa,
    "india": make_india,
}

if __name__ == "__main__":
    main()
