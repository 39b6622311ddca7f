"""The states of a training on the disk: what it takes to go on from where it was.

A state is one file, `step-STEP-HASH.safetensors`. The name holds the hash of what is in it, so a
file that is not whole is known for it. Numbers, words and lists stand as JSON in the file's head;
there is no pickle, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whatwhere import files
from whatwhere.errors import BundleError, NumericsError, OutputError

FOLDER = "checkpoints"
"""Where the states lie in a run folder."""

KEPT = 2
"""How many of them are kept at the least: if the newest is damaged, there is another."""

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{32})\.safetensors")
_MOST_HEAD_BYTES = 2**26
_MOST_TENSORS = 100_000
_PLAIN = (bool, int, float, str, type(None))

State = Mapping[str, Any]
"""Dictionaries, lists and tuples of plain values, tensors and arrays."""


def encode(state: State) -> bytes:
    """Return a state as bytes; equal states give equal bytes.

    Raises:
        TypeError: Something in it has no word in the file.
        NumericsError: A weight of the net is not finite.
    """
    from safetensors.torch import save

    for name, tensor in state.get("state_dict", {}).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericsError(f"the weights {name} are not finite: they are not saved.")
    tensors: dict[str, torch.Tensor] = {}
    head = json.dumps(_pack(state, tensors))
    return bytes(save(tensors, {"state": head}))


def decode(data: bytes) -> dict[str, Any]:
    """Return the state that `encode` was given, on the processor.

    Raises:
        BundleError: These are no such bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(_MOST_HEAD_BYTES, len(data)):
            raise BundleError("its head is too long.")
        head = json.loads(data[8 : 8 + length])
        if len(head) > _MOST_TENSORS:
            raise BundleError("it holds too many tensors.")
        words = json.loads(head["__metadata__"]["state"])
        state = _unpack(words, load(data))
    except (ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError) as error:
        raise BundleError(f"it cannot be read ({error!r}).") from error
    except SafetensorError as error:
        raise BundleError(f"these are no safetensors ({error}).") from error
    if not isinstance(state, dict):
        raise BundleError("this is no state of a training.")
    return state


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Write a value as JSON; tensors are put aside under a number."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        array = not isinstance(value, torch.Tensor)
        tensor = torch.as_tensor(value).detach().cpu()
        spread = tensor.ndim == 4 and not tensor.is_contiguous()
        name = f"{len(tensors):06d}"
        tensors[name] = tensor.contiguous().clone()
        return {"array" if array else "tensor": name, "last": spread}
    if isinstance(value, Mapping):
        return {"map": [[_plain(key), _pack(one, tensors)] for key, one in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(one, tensors) for one in value]}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(_plain(one) for one in value)}
    raise TypeError(f"a {type(value).__name__} has no word in a state.")


def _plain(key: Any) -> Any:
    if not isinstance(key, _PLAIN):
        raise TypeError(f"a {type(key).__name__} is no key of a state.")
    return key


def _unpack(word: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(word, dict):
        return word
    if "tensor" in word:
        tensor = tensors[word["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if word["last"] else tensor
    if "array" in word:
        return tensors[word["array"]].numpy()
    ((kind, inside),) = word.items()
    if kind == "map":
        return {key: _unpack(one, tensors) for key, one in inside}
    makers: Mapping[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set}
    return makers[kind](_unpack(one, tensors) for one in inside)


class States:
    """The states of one run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made when the first state is written."""
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the files of all states, the newest last."""
        if not self.folder.is_dir():
            return []
        there = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(path for path in there if path.is_file())

    def write(self, step: int, data: bytes) -> Path:
        """Write an encoded state, and remove all but the newest.

        Raises:
            OutputError: It cannot be written; those that were there still are.
        """
        name = f"step-{step:09d}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        path = files.write_bytes(self.folder / name, data)
        others = [old for old in self.paths() if old != path]
        for old in others[: max(len(others) + 1 - KEPT, 0)]:
            files.remove(old)
        return path

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the newest state that is whole; None where there is none.

        Args:
            say: Told of each state that is damaged.
        """
        for path in reversed(self.paths()):
            try:
                return read_state(path)
            except BundleError as error:
                say(f"warning  {error} The one before it is taken.")
        return None

    def clear(self) -> None:
        """Remove all states and their folder."""
        for path in self.paths():
            files.remove(path)
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot remove this folder: {error}.") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read one state.

    Raises:
        BundleError: It is missing, damaged, or no state.
    """
    match = _NAME.fullmatch(path.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the state cannot be read: {error.strerror}.") from error
    if match is None or hashlib.sha256(data).hexdigest()[:32] != match.group(2):
        raise BundleError(f"{path}: this state is damaged: its hash is not the one in its name.")
    try:
        return decode(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
