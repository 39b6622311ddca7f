"""Nets, packages and states from strangers: each would have code run, or the memory filled."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as safe

from made_maps import make_predictor, save_bundle
from whatwhere.bundle import CARD

EMD = {
    "ModelType": "ImageClassification",
    "ModelFile": "a.pth",
    "ModelParameters": {"backbone": "resnet18"},
    "Classes": [{"Value": 1, "Name": "salt", "Color": [1, 2, 3]}],
    "_target_": "os.system",
    "InferenceFunction": "evil.py",
}


@dataclass(frozen=True)
class Model:
    """A file as a user would give it.

    Attributes:
        name: What is wrong with it.
        kind: `run`, `package`, `definition`, `weights`, `state` or `pieces`.
        path: The file.
    """

    name: str
    kind: str
    path: Path


class Call:
    """What is called when it is unpickled."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.call = function, words

    def __reduce__(self) -> Any:
        return self.call


def make_models(folder: Path, marker: Path) -> list[Model]:
    """Make all of them; their code would make the marker."""
    makers = (pickles, opcodes, archives, tensors, cards, packages, states)
    return [model for maker in makers for model in maker(folder, marker)]


def payloads(marker: Path) -> dict[str, Any]:
    """Objects whose unpickling makes the marker, by every way we know."""
    import builtins
    import functools
    import operator
    import os
    import subprocess

    text = f"open({str(marker)!r},'w').close()"
    inner = pickle.dumps(Call(exec, text))
    return {
        "system": Call(os.system, f"touch {marker}"),
        "exec": Call(exec, text),
        "eval": Call(eval, text),
        "popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "open": Call(open, str(marker), "w"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "partial": Call(functools.partial(exec, text)),
        "caller": Call(operator.methodcaller("system", f"touch {marker}"), Call(__import__, "os")),
        "loads": Call(pickle.loads, inner),
        "from bytes": Call(torch.storage._load_from_bytes, inner),
        "numpy": np.array([Call(exec, text)], dtype=object),
        "map": Call(list, Call(map, builtins.exec, [text])),
        "module": Call(getattr(torch.nn.Module(), "apply"), functools.partial(exec)),  # noqa: B009
    }


def pickles(folder: Path, marker: Path) -> Iterator[Model]:
    """Torch's files, new and old, and others that are pickles."""
    place = folder / "pickles"
    place.mkdir()
    for name, payload in payloads(marker).items():
        inside = {"model": {"a": payload, "b": torch.zeros(2)}, "_instantiator": "os.system"}
        here = folder / f"emd-{name}"
        here.mkdir()
        torch.save(inside, here / "a.pth")
        yield definition(here, f"a zip that calls {name}")
    system = payloads(marker)["system"]
    endings = (".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib", ".h5", ".keras")
    for ending in endings:
        path = place / f"a{ending}"
        path.write_bytes(pickle.dumps({"state_dict": system}))
        yield Model(f"a pickle called {ending}", "run", path)
        yield Model(f"weights called {ending}", "weights", path)
    array = place / "a.npy"
    np.save(array, np.array([system], dtype=object), allow_pickle=True)
    yield Model("an array of objects", "run", array)
    np.savez(place / "a.npz", x=np.array([system], dtype=object))
    yield Model("arrays of objects", "run", place / "a.npz")
    pieces = place / "b.npz"
    names = {"shape": np.array([1, 2]), "class_index": np.array([system], dtype=object)}
    np.savez(pieces, **names)  # type: ignore[arg-type]
    yield Model("pieces of objects", "pieces", pieces)
    for protocol in (0, 2, 5):
        here = folder / f"old-{protocol}"
        here.mkdir()
        (here / "a.pth").write_bytes(pickle.dumps(system, protocol))
        yield definition(here, f"a bare pickle of protocol {protocol}")
    here = folder / "legacy"
    here.mkdir()
    torch.save({"a": system}, here / "a.pth", _use_new_zipfile_serialization=False)
    yield definition(here, "the old form of torch")
    here = folder / "tar"
    here.mkdir()
    with tarfile.open(here / "a.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(system)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    yield definition(here, "the oldest form of torch")


def definition(folder: Path, name: str, **lines: Any) -> Model:
    path = folder / "a.emd"
    path.write_text(json.dumps({**EMD, **lines}))
    return Model(name, "definition", path)


def opcodes(folder: Path, marker: Path) -> Iterator[Model]:
    """Pickles written by hand."""
    command = f"touch {marker}".encode()
    short = bytes([len(command)]) + command
    texts = {
        "global": b"cposix\nsystem\n(U" + short + b"tR.",
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(U" + short + b"tR.",
        "inst": b"(U" + short + b"iposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nU" + short + b"o.",
        "newobj": b"\x80\x02cposix\nsystem\n(U" + short + b"t\x81.",
        "build": b"\x80\x02cbuiltins\nobject\n)\x81}U\x0c__setstate__cposix\nsystem\nsbU"
        + short + b"b.",
        "extension": b"\x80\x02\x82\x01(U" + short + b"tR.",
        "persistent": b"\x80\x02U" + short + b"Q.",
        "dotted": b"\x80\x04\x8c\x0ecollections.abc\x8c\x12sys.modules.popitem\x93)R.",
        "laughs": b"\x80\x02]q\x00" + b"".join(
            b"(" + b"h%c" % i * 10 + b"lq%c" % (i + 1) for i in range(60)) + b".",
        "long": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 50,
        "deep": b"\x80\x02" + b"(" * 100_000 + b"." ,
    }  # fmt: skip
    for name, text in texts.items():
        here = folder / f"opcodes-{name}"
        here.mkdir()
        with zipfile.ZipFile(here / "a.pth", "w") as archive:
            archive.writestr("archive/data.pkl", text)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
        yield definition(here, f"a pickle with {name}")


def archives(folder: Path, marker: Path) -> Iterator[Model]:
    """Zips that say two things."""
    good, bad = pickle.dumps({}), b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."

    def zipped(name: str, members: list[tuple[str, bytes]]) -> Model:
        here = folder / f"zip-{name}"
        here.mkdir()
        with zipfile.ZipFile(here / "a.pth", "w") as archive:
            for member, data in members:
                archive.writestr(member, data)
        return definition(here, f"a zip {name}")

    yield zipped("whose case differs", [("a/data.pkl", good), ("a/DATA.PKL", bad)])
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        yield zipped("with a name twice", [("a/data.pkl", good), ("a/data.pkl", bad)])
    yield zipped("with two roots", [("a/data.pkl", good), ("b/data.pkl", bad)])
    code = ("a/code/__torch__.py", f"open('{marker}','w')".encode())
    yield zipped("of torchscript", [("a/data.pkl", good), ("a/constants.pkl", bad), code])
    yield zipped("without a pickle", [("a/x", b"")])
    here = folder / "zip-tail"
    here.mkdir()
    first = io.BytesIO()
    with zipfile.ZipFile(first, "w") as archive:
        archive.writestr("a/data.pkl", good)
    second = io.BytesIO()
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("a/data.pkl", bad)
    (here / "a.pth").write_bytes(second.getvalue() + first.getvalue())
    yield definition(here, "a zip behind a zip")
    here = folder / "zip-bomb"
    here.mkdir()
    with zipfile.ZipFile(here / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * (1 << 26))
    data = bytearray((here / "a.pth").read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + at
        data[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
    (here / "a.pth").write_bytes(data)
    yield definition(here, "a zip that grows")
    for name in ("../../../etc/passwd", "/etc/passwd", "C:\\windows\\win.ini", "a\0.pth", "..", ""):
        here = folder / f"emd-name-{len(name)}{name.count('.')}"
        here.mkdir()
        yield definition(here, f"weights called {name!r}", ModelFile=name)


def head_of(told: Any, data: bytes = b"") -> bytes:
    """A file of safetensors with any head."""
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + data


def heads() -> dict[str, bytes]:
    """Files of safetensors that no program has written."""
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "a head without end": struct.pack("<Q", 2**63) + b"{}",
        "a head of 90 MB": struct.pack("<Q", 90 << 20) + b" " * 100,
        "a long head": head_of(b" " * (1 << 25) + b"{}"),
        "offsets that overlap": head_of({"a": one, "b": one}, b"\0" * 8),
        "offsets beyond the end": head_of({"a": {**one, "data_offsets": [0, 2**40]}}, b"\0" * 8),
        "offsets turned round": head_of({"a": {**one, "data_offsets": [8, 0]}}, b"\0" * 8),
        "a gap": head_of({"a": {**one, "data_offsets": [8, 16]}}, b"\0" * 16),
        "a huge shape": head_of({"a": {**one, "shape": [2**62, 2**62]}}, b"\0" * 8),
        "a negative shape": head_of({"a": {**one, "shape": [-2]}}, b"\0" * 8),
        "an unknown type": head_of({"a": {**one, "dtype": "PY"}}, b"\0" * 8),
        "100,000 tensors": head_of(
            {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**5)}
        ),
        "a list": head_of([one], b"\0" * 8),
        "a deep head": head_of(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "words that are no words": head_of({"__metadata__": {"state": 7}}),
        "no head": b"",
        "a pickle": pickle.dumps(Call(print, "run")),
    }


def tensors(folder: Path, marker: Path) -> Iterator[Model]:
    """Weights with their own hash, as somebody writes them who means it; and states."""
    for number, (name, data) in enumerate(heads().items()):
        net = save_bundle(folder / f"head-{number}", make_predictor(bands=["grey"]))
        yield with_weights(net, f"a bundle with {name}", data)
        path = folder / f"head-{number}.safetensors"
        path.write_bytes(data)
        yield Model(f"weights with {name}", "weights", path)
        yield state(folder, f"a state with {name}", data, number)


def with_weights(net: Path, name: str, data: bytes) -> Model:
    (path,) = net.glob("weights-*.safetensors")
    path.write_bytes(data)
    return with_card(net, name, lambda head: head["weights"].update(sha256=sha(data)))


def with_card(net: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Model:
    """Change a card, and take away its hash, as an old version has none."""
    head = json.loads((net / CARD).read_bytes())
    del head["card_sha256"]
    change(head)
    (net / CARD).write_text(json.dumps(head))
    return Model(name, "run", net)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def state(folder: Path, name: str, data: bytes, step: int) -> Model:
    path = folder / "states" / f"step-{step:09d}-{sha(data)[:32]}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return Model(name, "state", path)


def cards(folder: Path, marker: Path) -> Iterator[Model]:
    """Cards with hooks, bombs, and names of what is not there."""
    touch = f"touch {marker}"
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a target": lambda head: head["card"].update(_target_="os.system", _args_=[touch]),
        "a target in its arguments": lambda head: head["card"]["arguments"].update(
            norm={"_target_": "os.system", "_args_": [touch]}
        ),
        "an instantiator": lambda head: head.update(_instantiator="os.system"),
        "a model of a module": lambda head: head["card"].update(model="os:system"),
        "a model of a file": lambda head: head["card"].update(model="../../evil.py"),
        "a model on the hub": lambda head: head["card"].update(model="hf-hub:evil/net"),
        "a model by an address": lambda head: head["card"].update(model="http://127.0.0.1/a"),
        "an encoder of one's own": lambda head: head["card"].update(model="own:os.system"),
        "a checkpoint": lambda head: head["card"]["arguments"].update(checkpoint_path="a.pth"),
        "a huge net": lambda head: head["card"]["arguments"].update(n_filters=10**9),
        "a net of words": lambda head: head["card"]["arguments"].update(n_filters="__import__"),
        "pickled weights": lambda head: head["weights"].update(file="a.pkl"),
        "weights elsewhere": lambda head: head["weights"].update(file="../../../etc/passwd"),
        "a number that is none": lambda head: head["card"].update(thresholds=[float("nan")]),
        "a million classes": lambda head: (
            head["card"]["classes"].update(classes=[head["card"]["classes"]["classes"][0]] * 10**5)
            if "classes" in head["card"]["classes"]
            else head["card"].update(classes=[])
        ),
        "a newer format": lambda head: head.update(format=2),
    }
    for number, (name, change) in enumerate(changes.items()):
        net = save_bundle(folder / f"card-{number}", make_predictor(bands=["grey"]))
        yield with_card(net, f"a card with {name}", change)
    deep = save_bundle(folder / "card-deep", make_predictor(bands=["grey"]))
    (deep / CARD).write_text('{"format":' + "[" * 200_000)
    yield Model("a card that is deep", "run", deep)
    long = save_bundle(folder / "card-long", make_predictor(bands=["grey"]))
    (long / CARD).write_text('{"format": 1, "x": "' + "x" * (17 << 20) + '"}')
    yield Model("a card that is long", "run", long)


def packages(folder: Path, marker: Path) -> Iterator[Model]:
    """Packages that lead out, grow, or bring programs."""
    emd = ("a.emd", json.dumps(EMD).encode())

    def package(name: str, *members: tuple[Any, bytes], deflate: bool = False) -> Model:
        path = folder / f"{name.replace(' ', '-')}.dlpk"
        kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            for member, data in (emd, *members):
                archive.writestr(member, data)
        return Model(f"a package with {name}", "package", path)

    script = f"open({str(marker)!r}, 'w').close()".encode()
    link = zipfile.ZipInfo("weights.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    device = zipfile.ZipInfo("fifo")
    device.external_attr = (stat.S_IFIFO | 0o777) << 16
    yield package("a way out", ("../../evil.py", script))
    yield package("a root", ("/tmp/evil.py", script))
    yield package("a drive", ("C:\\evil.py", script))
    yield package("a stream", ("a.emd:evil", script))
    yield package("a link", (link, b"/etc/passwd"))
    yield package("a pipe", (device, b""))
    yield package("case alone", ("A.EMD", script))
    yield package("two definitions", ("b.emd", emd[1]))
    yield package("many files", *((f"f{i}", b"") for i in range(1001)))
    yield package("programs", ("evil.py", script), ("sitecustomize.py", script), ("a.pth", b"x"))
    bomb = package("a bomb", ("a.pth", b"\0" * (1 << 26)), deflate=True)
    data = bytearray(bomb.path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.rindex(mark) + at
        data[place : place + 4] = struct.pack("<I", 100)
    bomb.path.write_bytes(data)
    yield bomb
    path = folder / "nothing.dlpk"
    path.write_bytes(b"PK\x05\x06" + b"\0" * 18)
    yield Model("a package of nothing", "package", path)
    whole = package("a cut", ("a.pth", b"\1" * 5000))
    whole.path.write_bytes(whole.path.read_bytes()[:-200])
    yield whole


def states(folder: Path, marker: Path) -> Iterator[Model]:
    """States whose words are not those that we write."""
    words: dict[str, Any] = {
        "a kind that is none": {"call": ["os.system"]},
        "two kinds": {"list": [], "tuple": []},
        "a tensor that is not there": {"tensor": "a", "last": False},
        "a dict as a key": {"map": [[{}, 1]]},
        "a set of lists": {"set": [{"list": []}]},
        "no state": {"list": []},
    }
    for number, (name, word) in enumerate(words.items(), 100):
        told = {"__metadata__": {"state": json.dumps(word)}}
        yield state(folder, f"a state of {name}", head_of(told), number)
    data = safe({"a": np.zeros(2)}, {"state": json.dumps({"map": [["pickle", "c\n"]]})})
    yield state(folder, "a state with a key", data, 200)
