"""No code comes out of a file: while nets, packages and states are loaded, nothing is run."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hostile_models import EMD, Model, make_models
from made_maps import make_predictor, save_bundle
from told import call
from whatwhere import packages
from whatwhere.errors import WhatwhereError
from whatwhere.face.packed import open_trained
from whatwhere.foreign import read_foreign, read_tensors
from whatwhere.nn.pretrained import make_encoder
from whatwhere.predict.engine import load
from whatwhere.predict.polygons import decode
from whatwhere.train.state import States, encode, read_state

EVENTS = (
    *("pickle.find_class", "exec", "compile", "import", "marshal.loads", "marshal.load"),
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "ctypes.dlopen", "code.__new__"),
    *("urllib.Request", "webbrowser.open", "pty.spawn", "os.putenv", "os.chmod", "os.symlink"),
)
LEAST = 50

_heard: list[str] | None = None


def _hear(event: str, words: tuple[Any, ...]) -> None:
    if _heard is None or event not in EVENTS:
        return
    literal = event == "compile" and words[1] == "<unknown>"  # NumPy's heads
    asked = event == "ctypes.dlopen" and "nvidia-ml" in str(words[0])  # torch looks for a GPU
    if not (literal or asked):
        _heard.append(f"{event} {str(words)[:200]}")


@pytest.fixture(scope="module", autouse=True)
def ears() -> None:
    sys.addaudithook(_hear)  # it cannot be taken away; it hears only when asked


@contextmanager
def hearing() -> Iterator[list[str]]:
    """Yield a list that fills with what runs."""
    global _heard
    found: list[str] = []
    _heard = found
    try:
        yield found
    finally:
        _heard = None


def unpack(path: Path) -> Any:
    into = path.parent / f"{path.stem}-unpacked"
    try:
        emd = packages.open_package(path, into)
    except WhatwhereError:
        assert not into.exists() or not any(into.iterdir())
        raise
    return weigh(emd)


def weigh(path: Path) -> Any:
    """Read a definition and its weights."""
    found = read_foreign(path)
    assert found.weights is None or found.weights.parent == path.parent
    return found, None if found.weights is None else read_tensors(found.weights)


READERS: dict[str, Callable[[Path], Any]] = {
    "run": load,
    "package": unpack,
    "definition": weigh,
    "weights": lambda path: make_encoder("resnet18", 3, pretrained=path),
    "state": read_state,
    "pieces": lambda path: decode(path.read_bytes()),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("honest")
    run = save_bundle(folder / "run" / "bundle", make_predictor(bands=["grey"]))
    (folder / "emd").mkdir()
    emd = folder / "emd" / "a.emd"
    emd.write_text(json.dumps(EMD))
    torch.save({"model": {"a": torch.zeros(2)}}, emd.with_name("a.pth"))
    made = packages.write_package(run, folder / "package", "net")
    state = States(folder / "states").write(3, encode({"state_dict": {"a": torch.zeros(2)}}))
    return {"run": folder / "run", "definition": emd, "package": made[-1], "state": state}


def read(kind: str, path: Path) -> Any:
    if kind == "package":
        opened = open_trained(path)  # what it unpacked is there as long as it is
        return load(opened.run or path)
    return READERS[kind](path)


@pytest.mark.parametrize("kind", ["run", "definition", "package", "state"])
def test_nothing_runs_while_a_good_file_is_loaded(honest: dict[str, Path], kind: str) -> None:
    read(kind, honest[kind])  # what is imported is imported now
    with hearing() as heard:
        read(kind, honest[kind])
    assert not heard


def test_the_ears_hear(tmp_path: Path) -> None:
    """Else silence would say nothing."""
    torch.save({"a": np.zeros(2)}, tmp_path / "a.pth")
    with hearing() as heard:
        torch.load(tmp_path / "a.pth", weights_only=False)
        exec("1 + 1")
    assert any("pickle.find_class" in one for one in heard)
    assert any("compile" in one for one in heard) and any("exec" in one for one in heard)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Model]]:
    folder = tmp_path_factory.mktemp("models")
    marker = folder / "ran"
    return marker, make_models(folder, marker)


def test_no_code_of_a_stranger_runs(
    corpus: tuple[Path, list[Model]], honest: dict[str, Path]
) -> None:
    marker, models = corpus
    for kind, path in honest.items():
        read(kind, path)
    for kind in READERS:  # what is imported is imported now
        with contextlib.suppress(WhatwhereError):
            READERS[kind]([model.path for model in models if model.kind == kind][-1])
    wrong: list[tuple[str, str]] = []
    taken = []
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for model in models:
        begun = time.monotonic()
        with hearing() as heard:
            try:
                READERS[model.kind](model.path)
                taken.append(model.name)
            except WhatwhereError as error:
                if error.exit_code not in (2, 3, 4) or len(str(error).splitlines()) > 3:
                    wrong.append((model.name, str(error)))
        wrong += [(model.name, one) for one in heard]
        wrong += [(model.name, "its code ran")] if marker.exists() else []
        marker.unlink(missing_ok=True)
        took = time.monotonic() - begun
        wrong += [(model.name, f"it took {took:.1f} s")] if took > 5 else []
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wrong += [(model.name, f"{now - most:,} kB more")] if now - most > 512 << 10 else []
        most = max(most, now)
    assert not wrong
    assert len(models) >= LEAST
    assert not [name for name in taken if not name.startswith(HARMLESS)]


HARMLESS = ("weights called", "a state with a key")
"""Definitions whose weights are not looked for where they say; and a state like any other."""


@pytest.mark.parametrize("ending", ["pth", "ckpt", "pkl", "npy"])
def test_the_command_line_refuses_pickles(
    corpus: tuple[Path, list[Model]], tmp_path: Path, ending: str
) -> None:
    marker, models = corpus
    (path,) = (one.path for one in models if one.path.name == f"a.{ending}" and one.kind == "run")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    done = call("predict", path, tmp_path / "a.png", "-o", tmp_path / "out")
    assert done.exit_code == 4 and "can run code when they are opened" in done.output
    assert not marker.exists() and not (tmp_path / "out").exists()
