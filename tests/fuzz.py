"""Reads files that are nearly good: nothing but errors of ours, in little time and memory.

`python tests/fuzz.py --seconds 900` changes small real files at random and reads them, each batch
in a process of its own, so that one that dies takes nothing with it. What is found goes to
`tests/corpus.json`, which `tests/test_fuzz.py` reads again.

Limits: 2 s of processor time and 512 MB of memory for each file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from whatwhere.errors import WhatwhereError

CORPUS = Path(__file__).with_name("corpus.json")
SECONDS, MEGABYTES = 2, 512
BATCH = 200

Files = Mapping[str, bytes]
"""What a reader is given: the names of files in a folder, the first one is read."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: What it is called.
        read: Reads a file; others lie beside it.
        seeds: Makes good files.
        words: What its texts are made of.
    """

    name: str
    read: Callable[[Path], Any]
    seeds: Callable[[Path], list[Files]]
    words: tuple[bytes, ...] = ()


# ---------------------------------------------------------------- readers


def read_image(path: Path) -> None:
    from whatwhere.io.image import read_image, read_mask

    for reader in (read_image, read_mask):
        with contextlib.suppress(WhatwhereError):
            reader(path)


def read_raster(path: Path) -> None:
    from whatwhere.io.crs import pixel_size_m
    from whatwhere.io.raster import close_handles, open_raster
    from whatwhere.types import Window

    raster = open_raster(path)
    height, width = raster.size
    try:
        for row, column in ((0, 0), (max(height - 64, 0), max(width - 64, 0))):
            window = Window(row, column, min(64, height), min(64, width))
            with contextlib.suppress(WhatwhereError):
                raster.read(window)
            raster.is_empty(window)
        pixel_size_m(raster.grid)
    finally:
        close_handles()


def read_vector(path: Path) -> None:
    from made_maps import NORTH_UP, UTM
    from whatwhere.grid import Grid
    from whatwhere.io.vector import burn, field_names, move_features, read_features

    with contextlib.suppress(WhatwhereError):
        field_names(path)
    with contextlib.suppress(WhatwhereError):
        read_features(path, field="kind")
    grid = Grid(UTM.to_wkt(), NORTH_UP, 48, 48)
    found = move_features(read_features(path), grid.crs)
    burn(found.shapes, np.ones(len(found.shapes), np.int64), grid, background=0)


def read_bundle(path: Path) -> None:
    """The hashes are made to fit, as by somebody who means it."""
    import hashlib

    from whatwhere import bundle

    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError, LookupError):
        head = json.loads(path.read_bytes())
        head.pop("card_sha256", None)
        weights = path.with_name("weights-0.safetensors").read_bytes()
        head["weights"].update(sha256=hashlib.sha256(weights).hexdigest())
        path.write_text(json.dumps(head))
    bundle.load(path.parent)


def read_state(path: Path) -> None:
    from whatwhere.train.state import decode

    decode(path.read_bytes())


def read_recipe(path: Path) -> None:
    from whatwhere.config import make_recipe

    make_recipe(path)


def read_list(path: Path) -> None:
    from whatwhere.data.inputs import Inputs, list_scenes

    list_scenes(Inputs(path))


def read_classes(path: Path) -> None:
    from whatwhere.data.classes import find_classes, kept_spec

    find_classes([Counter({0: 9, 255: 3})], kept_spec(path.parent))


def read_definition(path: Path) -> None:
    from whatwhere.foreign import read_foreign
    from whatwhere.io.esri import read_definition

    read_definition(path)
    read_foreign(path)


def read_export(path: Path) -> None:
    from whatwhere.data.esri_facts import facts_of
    from whatwhere.io.esri import read_export

    facts_of(read_export(path.parent))


def read_package(path: Path) -> None:
    from whatwhere.packages import open_package

    open_package(path, path.parent / "unpacked", 1 << 24)


def read_exported(path: Path) -> None:
    from whatwhere.predict.onnx import read_exported

    read_exported(path)


def read_graph(path: Path) -> None:
    from whatwhere.predict.openvino import read_exported

    read_exported(path)


def read_part(path: Path) -> None:
    from whatwhere.io.geotiff import Style, decode_part

    part = decode_part(path.read_bytes())
    for number in range(len(part.levels)):
        part.decode(number, Style())


def read_pieces(path: Path) -> None:
    from whatwhere.predict.polygons import decode

    decode(path.read_bytes())


def read_plan(path: Path) -> None:
    from whatwhere.predict.plan import grid_of, load_plan

    grid_of(load_plan(path.parent))


# ---------------------------------------------------------------- seeds


def image_seeds(folder: Path) -> list[Files]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (12, 14), dtype=np.uint8)
    color = rng.integers(0, 255, (12, 14, 3), dtype=np.uint8)
    found = []
    for name, pixels in (
        *((f"a.{end}", color) for end in ("png", "jpg", "tif", "bmp", "webp")),
        *(("g.png", grey), ("g.tif", grey), ("d.png", grey.astype(np.uint16) * 200)),
    ):
        Image.fromarray(pixels).save(folder / name)
        found.append({name: (folder / name).read_bytes()})
    palette = Image.fromarray(grey % 4).convert("P")
    palette.save(folder / "p.png", transparency=1)
    import tifffile

    for name, pixels, more in (
        ("f.tif", grey.astype(np.float32), {"compression": "deflate"}),
        ("m.tif", rng.integers(0, 9, (12, 14, 5), dtype=np.uint16), {"planarconfig": "contig"}),
        ("t.tif", grey, {"tile": (16, 16), "compression": "lzw"}),
    ):
        tifffile.imwrite(folder / name, pixels, photometric="minisblack", **more)
        found.append({name: (folder / name).read_bytes()})
    return [*found, {"p.png": (folder / "p.png").read_bytes()}]


def raster_seeds(folder: Path) -> list[Files]:
    from hostile_rasters import copied, honest

    found = []
    plain = honest(folder / "a.tif", nodata=7)
    honest(folder / "s.tif", compress="deflate", tiled=False, blockxsize=None, blockysize=8)
    copied(plain, folder / "a.img", driver="HFA")
    copied(plain, folder / "a.jp2", driver="JP2OpenJPEG")
    copied(plain, folder / "a.png", driver="PNG")
    for name in ("a.tif", "s.tif", "a.img", "a.jp2", "a.png"):
        found.append({name: (folder / name).read_bytes()})
    return found


def vector_seeds(folder: Path) -> list[Files]:
    from hostile_vectors import collection, write

    found: list[Files] = []
    for ending in ("gpkg", "fgb"):
        path = write(folder / f"a.{ending}")
        found.append({path.name: path.read_bytes()})
    write(folder / "a.shp")
    parts = ("shp", "shx", "dbf", "prj", "cpg")
    found.append({f"a.{end}": (folder / f"a.{end}").read_bytes() for end in parts})
    crs = {"type": "name", "properties": {"name": "EPSG:32645"}}
    return [*found, {"a.geojson": json.dumps(collection(crs=crs)).encode()}]


def bundle_seeds(folder: Path) -> list[Files]:
    from made_maps import make_predictor, save_bundle
    from whatwhere.bundle import CARD

    save_bundle(folder, make_predictor(bands=["grey"], n_filters=1))
    (weights,) = folder.glob("weights-*")
    head = json.loads((folder / CARD).read_bytes())
    head["weights"]["file"] = "weights-0.safetensors"
    head.pop("card_sha256")
    return [{CARD: json.dumps(head).encode(), "weights-0.safetensors": weights.read_bytes()}]


def state_seeds(folder: Path) -> list[Files]:
    import torch

    from whatwhere.train.state import encode

    state = {
        "state_dict": {"a": torch.randn(2, 3), "b": torch.arange(4)},
        "optimizer": {0: {"m": torch.zeros(2)}, 1: [None, True, 2.5, "word", (1, 2)]},
        "told": {"b", "a"},
        "counts": np.arange(4).reshape(2, 2),
    }
    return [{"a.safetensors": encode(state)}]


def recipe_seeds(folder: Path) -> list[Files]:
    from whatwhere.config import make_recipe, to_toml

    return [{"a.toml": to_toml(make_recipe()).encode()}, {"a.toml": b'recipe = "modern"\nlr = 1\n'}]


def list_seeds(folder: Path) -> list[Files]:
    text = (
        b'class_field = "kind"\nnodata = 0\nbuffer_m = 1.5\n[[scene]]\nimage = "a.tif"\n'
        b'labels = "a.gpkg"\nlayer = "b"\nsplit = "val"\n[[scene]]\nimage = "c.tif"\n'
        b'labels = "c.tif"\naoi = "d.geojson"\ntrust = false\n'
    )
    return [{"data.toml": text}]


def classes_seeds(folder: Path) -> list[Files]:
    return [{"classes.toml": b'classes = "0=background,255=salt,7=ignore"\n'}]


def definition_seeds(folder: Path) -> list[Files]:
    from hostile_models import EMD

    more = {
        "ExtractBands": [0, 1, 2],
        "NormalizationStats": {
            name: [0.1, 0.2, 3]
            for name in (
                *("band_min_values", "band_max_values", "scaled_mean_values"),
                "scaled_std_values",
            )
        },
        "IsMultispectral": True,
        "ImageHeight": 256,
        "ImageWidth": 256,
        "MinCellSize": {"x": 0.1, "y": 0.1},
        "Bands": ["red", "green", "blue"],
    }
    return [{"a.emd": json.dumps({**EMD, **more}).encode(), "a.pth": b"PK"}]


def export_seeds(folder: Path) -> list[Files]:
    from made_esri import made_export
    from whatwhere.io.esri import DEFINITION, MAP, SUMS

    made_export(folder, count=2)
    return [{name: (folder / name).read_bytes() for name in (DEFINITION, SUMS, MAP)}]


def package_seeds(folder: Path) -> list[Files]:
    from made_maps import make_predictor, save_bundle
    from whatwhere.packages import write_package

    run = save_bundle(folder / "run", make_predictor(bands=["grey"], n_filters=1))
    made = write_package(run, folder / "out", "net")
    return [{"net.dlpk": made[-1].read_bytes()}]


@functools.cache
def exported_net() -> bytes:
    """A small net as ONNX."""
    from made_maps import make_predictor, save_bundle
    from whatwhere import jobs
    from whatwhere.talk import QUIET

    with tempfile.TemporaryDirectory() as folder:
        run = save_bundle(Path(folder) / "run", make_predictor(bands=["grey"], n_filters=1))
        jobs.export(run, Path(folder) / "net.onnx", talk=QUIET)
        return (Path(folder) / "net.onnx").read_bytes()


def exported_seeds(folder: Path) -> list[Files]:
    return [{"net.onnx": exported_net()}]


def graph_seeds(folder: Path) -> list[Files]:
    """Without OpenVINO: a graph of two layers with the texts of an exported net."""
    import onnx

    from whatwhere.predict.openvino import with_lines

    texts = onnx.load_from_string(exported_net()).metadata_props
    lines = {entry.key: entry.value for entry in texts}
    layers = "".join(
        f'<layer id="{i}" name="{kind}" type="{kind}" version="opset1"/>'
        for i, kind in enumerate(("Parameter", "Result"))
    )
    graph = f'<?xml version="1.0"?><net name="net" version="11"><layers>{layers}</layers></net>'
    weights = bytes(64)
    return [{"net.xml": with_lines(graph.encode(), weights, lines), "net.bin": weights}]


def part_seeds(folder: Path) -> list[Files]:
    from affine import Affine

    from whatwhere.grid import Grid
    from whatwhere.io.geotiff import Style, encode_part

    pixels = np.random.default_rng(0).integers(0, 3, (1, 20, 24), dtype=np.uint8)
    grid = Grid("", Affine.identity(), 20, 24)
    return [{"a.tif": encode_part(grid, Style(stamp="a"), pixels, 2)}]


def piece_seeds(folder: Path) -> list[Files]:
    from whatwhere.predict.polygons import encode, find_pieces
    from whatwhere.types import Window

    labels = np.zeros((20, 24), dtype=np.int64)
    labels[3:9, 4:12] = 1
    confidence = np.full(labels.shape, 0.5, dtype=np.float32)
    return [{"a.npz": encode(find_pieces(labels, [1], confidence, Window(0, 0, 20, 24)))}]


def plan_seeds(folder: Path) -> list[Files]:
    from hostile_rasters import honest
    from made_maps import make_predictor, save_bundle
    from whatwhere import jobs
    from whatwhere.talk import QUIET

    run = save_bundle(folder / "run", make_predictor(bands=["band 1"]))
    scene = honest(folder / "a.tif")
    jobs.predict(run, scene, folder / "map.tif", keep_parts=True, talk=QUIET)
    return [{"plan.json": (folder / "map.tif.parts" / "plan.json").read_bytes()}]


_JSON = (b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"true", b"[" * 500, b'""')
_TOML = (b"[]", b"{}", b"inf", b"nan", b"-1", b'""', b"[[scene]]", b"1979-05-27", b"'''", b"true")
_XML = (b"<!DOCTYPE a>", b"&a;", b"&#0;", b'""', b"opset1", b"<layer/>", b"]]>", b"<a>" * 500)
_TARGETS = (
    Target("image", read_image, image_seeds),
    Target("raster", read_raster, raster_seeds),
    Target("vector", read_vector, vector_seeds, _JSON),
    Target("bundle", read_bundle, bundle_seeds, _JSON),
    Target("state", read_state, state_seeds, _JSON),
    Target("recipe", read_recipe, recipe_seeds, _TOML),
    Target("list", read_list, list_seeds, _TOML),
    Target("classes", read_classes, classes_seeds, (*_TOML, b"=", b",", b"0=")),
    Target("definition", read_definition, definition_seeds, _JSON),
    Target("export", read_export, export_seeds, _JSON),
    Target("package", read_package, package_seeds),
    Target("exported", read_exported, exported_seeds, _JSON),
    Target("graph", read_graph, graph_seeds, _XML),
    Target("part", read_part, part_seeds),
    Target("pieces", read_pieces, piece_seeds),
    Target("plan", read_plan, plan_seeds, _JSON),
)
TARGETS = {target.name: target for target in _TARGETS}


# ---------------------------------------------------------------- changes


def changed(data: bytes, chance: random.Random, words: tuple[bytes, ...]) -> bytes:
    """Return bytes that differ in a few places."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(found) + 1)
        kind = chance.randrange(10 if words else 8)
        if kind == 0 and found:
            found[place % len(found)] ^= 1 << chance.randrange(8)
        elif kind == 1 and found:
            found[place % len(found)] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
        elif kind in (2, 3):
            size = chance.choice((2, 4, 8))
            number = chance.choice((0, 1, -1, 2**7, 2**15, 2**31 - 1, 2**31, 2**62, 5, 300, 70_000))
            order = chance.choice("<>")
            packed = struct.pack(f"{order}q", number)
            found[place : place + size] = packed[:size] if order == "<" else packed[-size:]
        elif kind == 4:
            del found[place : place + chance.choice((1, 4, 50, len(found)))]
        elif kind == 5:
            part = found[place : place + chance.choice((1, 8, 100))]
            found[place:place] = part * chance.choice((1, 2, 20))
        elif kind == 6:
            found[place:place] = chance.randbytes(chance.choice((1, 4, 30)))
        elif kind == 7 and len(found) > 2:
            other = chance.randrange(len(found))
            size = chance.choice((4, 16, 64))
            found[place : place + size] = found[other : other + size]
        elif words:
            _put_word(found, place, chance, words)
    return bytes(found)


def _put_word(
    found: bytearray, place: int, chance: random.Random, words: tuple[bytes, ...]
) -> None:
    """Put a word in the place of what stands between two signs of a text."""
    signs = b',:[]{}=\n" '
    first = next((i for i in range(place, len(found)) if found[i] in signs), place)
    last = next((i for i in range(first + 1, len(found)) if found[i] in signs), first)
    found[first + 1 : last] = chance.choice(words)


def varied(target: Target, seeds: list[Files], chance: random.Random) -> Files:
    """Change one file of a seed; a compressed one sometimes within."""
    seed = dict(chance.choice(seeds))
    name = chance.choice(list(seed))
    seed[name] = changed(seed[name], chance, target.words)
    return seed


# ---------------------------------------------------------------- trying


def fault_of(target: Target, folder: Path, given: Files) -> str:
    """Read a file; what went wrong that is none of ours, in a line; empty where nothing did."""
    for name, data in given.items():
        (folder / name).write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(folder / next(iter(given)))
    except WhatwhereError as error:
        if len(str(error)) > 20_000:
            return f"a message of {len(str(error)):,} letters"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        places = [
            f"{Path(frame.filename).name}:{frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "whatwhere" in frame.filename
        ]
        return f"{type(error).__name__} in {places[-1] if places else '?'}: {str(error)[:150]}"
    return ""


@contextlib.contextmanager
def fresh(place: Path) -> Iterator[Path]:
    """An empty folder."""
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def batch(target: Target, seeds: list[Files], seed: int, place: Path) -> list[tuple[int, str]]:
    """Try a batch in a process of its own; return the numbers of inputs and what they did."""
    note = place / "note"
    note.write_text("[]")
    pid = os.fork()
    if pid == 0:
        _work(target, seeds, seed, place, note)
    _, status = os.waitpid(pid, 0)
    told = [(int(number), str(what)) for number, what in json.loads(note.read_text())]
    if os.WIFSIGNALED(status):
        number = int((place / "number").read_text())
        name = signal.Signals(os.WTERMSIG(status)).name
        what = f"over {SECONDS} s" if name == "SIGPROF" else f"it died of {name}"
        return [*told, (number, what)]
    return told


def _work(target: Target, seeds: list[Files], seed: int, place: Path, note: Path) -> None:
    import resource

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    limit = used + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    found = []
    for number in range(seed, seed + BATCH):
        (place / "number").write_text(str(number))
        given = varied(target, seeds, random.Random(number))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with fresh(place) as folder:
            told = fault_of(target, folder, given)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if told:
            found.append((number, told))
            note.write_text(json.dumps(found))
    os._exit(0)


def kept() -> list[dict[str, Any]]:
    """What was found before."""
    found: list[dict[str, Any]] = json.loads(CORPUS.read_text()) if CORPUS.is_file() else []
    return found


def packed(given: Files) -> dict[str, str]:
    return {n: base64.b64encode(zlib.compress(data, 9)).decode() for n, data in given.items()}


def unpacked(row: Mapping[str, Any]) -> Files:
    """The files of a row of the corpus."""
    return {n: zlib.decompress(base64.b64decode(text)) for n, text in row["files"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    end = time.monotonic() + options.seconds
    known = kept()
    seen = {(row["target"], row["what"].split(": ")[0]) for row in known}
    count: Counter[str] = Counter()
    took: Counter[str] = Counter()
    numbers = dict.fromkeys(names, options.seed * 10_000_000)
    with tempfile.TemporaryDirectory() as place:
        seeds = {}
        for name in names:
            with fresh(Path(place)) as folder:
                seeds[name] = TARGETS[name].seeds(folder)
            _warm(TARGETS[name], seeds[name], Path(place))
        while time.monotonic() < end:
            for name in sorted(names, key=lambda one: took[one])[:4]:  # they get the same time
                target, first = TARGETS[name], numbers[name]
                begun = time.monotonic()
                found = batch(target, seeds[name], first, Path(place))
                took[name] += time.monotonic() - begun
                numbers[name] += BATCH
                count[name] += BATCH
                for number, what in found:
                    key = name, what.split(": ")[0]
                    print(f"{name} {number}: {what}", flush=True)
                    if key not in seen:
                        seen.add(key)
                        given = varied(target, seeds[name], random.Random(number))
                        row = {"target": name, "what": what, "files": packed(given)}
                        known.append(row)
                        CORPUS.write_text(json.dumps(known, indent=1) + "\n")
                if time.monotonic() > end:
                    break
    told = ", ".join(f"{name} {number:,}" for name, number in count.items())
    print(f"{sum(count.values()):,} files in {options.seconds:.0f} s: {told}")


def _warm(target: Target, seeds: list[Files], place: Path) -> None:
    """Import what the reader needs, before anything is limited."""
    for seed in seeds:
        with fresh(place) as folder:
            told = fault_of(target, folder, seed)
        if told:
            print(f"{target.name}: a good file: {told}", flush=True)


if __name__ == "__main__":
    if not hasattr(os, "fork"):
        sys.exit("this system has no fork")
    main()
