"""The words of vector labels: their numbers, and the class table made of them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.classes import find_classes
from whatwhere.data.truth import NOWHERE
from whatwhere.errors import DataError, UsageError
from whatwhere.types import Classes, ClassInfo, default_color

_MOST_CLASSES = 64
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BACKGROUND = "background"


@dataclass(frozen=True)
class Numbering:
    """Which number stands for each word in vector labels.

    Attributes:
        numbers: By the value of the class field.
        background: For pixels in no shape.
        unknown: Values that stand for nothing: their shapes are not labelled.
    """

    numbers: Mapping[str, int]
    background: int
    unknown: tuple[str, ...] = ()

    @property
    def are_words(self) -> bool:
        """Whether the numbers are ours, and not the values themselves."""
        return any(text != str(number) for text, number in self.numbers.items())

    def of(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of each value, `NOWHERE` where there is none."""
        found = [self.numbers.get(plain(value), NOWHERE) for value in values]
        return np.array(found, dtype=np.int64)


def plain(value: str) -> str:
    """Return a whole number without sign, point or zeros that say nothing; others as they are."""
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    whole = math.isfinite(number) and number == int(number) and abs(number) < 2**31
    return str(int(number)) if whole else text


def number_values(values: Sequence[str]) -> Numbering:
    """Number the values of a class field: whole numbers by themselves, words by their order.

    Pixels in no shape are 0; -1 where 0 is a class.
    """
    there = sorted({plain(value) for value in values} - {""})
    if there and all(_is_number(value) for value in there):
        numbers = {value: int(value) for value in sorted(there, key=int)}
        return Numbering(numbers, -1 if 0 in numbers.values() else 0)
    return Numbering({value: i for i, value in enumerate(there, 1)}, 0)


def _is_number(value: str) -> bool:
    return value.lstrip("-").isdecimal() and value.isascii()


def table_of(numbering: Numbering, numbers: Counter[int], spec: str) -> Classes:
    """Make the class table of vector labels with a class field.

    Args:
        numbering: Of the field's values.
        numbers: How many pixels that count hold each number.
        spec: What the user says; empty for all values, after a background if any pixel is in no
            shape. Words pick and order values; of numbers it means what it does for masks.

    Raises:
        UsageError: `spec` cannot be read, or names what there is not.
        DataError: There are not two classes, or too many.
    """
    there = [_BACKGROUND] if numbers[numbering.background] else []
    there += numbering.numbers
    raw = {_BACKGROUND: numbering.background, **numbering.numbers}
    if spec and not numbering.are_words:
        if "=" not in spec:
            spec = _named(spec, there, raw)
        found = find_classes([numbers], spec)
    else:
        found = _table(_picked(spec, there) if spec else there, raw, numbering.are_words)
    used = {number for info in found for number in info.raw}
    unnamed = sorted({*raw.values()} - used - {*found.ignored})
    return dataclasses.replace(found, ignored=(*found.ignored, *unnamed))


def single_table(name: str, numbers: Counter[int], spec: str) -> Classes:
    """Make the class table of shapes without a class field: a background, and what they are."""
    if spec and "=" not in spec and len(spec.split(",")) == 2:
        spec = ",".join(f"{i}={one.strip()}" for i, one in enumerate(spec.split(",")))
    return find_classes([numbers], spec or f"0={_BACKGROUND},1={name}")


def _picked(spec: str, there: Sequence[str]) -> list[str]:
    if "=" in spec:
        raise UsageError(
            "--classes: the labels hold words, not numbers: list those that count, such as "
            f"{','.join(there[:4])}."
        )
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"There are {', '.join(there[:20])}."
            raise UsageError(f"--classes: no label is called {name!r}; {hint}")
    if len(set(names)) != len(names):
        raise UsageError("--classes names a label twice.")
    return names


def _named(spec: str, there: Sequence[str], raw: Mapping[str, int]) -> str:
    """Write names in the order of the numbers as each number's name."""
    names = [name.strip() for name in spec.split(",")]
    if len(names) != len(there):
        raise UsageError(
            f"--classes names {', '.join(names)}: {len(there)} names are needed, for "
            f"{', '.join(there)}. Or name some of the numbers: {raw[there[-1]]}=NAME."
        )
    return ",".join(f"{raw[word]}={name}" for word, name in zip(there, names, strict=True))


def _table(names: Sequence[str], raw: Mapping[str, int], are_words: bool) -> Classes:
    if len(names) < 2:
        raise DataError(
            f"the labels hold nothing but {', '.join(names) or 'no class'}: there is nothing to "
            "tell apart. Check --class-field, or add labels of other classes."
        )
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"the class field holds {len(names)} different values, such as "
            f"{', '.join(names[:5])}. Take another --class-field, or pick some with --classes."
        )
    numbers = [raw[name] for name in names]
    plain_values = not are_words and min(numbers) >= 0 and max(numbers) <= 255
    first = 0 if _BACKGROUND in names else 1
    infos = []
    for i, (name, number) in enumerate(
        sorted(zip(names, numbers, strict=True), key=lambda one: one[0] != _BACKGROUND)
    ):
        infos.append(
            ClassInfo(
                name=name if are_words or name == _BACKGROUND else f"class {name}",
                value=number if plain_values else i + first,
                color=default_color(i + first),
                role="background" if name == _BACKGROUND else "class",
                raw=(number,),
            )
        )
    return Classes(tuple(infos), "multiclass" if len(infos) > 2 else "binary")
