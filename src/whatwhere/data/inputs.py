"""What the user says about where the data lies: a folder, a raster and its labels, or a list."""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatwhere.data.sources import SPLITS, Split, entries, holds_export
from whatwhere.errors import DataError, UsageError
from whatwhere.io.names import require_name
from whatwhere.io.raster import SUFFIXES as RASTERS
from whatwhere.io.vector import SUFFIXES as VECTORS

_IMAGES = (*RASTERS, ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Inputs:
    """Where the data lies; everything but `root` and `trust` is for rasters.

    Attributes:
        root: A folder with `images/` and `masks/`, a raster, a folder of rasters, or a `data.toml`.
        labels: Polygons or a raster of classes; a folder of such, one for each raster.
        class_field: The field of the labels that holds the class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which nothing is labelled.
        nodata: Stands for "no data" in the rasters, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside the files, files made of other files, and remote paths; of an
            Esri export its MRF chips.
    """

    root: Path
    labels: Path | None = None
    class_field: str | None = None
    layer: str | None = None
    aoi: Path | None = None
    nodata: float | None = None
    buffer_m: float = 0.0
    trust: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.buffer_m < math.inf:
            raise UsageError(f"--buffer-m must be a distance of at least 0 m, not {self.buffer_m}.")
        for path in (self.root, self.labels, self.aoi):
            if path is not None:
                require_name(path)

    @classmethod
    def of(cls, root: str | Path, **said: Any) -> Inputs:
        """Make it of what a function was called with: paths may be text."""
        paths = {name: Path(said[name]) for name in ("labels", "aoi") if said.get(name) is not None}
        return cls(Path(root), **{**said, **paths})

    @property
    def said(self) -> dict[str, Any]:
        """What differs from its default, `root` left out."""
        fields = {item.name: item for item in dataclasses.fields(self) if item.name != "root"}
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if value != fields[name].default}

    @property
    def words(self) -> str:
        """What is typed on the command line for it."""
        words = [shlex.quote(str(self.root))]
        for name, value in self.said.items():
            words.append(_flag(name))
            words += [] if value is True else [shlex.quote(str(value))]
        return " ".join(words)

    @property
    def is_list(self) -> bool:
        """Whether it is a `data.toml`."""
        return self.root.suffix.lower() == ".toml"

    @property
    def has_scenes(self) -> bool:
        """Whether there are rasters with labels, and no folder of images and masks.

        Raises:
            UsageError: Something was said that means nothing for such a folder.
        """
        if self.is_list or self.root.is_file():
            return True
        if not self.said or not self.root.is_dir():
            return bool(self.said)
        if set(self.said) == {"trust"} and holds_export(self.root):
            return False
        folders = [path for path in entries(self.root) if path.is_dir()]
        own = any(path.name.lower() == "images" or (path / "images").is_dir() for path in folders)
        if self.labels is None or own:
            raise UsageError(
                f"{', '.join(map(_flag, self.said))} is for rasters with labels, and {self.root} "
                f"{'has images/ of its own' if own else 'was given without any'}. Leave it out, or "
                "give a raster and --labels."
            )
        return True


@dataclass(frozen=True, kw_only=True)
class SceneFiles:
    """The files of one scene, and how they are to be read.

    Attributes:
        name: What it is called: the raster's stem, or more of its path where stems are alike.
        image: The raster.
        labels: Polygons, or a raster of classes.
        split: Which split it is to be in; None to be dealt out in blocks.
    """

    name: str
    image: Path
    labels: Path
    class_field: str | None
    layer: str | None
    aoi: Path | None
    nodata: float | None
    buffer_m: float
    trust: bool
    split: Split | None

    @property
    def is_vector(self) -> bool:
        """Whether the labels are shapes, not a raster."""
        return self.labels.suffix.lower() not in _IMAGES


def list_scenes(inputs: Inputs) -> list[SceneFiles]:
    """Return the scenes that are meant.

    Raises:
        DataError: A file or folder is missing or empty, or a list cannot be read.
        UsageError: There are no labels.
    """
    if inputs.is_list:
        return _named(list(_listed(inputs)))
    if inputs.labels is None:
        raise UsageError(
            f"{inputs.root}: a raster needs labels: --labels FILE with polygons or a raster of "
            "classes. (A folder with images/ and masks/ needs none.)"
        )
    rest = {name: value for name, value in inputs.said.items() if name != "labels"}
    if inputs.root.is_dir():
        rasters = _files(inputs.root, _IMAGES)
        if not rasters:
            raise DataError(f"{inputs.root}: there is no raster in it ({', '.join(RASTERS)}).")
        labels = _partners(rasters, inputs.labels)
        return _named([{"image": r, "labels": labels[r], **rest} for r in rasters])
    return _named([{"image": inputs.root, "labels": inputs.labels, **rest}])


def _partners(rasters: list[Path], labels: Path) -> dict[Path, Path]:
    """The labels of each raster: one file for all, or a file of the same stem for each."""
    if not labels.is_dir():
        return dict.fromkeys(rasters, labels)
    files: dict[str, list[Path]] = {}
    for path in _files(labels, (*VECTORS, *_IMAGES)):
        files.setdefault(path.stem, []).append(path)
    missing = [raster.name for raster in rasters if raster.stem not in files]
    if missing:
        raise DataError(
            f"{labels}: there are no labels of the same stem for {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}."
        )
    twice = next((files[r.stem] for r in rasters if len(files[r.stem]) > 1), None)
    if twice:
        names = " and ".join(path.name for path in twice)
        raise DataError(f"{labels}: {names} have one stem. Take all but one of them out.")
    return {raster: files[raster.stem][0] for raster in rasters}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for path in entries(folder)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


_KEYS = tuple(item.name for item in dataclasses.fields(Inputs) if item.name != "root")
_KINDS = {
    **{"image": str, "labels": str, "class_field": str, "layer": str, "aoi": str, "split": str},
    **{"nodata": float, "buffer_m": float, "trust": bool},
}


def _listed(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Read a `data.toml`: a scene's own keys go before flags, and those before the file's."""
    path = inputs.root
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this is not TOML: {error}.") from error
    scenes = told.pop("scene", [])
    if not isinstance(scenes, list) or not scenes or not all(isinstance(s, dict) for s in scenes):
        raise DataError(f"{path}: it lists no scene. Write [[scene]], and below it image = FILE.")
    if not inputs.trust and any(one.get("trust") is True for one in (told, *scenes)):
        raise DataError(
            f"{path}: it says trust = true, which is for you to say: a list may be a stranger's. "
            "If you know what its scenes open, say --trust (in Python trust=True)."
        )
    wrong = _faults(told, _KEYS, "the file")
    for i, scene in enumerate(scenes, 1):
        wrong += _faults(scene, ("image", "split", *_KEYS), f"scene {i}")
        if "image" not in scene:
            wrong.append(f"scene {i} has no image")
        if "labels" not in {**told, **inputs.said, **scene}:
            wrong.append(f"scene {i} has no labels")
        if scene.get("split", "train") not in SPLITS:
            wrong.append(f"scene {i}: split must be train, val or test, not {scene['split']!r}")
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}.")
    for scene in scenes:
        yield {**_placed(told, path.parent), **inputs.said, **_placed(scene, path.parent)}


def _faults(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    wrong = []
    for name, value in table.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
            wrong.append(f"{where} has an unknown key {name!r}{hint}")
            continue
        kind = _KINDS[name]
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        if not fits or (kind is float and isinstance(value, bool)):
            wrong.append(f"{where}: {name} must be of type {kind.__name__}, not {value!r}")
    return wrong


def _placed(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of a list relative to its folder."""
    return {
        name: folder / value if name in ("image", "labels", "aoi") else value
        for name, value in table.items()
    }


def _named(rows: list[dict[str, Any]]) -> list[SceneFiles]:
    """Give each scene a name of its own."""
    stems = [Path(row["image"]).stem for row in rows]
    names = [
        stem if stems.count(stem) == 1 else Path(row["image"]).with_suffix("").as_posix()
        for stem, row in zip(stems, rows, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"{twice}: this scene is listed twice.")
    usual = {item.name: item.default for item in dataclasses.fields(Inputs) if item.name in _KEYS}
    return [
        SceneFiles(name=name, **{**usual, "split": None, **row})
        for name, row in zip(names, rows, strict=True)
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
