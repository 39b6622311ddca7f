"""Which bands of images the net sees: by number, or by what an Esri export calls them."""

from __future__ import annotations

import re
from collections import Counter

from whatwhere.data.doctor import Survey
from whatwhere.data.scenes import SceneSource
from whatwhere.errors import DataError, UsageError
from whatwhere.io.esri import Definition
from whatwhere.notation import parse_bands
from whatwhere.types import Bands

_RGB = ("red", "green", "blue")
_NO_NAME = re.compile(r"band[ _-]?\d+", re.IGNORECASE)


def bands_of(survey: Survey, mode: str) -> Bands:
    """Decide which bands the net sees.

    Args:
        survey: The set.
        mode: `auto`, `grey`, `rgb`, or numbers from 1, with or without names.

    Raises:
        DataError: The images do not all have these bands; the message counts who has what.
    """
    if isinstance(survey.source, SceneSource):
        return survey.source.bands
    wanted = parse_bands(mode)
    counts = Counter(facts.bands for facts in survey.facts.values())
    grey = all(f.bands == 1 or f.grey for f in survey.facts.values())
    named = None
    if survey.source.definition is not None and not (grey and wanted == "auto" and counts[3]):
        named = _exported(survey.source.definition, mode, counts)
    if named is not None:
        return named
    if isinstance(wanted, dict) and not all(wanted.values()):
        raise UsageError(
            f"--bands {mode}: bands of images have no names. Give numbers, as red=1,nir=4."
        )
    if wanted == "grey" and set(counts) <= {1, 3}:
        return Bands(("grey",), convert=True)
    if wanted == "rgb" and set(counts) <= {1, 3}:
        return Bands(("red", "green", "blue"), convert=True)
    if isinstance(wanted, dict) and max(wanted.values()) <= min(counts):
        return Bands(tuple(wanted), tuple(wanted.values()))
    if wanted == "auto" and grey:
        return Bands(("grey",))
    if wanted == "auto" and len(counts) == 1:
        (count,) = counts
        if count == 3:
            return Bands(("red", "green", "blue"))
        numbers = tuple(range(1, count + 1))
        return Bands(tuple(f"band {number}" for number in numbers), numbers)
    table = "; ".join(
        f"{count} band{'s' * (count > 1)}: {number} files such as {_example(survey, count)}"
        for count, number in sorted(counts.items())
    )
    raise DataError(
        f"the images do not have the same bands ({table}), or not those of --bands {mode}. "
        "Take --bands grey or --bands rgb to turn them into one kind, or --bands with numbers "
        "that all of them have."
    )


def _exported(definition: Definition, mode: str, counts: Counter[int]) -> Bands | None:
    """Return the bands that the net sees, where the export's names decide it; None elsewhere.

    Args:
        definition: What the export says.
        mode: As on the command line.
        counts: How many chips have which number of bands.

    Raises:
        UsageError: No band has the name.
        DataError: The chips have another number of bands than the export names.
    """
    names = [name.lower() for name in definition.bands]
    wanted = parse_bands(mode)
    if isinstance(wanted, dict):
        if not names or all(wanted.values()):
            return None
        if set(counts) != {len(names)}:
            raise DataError(
                f"--bands {mode}: the export names {', '.join(names)}, and its chips have "
                f"{' or '.join(map(str, sorted(counts)))} bands. Give numbers, as red=1,nir=4."
            )
        unknown = [name for name, number in wanted.items() if not number and name not in names]
        if unknown:
            raise UsageError(
                f"--bands {mode}: no band is called {unknown[0]!r}. The export names "
                f"{', '.join(names)}."
            )
        numbers = [number or names.index(name) + 1 for name, number in wanted.items()]
        return Bands(tuple(wanted), tuple(numbers))
    if set(counts) != {len(names)} or all(map(_NO_NAME.fullmatch, names)):
        return None
    if wanted == "auto":
        numbers = list(range(1, len(names) + 1))
        return Bands(_RGB) if tuple(names) == _RGB else Bands(tuple(names), tuple(numbers))
    if wanted == "rgb" and len(names) > 3 and set(_RGB) <= set(names):
        return Bands(_RGB, tuple(names.index(name) + 1 for name in _RGB))
    return None


def _example(survey: Survey, bands: int) -> str:
    return next(p.image.name for p in survey.pairs if survey.facts[p.key].bands == bands)
