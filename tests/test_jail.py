"""Files from strangers open nothing, write nothing and ask nobody, whoever reads them."""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
from affine import Affine

from hostile_rasters import Case, Place, honest, honest_pixels, make_place, raster_cases, vrt
from hostile_vectors import database, vector_cases, write
from jail import CONTROL, MARK, attempt, prepare, results, verbs, within
from made import snapshot
from told import call
from whatwhere import jobs
from whatwhere.errors import DataError, UsageError, WhatwhereError
from whatwhere.io.raster import close_handles, open_raster
from whatwhere.io.vector import read_features
from whatwhere.talk import QUIET
from whatwhere.types import Window

LEAST = 80
_IMAGES = ("read_image", "read_mask")


class Watch:
    """Tells which files of some folders were opened, read or made, whoever did it."""

    MADE = 0x100 | 0x40 | 0x80 | 0x200  # made, moved, removed
    OPENED = MADE | 0x21  # opened and read too

    def __init__(self, opened: list[Path], made: list[Path]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self.stream = library.inotify_init1(os.O_NONBLOCK)
        self.folders = {}
        for mask, folders in ((self.OPENED, opened), (self.MADE, made)):
            for folder in folders:
                number = library.inotify_add_watch(self.stream, os.fsencode(folder), mask)
                assert number > 0, os.strerror(ctypes.get_errno())
                self.folders[number] = folder

    def seen(self) -> set[str]:
        """Return what has happened since it was asked last."""
        found = set()
        while True:
            try:
                data = os.read(self.stream, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                number, _, _, length = struct.unpack("iIII", data[:16])
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                found.add(f"{self.folders.get(number)}/{name}")
                data = data[16 + length :]


@pytest.fixture(scope="module")
def server() -> Iterator[socket.socket]:
    """A server that nobody may ask."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def was_asked(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jail")


@pytest.fixture(scope="module")
def corpus(root: Path, server: socket.socket) -> tuple[Place, list[Case]]:
    place = make_place(root, server.getsockname()[1])
    cases = [*raster_cases(place), *vector_cases(place)]
    prepare(root)
    return place, cases


@pytest.fixture(scope="module")
def watch(corpus: tuple[Place, list[Case]]) -> Watch:
    if not hasattr(ctypes.CDLL(None), "inotify_init1"):
        pytest.skip("this system does not tell who opens a file")
    place, _ = corpus
    folders = [place.inbox, *(path for path in place.inbox.rglob("*") if path.is_dir())]
    found = Watch([place.away], [place.made, *folders])
    (place.away / "canary.txt").read_bytes()
    (place.made / "x").touch()
    (place.made / "x").unlink()
    seen = found.seen()
    assert any("canary.txt" in one for one in seen) and any("made/x" in one for one in seen)
    return found


def complaint(case: Case, how: str, found: Any) -> str:
    """What is wrong with what a reader gave."""
    if isinstance(found, WhatwhereError):
        text = str(found)
        if case.honest and not (case.path.suffix in (".jp2", ".img") and how in _IMAGES):
            return f"{how} refused: {text}"
        short = len(text.splitlines()) <= 3 and case.path.name[:50] in text
        return "" if short and isinstance(found, DataError | UsageError) else f"{how}: {text}"
    if how == "read_raster":
        close = np.abs(found.astype(int) - honest_pixels()).max() < 40
        return "" if close else f"{how} has other pixels"
    if how in _IMAGES:
        pixels = np.asarray(found[0], dtype=int)
        return "" if np.abs(pixels - honest_pixels()).max() < 40 else f"{how} has other pixels"
    return "" if "secret" not in str(found) else f"{how} has {found}"


def test_nothing_is_opened_made_or_asked(
    corpus: tuple[Place, list[Case]], watch: Watch, server: socket.socket
) -> None:
    """By the readers."""
    place, cases = corpus
    before = snapshot(place.inbox)
    wrong: list[tuple[str, str]] = []
    watch.seen()
    for case in cases:
        with within(case):
            for how, found in results(case):
                told = complaint(case, how, found)
                wrong += [(case.name, told)] if told else []
        wrong += [(case.name, one) for one in watch.seen()]
        wrong += [(case.name, "asked")] if was_asked(server) else []
    assert not wrong
    assert len(cases) >= LEAST and snapshot(place.inbox) == before


def test_no_verb_opens_makes_or_asks(
    corpus: tuple[Place, list[Case]], watch: Watch, server: socket.socket, root: Path
) -> None:
    place, cases = corpus
    before = snapshot(place.inbox)
    wrong: list[tuple[str, str]] = []
    watch.seen()
    for case in cases[::7]:  # all of them under strace
        with within(case):
            for how, found in verbs(case, root):
                told = refusal(found)
                if not told and not case.honest:
                    wrong.append((case.name, f"{how} took it"))
                if "Error:" in told or "secret" in str(found):
                    wrong.append((case.name, f"{how}: {told}"))
        wrong += [(case.name, one) for one in watch.seen()]
        wrong += [(case.name, "asked")] if was_asked(server) else []
    assert not wrong and snapshot(place.inbox) == before


def refusal(found: Any) -> str:
    """What a verb says against a file; empty where it takes it."""
    if isinstance(found, WhatwhereError):
        return str(found)
    problems = found["problems"] if isinstance(found, dict) else []
    return "; ".join(one["cause"] for one in problems if one["severity"] == "error")


BY_HAND = (
    *("vrt as tif", "mrf as png", "python band", "wms", "overview named inside"),
    *("imagine of other files", "name: vsicurl", "ovr beside a tif", "name: inline vrt"),
    *("ogr vrt as gpkg", "geojson with a link", "gpkg without end", "name: postgres of shapes"),
)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_command_line_says_one_thing(
    corpus: tuple[Place, list[Case]], watch: Watch, server: socket.socket, root: Path, name: str
) -> None:
    (case,) = (one for one in corpus[1] if one.name == name)
    work = root / "work"
    scene, labels = work / "scene.tif", work / "labels.gpkg"
    given = (case.path, labels) if case.kind == "raster" else (scene, case.path)
    new = root / "new" / name.replace(" ", "-")
    watch.seen()
    lines = [
        ["inspect", given[0], "--labels", given[1]],
        ["chip", given[0], "--labels", given[1], "-o", new / "chips"],
        ["evaluate", work / "run", given[0], "--labels", given[1]],
        ["train", given[0], "--labels", given[1], "-o", new / "run", "--dry-run"],
    ]
    if case.kind == "raster":
        lines.append(["predict", work / "run", case.path, "-o", new / "map.tif"])
    for words in lines:
        done = call(*words)
        assert "Traceback" not in done.output and "secret" not in done.output
        if case.honest:
            continue
        assert done.exit_code in (2, 3), done.output
        assert case.path.name in done.output.replace("\n", "")
    assert not watch.seen() and not was_asked(server)


# ---------------------------------------------------------------- trust


def sidecar(folder: Path) -> Path:
    """A scene whose place is told beside it."""
    folder.mkdir()
    path = honest(folder / "a.tif", crs=None, transform=Affine.identity())
    text = "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>9,2,0,8,0,-2</GeoTransform></PAMDataset>"
    Path(f"{path}.aux.xml").write_text(text)
    return path


def test_trust_is_for_one_call(tmp_path: Path) -> None:
    beside = sidecar(tmp_path / "a")
    source = honest(tmp_path / "source.tif")
    virtual = tmp_path / "b.tif"
    virtual.write_text(vrt(str(source)))
    view = write(tmp_path / "c.gpkg", layer="houses")
    database(
        view,
        "alter table houses rename to hidden",
        "create view houses as select fid, geom, 'v' as kind from hidden",
    )
    for _ in range(3):
        assert open_raster(beside, trust=True).grid.is_placed
        assert not open_raster(beside).grid.is_placed
        assert np.array_equal(
            open_raster(virtual, trust=True).read(Window(0, 0, 48, 48))[0], honest_pixels()
        )
        with pytest.raises(DataError, match="this is made of other files"):
            open_raster(virtual)
        assert read_features(view, field="kind", trust=True).values == ("v", "v")
        with pytest.raises(DataError, match=r"its layer 'houses' is a view, which is a program"):
            read_features(view)


def test_trust_of_one_thread_is_not_that_of_another(tmp_path: Path) -> None:
    """Whichever of them is the main one, and while both read."""
    path = sidecar(tmp_path / "a")
    wrong: list[str] = []
    over = threading.Event()

    def look(trust: bool) -> None:
        while not over.is_set():
            if open_raster(path, trust=trust).grid.is_placed != trust:
                wrong.append(f"trust {trust} of a thread")

    for trusted in (True, False):
        over.clear()
        workers = [threading.Thread(target=look, args=[one]) for one in (True, False)]
        for worker in workers:
            worker.start()
        for _ in range(200):
            if open_raster(path, trust=trusted).grid.is_placed != trusted:
                wrong.append(f"trust {trusted} of the main one")
        over.set()
        for worker in workers:
            worker.join()
    assert not wrong


def test_a_list_of_scenes_cannot_trust_itself(tmp_path: Path) -> None:
    path = sidecar(tmp_path / "a")
    write(tmp_path / "labels.gpkg")
    for text in (
        'trust = true\n[[scene]]\nimage = "a/a.tif"\nlabels = "labels.gpkg"\n',
        '[[scene]]\nimage = "a/a.tif"\nlabels = "labels.gpkg"\ntrust = true\n',
    ):
        (tmp_path / "data.toml").write_text(text)
        with pytest.raises(DataError, match=r"trust = true, which is for you to say.*--trust"):
            jobs.inspect(tmp_path / "data.toml", talk=QUIET)
        found = attempt(jobs.inspect, tmp_path / "data.toml", trust=True, talk=QUIET)
        assert "3857" in str(found) or "do not meet" in str(found)
    assert path.is_file()


def test_a_host_program_is_left_as_it_was(tmp_path: Path, root: Path) -> None:
    """Its settings hold before, between and after; so does what it writes beside its files."""
    scene = honest(tmp_path / "scene.tif")
    labels = write(tmp_path / "labels.gpkg")
    names = ("GDAL_PAM_ENABLED", "GDAL_DISABLE_READDIR_ON_OPEN", "GDAL_GEOREF_SOURCES")
    pyogrio.set_gdal_config_options({"OGR_GEOMETRY_ACCEPT_UNCLOSED_RING": "NO"})
    before = [pyogrio.get_gdal_config_option(name) for name in names]
    with rasterio.Env(GDAL_PAM_ENABLED="YES", GDAL_GEOREF_SOURCES="PAM,INTERNAL", FOO="BAR"):
        own = rasterio.env.getenv()
        for trust in (False, True):
            jobs.inspect(scene, labels=labels, trust=trust, talk=QUIET)
            assert rasterio.env.getenv() == own
        close_handles()
        with rasterio.open(sidecar(tmp_path / "a")) as file:
            assert file.crs.to_epsg() == 3857 and file.transform == Affine(2, 0, 9, 0, -2, 8)
        rasterio.shutil.copy(scene, tmp_path / "a.png", driver="PNG")
        assert (tmp_path / "a.png.aux.xml").is_file()
    assert [pyogrio.get_gdal_config_option(name) for name in names] == before
    assert pyogrio.get_gdal_config_option("OGR_GEOMETRY_ACCEPT_UNCLOSED_RING") == "NO"
    pyogrio.set_gdal_config_options({"OGR_GEOMETRY_ACCEPT_UNCLOSED_RING": None})
    with rasterio.open(sidecar(tmp_path / "b")) as file:
        assert file.crs.to_epsg() == 3857


# ---------------------------------------------------------------- what the system saw

_CALLS = "open,openat,openat2,creat,rename,renameat,renameat2,connect,unlink,unlinkat,mkdir,access"
_WRITES = re.compile(r"O_(?:CREAT|WRONLY|RDWR)|^(?:creat|rename|unlink|mkdir)")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_system_saw_nothing(corpus: tuple[Place, list[Case]], root: Path) -> None:
    """The whole corpus in one process that is traced."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")
    place, cases = corpus
    (root / "cases.pickle").write_bytes(pickle.dumps(corpus))
    trace = root / "trace"
    child = [sys.executable, str(Path(__file__).with_name("jail.py")), str(root)]
    words = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "4096",
        "-o",
        str(trace),
        "-e",
        f"trace={_CALLS}",
        *child,
    ]
    before = snapshot(place.inbox)
    done = subprocess.run(
        [*words, *child],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, seen = traced(trace, place, root, cases)
    assert any(name == CONTROL for name, _ in found)  # it sees what there is to see
    assert not [one for one in found if one[0] != CONTROL]
    assert seen == len(cases) and snapshot(place.inbox) == before


def traced(
    trace: Path, place: Place, root: Path, cases: list[Case]
) -> tuple[list[tuple[str, str]], int]:
    """What a trace shows that should not be, and how many cases were read."""
    wrong, name, seen = [], "", 0
    mine = (f"{root}/work", "/dev/", "/proc/")
    for line in trace.read_text(errors="replace").splitlines():
        text = line.split(None, 1)[1]
        if MARK in text:
            told = text.split(MARK)[1].split('"')[0]
            name = cases[int(told)].name if told.isdigit() else told
            seen += told.isdigit()
        elif name and "connect(" in text:
            wrong.append((name, text[:300]))
        elif name and " = -1 E" not in text:
            base = re.match(r"\w+\((?:AT_FDCWD|\d+)<([^>]*)>", text)
            paths = [
                os.path.join(base[1] if base else "", one)
                for one in re.findall(r'"((?:[^"\\]|\\.)*)"', text)
            ]
            inside = any(one.startswith(str(place.away)) for one in paths)
            elsewhere = not all(one.startswith(mine) for one in paths)
            if inside or (_WRITES.search(text) and elsewhere):
                wrong.append((name, text[:300]))
    return wrong, seen
