"""What a path of a trained net stands for: a run, a bundle, a package, or somebody else's model."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from whatwhere import bundle, files
from whatwhere.bundle import CARD
from whatwhere.errors import BundleError, DataError
from whatwhere.foreign import Foreign, read_foreign
from whatwhere.io.esri import read_definition
from whatwhere.packages import VERSION, open_package


class Place:
    """A folder that lives as long as this object does.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{files.TEMPORARY}package-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Opened:
    """A trained net that was looked at.

    Attributes:
        path: What was given.
        run: The run or bundle; None for a foreign model.
        foreign: What a model of arcgis.learn tells of itself, or None.
        place: Where it was unpacked, and where more may be put; None where nothing was.
        lenient: Whether a foreign model may bring a description and no weights.
    """

    path: Path
    run: Path | None
    foreign: Foreign | None = None
    place: Place | None = None
    lenient: bool = False

    def __fspath__(self) -> str:
        return str(self.path)


def open_trained(path: str | os.PathLike[str], *, lenient: bool = False) -> Opened:
    """Look at what a path stands for.

    Args:
        path: A run, a bundle or its card; the folder of a package, its `.emd` or its `.dlpk`; a
            model of arcgis.learn, by its `.emd`, its `.dlpk` or the folder with them.
        lenient: Kept in the result.

    Raises:
        BundleError: It is missing or damaged.
    """
    if isinstance(path, Opened):
        return path
    given = Path(path)
    place = None
    emd = given if given.suffix.lower() == ".emd" else None
    if given.is_dir():
        emd = None if _has_bundle(given) else _only_definition(given)
    elif given.suffix.lower() == ".dlpk":
        place = Place()
        emd = open_package(given, place.path / given.stem)
    if emd is None:
        bundle.load_card(given)
        return Opened(given, given)
    try:
        ours = VERSION in read_definition(emd).lines
    except DataError as error:
        raise BundleError(str(error)) from error
    if not ours:
        return Opened(given, None, read_foreign(emd), place or Place(), lenient)
    if not (emd.parent / CARD).is_file():
        raise BundleError(
            f"{given}: the bundle is not beside it: {CARD} and its weights lie in one folder with "
            "the definition. Copy the whole folder, or take the .dlpk."
        )
    bundle.load_card(emd.parent)
    return Opened(given, emd.parent, place=place)


def _has_bundle(folder: Path) -> bool:
    return any((place / CARD).is_file() for place in (folder, folder / "bundle"))


def _only_definition(folder: Path) -> Path | None:
    """The one definition in a folder that arcgis.learn has saved a model to."""
    found = [path for path in folder.iterdir() if path.suffix.lower() == ".emd" and path.is_file()]
    return found[0] if len(found) == 1 else None
