"""What the numbers in masks mean: found where it can be known, asked for where it cannot."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from whatwhere.errors import DataError, UsageError
from whatwhere.io.esri import EsriClass
from whatwhere.types import COLOR_FLAG, Classes, ClassInfo, Role, Task, default_color

FILE = "classes.toml"
"""A folder of images and masks may say in it what the masks' numbers mean."""

NODATA = "NoData"
"""What 0 in the labels of an Esri export is called that has no such class."""

_FULL = (255, 65535)  # "white" in 8 and 16 bits
_IGNORE = ("ignore", "ignored", "unlabelled", "unlabeled")
_MOST_CLASSES = 64
_HIGH = 100  # greys above are no numbers of classes


def find_classes(numbers: Sequence[Counter[int]], spec: str = "") -> Classes:
    """Make the class table of a set of masks.

    Args:
        numbers: For each mask file, its numbers and their pixel counts.
        spec: What the user says: names in the order of the numbers (`background,salt`), or each
            number's or colour's name (`0=background,255=salt`, `#ff0000=roof`, `7=ignore`).

    Raises:
        DataError: The meaning cannot be known; the message holds a line to complete.
        UsageError: `spec` cannot be read, or has another number of names than there are classes.
    """
    if "=" in spec:
        return _explicit(spec)
    found = _infer(numbers)
    if not spec:
        return found
    names = [name.strip() for name in spec.split(",")]
    if len(names) != len(found) or len(set(names)) != len(names) or not all(names):
        seen = set().union(*numbers)
        rows = ["/".join(written(n) for n in info.raw if n in seen) for info in found]
        raise UsageError(
            f"--classes names {', '.join(names)}: {len(found)} different names are needed, for "
            f"{', '.join(rows)}."
        )
    infos = tuple(
        ClassInfo(name, info.value, info.color, info.role, info.raw)
        for name, info in zip(names, found, strict=True)
    )
    return Classes(infos, found.task)


def find_labels(
    labels: Sequence[str], numbers: Sequence[Sequence[Counter[int]]], spec: str = ""
) -> Classes:
    """Make the table of a multi-label set, whose masks lie in one folder for each label.

    Args:
        labels: The folders' names.
        numbers: For each label the counts of its files; each must have two numbers at the most.
        spec: Must be empty: the folders name the labels.
    """
    if spec:
        raise UsageError("--classes is not for masks in a folder for each label: rename these.")
    for label, counts in zip(labels, numbers, strict=True):
        values = {number for one in counts for number in one}
        if not (values <= {0, 1} or values <= {0, *_FULL}):
            raise DataError(
                f"masks/{label}: the masks of a label hold 0 and 1, or black and white; "
                f"these hold {_listed(sorted(values))}."
            )
    infos = tuple(
        ClassInfo(label, 1, default_color(i + 1), "class", (1, *_FULL))
        for i, label in enumerate(labels)
    )
    return Classes(infos, "multilabel")


def exported_classes(
    named: Sequence[EsriClass], numbers: Sequence[Counter[int]], *specs: str
) -> Classes:
    """Make the class table of an Esri export.

    0 is a class of its own where labels hold it, as it is in arcgis.learn, and where there would be
    only one class without it.

    Args:
        named: The classes that the export names.
        numbers: For each label file, its numbers and their pixel counts.
        specs: What is said beside, as in `find_classes`; the last one goes before. What a
            number is not given keeps the export's name; one that is in no label and that the
            export does not name is left out.

    Raises:
        UsageError: A text cannot be read, or fewer than two classes are left.
        DataError: The export has fewer than two.
    """
    names = _different(named)
    colors = {one.value: one.color for one in named}
    seen = frozenset[int]().union(*numbers)
    if 0 not in names and (0 in seen or len(names) == 1):
        names[0] = NODATA
    ignored: set[int] = set()
    for spec in filter(None, specs):
        for number, name in _said(spec, sorted(set(names) - ignored)):
            ignored.discard(number)
            if name.lower() in _IGNORE:
                ignored.add(number)
            elif number in seen | set(names) and name != name_in_spec(names.get(number, "")):
                names[number] = name
    groups: dict[str, list[int]] = {}
    for number in sorted(set(names) - ignored):
        groups.setdefault(names[number], []).append(number)
    if len(groups) < 2:
        fault = UsageError if any(specs) else DataError
        raise fault(
            f"{', '.join(groups) or 'nothing'} is all that counts of the export's classes "
            f"({', '.join(names.values())}): --classes must leave two."
        )
    background = next((n for n in groups if n.lower() == "background"), None)
    background = background or next((n for n, raw in groups.items() if 0 in raw), None)
    plain = all(0 <= raw[0] <= 255 for raw in groups.values())
    infos = []
    for i, name in enumerate(sorted(groups, key=lambda name: name != background)):
        raw = groups[name]
        color = next((c for c in map(colors.get, raw) if c), default_color(i + (not background)))
        role: Role = "background" if name == background else "class"
        infos.append(ClassInfo(name, raw[0] if plain else i, color, role, tuple(raw)))
    task: Task = "multiclass" if len(infos) > 2 else "binary"
    return Classes(tuple(infos), task, tuple(sorted(ignored)))


def _different(named: Sequence[EsriClass]) -> dict[int, str]:
    """The name of each value; those that share one get their value behind it."""
    counts = Counter(one.name for one in named)
    return {
        one.value: one.name if counts[one.name] == 1 else f"{one.name} ({one.value})"
        for one in named
    }


def _said(spec: str, there: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield what a text calls some numbers; names alone are for those that are there, in order."""
    if "=" not in spec:
        words = [name.strip() for name in spec.split(",")]
        if len(words) != len(there) or len(set(words)) != len(words) or not all(words):
            raise UsageError(
                f"--classes names {', '.join(words)}: {len(there)} different names are needed, "
                f"for {', '.join(map(str, there))}."
            )
        yield from zip(there, words, strict=True)
        return
    taken: dict[int, str] = {}
    for number, value, name in _items(spec):
        if taken.setdefault(value, name) != name:
            raise UsageError(f"--classes names {number} twice.")
    yield from taken.items()


def name_in_spec(name: str) -> str:
    """Return a name as a text of classes holds it, in which a comma parts them."""
    return name.replace(",", ";").strip()


def named_numbers(spec: str) -> frozenset[int]:
    """Return the numbers that a class table calls classes; what it cannot read names none."""
    try:
        return frozenset(number for info in find_classes([], spec) for number in info.raw)
    except (DataError, UsageError):
        return frozenset()


def spec_of(classes: Classes, ignored: int) -> str:
    """Return the class table of written masks, as `find_classes` reads it.

    A comma in a name becomes a semicolon, and a name that would stand for pixels that do not count
    gets a full stop.

    Args:
        classes: What was written.
        ignored: What was written where no class is known.

    Raises:
        UsageError: Two classes would get one name, or one would get none.
    """
    names = [name_in_spec(info.name) for info in classes]
    names = [f"{name}." if name.lower() in _IGNORE else name for name in names]
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"the classes {', '.join(classes.names)} cannot be told apart in a table.")
    rows = [f"{info.value}={name}" for info, name in zip(classes, names, strict=True)]
    return ",".join([*rows, f"{ignored}=ignore"])


def kept_spec(folder: Path) -> str:
    """Return the class table that a folder of images and masks gives; empty where it gives none.

    Raises:
        DataError: Its file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return ""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the class table cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this is not TOML: {error}.") from error
    spec = told.get("classes")
    if set(told) != {"classes"} or not isinstance(spec, str) or "=" not in spec:
        raise DataError(
            f"{path}: it must hold one line such as classes = "
            '"0=background,1=roof,255=ignore", and nothing else.'
        )
    return spec


def describe(classes: Classes) -> str:
    """Return the mapping in one line: what is read, what it is called, what is written."""
    rows = []
    for info in classes:
        raw = "/".join(written(number) for number in info.raw)
        rows.append(f"{raw} → {info.name} (written as {info.value})")
    rows += [f"{written(number)} → not counted" for number in classes.ignored]
    return ", ".join(rows)


def _infer(numbers: Sequence[Counter[int]]) -> Classes:
    values = sorted(set().union(*numbers))
    total = sum(numbers, Counter[int]())
    if any(value >= COLOR_FLAG for value in values):
        raise _ask("the masks hold colours, whose meaning cannot be known", total)
    if len(values) < 2:
        raise DataError(
            f"all masks hold nothing but {_listed(values) or 'no pixel that counts'}: there is "
            "nothing to tell apart. Check that these are the masks."
        )
    if set(values) <= {0, 1}:
        return _two((0,), (1, *_FULL), 1)
    if set(values) <= {0, *_FULL} and not any({*_FULL} <= set(one) for one in numbers):
        return _two((0,), (1, *_FULL), 1)
    greys = _soft_edges(total)
    if greys:
        share = _percent(sum(greys.values()) / total.total())
        raise DataError(
            f"the masks hold black, white and {len(greys)} greys between them ({share} of the "
            "pixels): edges were smoothed, by drawing, resizing or JPEG. Save the masks as PNG "
            "without smoothing, or say what each number means with --classes."
        )
    if values[0] < 0 or (values[-1] > 255 and len(values) > 2) or len(values) > _MOST_CLASSES:
        cause = f"the masks hold {len(values)} different numbers from {values[0]} to {values[-1]}"
        if len(values) > _MOST_CLASSES:
            cause += " (a photograph, or masks that were saved as JPEG?)"
        raise _ask(cause, total)
    if 255 in values and values != [0, 255]:
        raise _ask("255 beside other numbers may be a class or 'not labelled'", total)
    if len(values) == 2 and values[0] == 0:
        return _two((0,), (values[1],), values[1] if values[1] <= 255 else 1)
    return Classes(
        tuple(
            ClassInfo(
                name="background" if value == 0 else f"class {value}",
                value=value if values[-1] <= 255 else i,
                color=default_color(i + (values[0] != 0)),
                role="background" if value == 0 else "class",
                raw=(value,),
            )
            for i, value in enumerate(values)
        ),
        "multiclass" if len(values) > 2 else "binary",
    )


def _soft_edges(counts: Counter[int]) -> dict[int, int]:
    """Return the greys of masks that are black and white but for smoothed edges; else nothing."""
    between = {number: k for number, k in counts.items() if 0 < number < 255}
    most = {number for number, _ in counts.most_common(2)}
    soft = most == {0, 255} and (min(counts), max(counts)) == (0, 255)
    return between if soft and len(between) > 2 and max(between) > _HIGH else {}


def _two(background: tuple[int, ...], foreground: tuple[int, ...], value: int) -> Classes:
    return Classes(
        (
            ClassInfo("background", 0, default_color(0), "background", background),
            ClassInfo("foreground", value, default_color(1), "class", foreground),
        ),
        "binary",
    )


def _explicit(spec: str) -> Classes:
    """Read `0=background,255=salt,7=ignore`; several numbers may share a name."""
    raws: dict[str, list[int]] = {}
    taken: dict[int, str] = {}
    colors: dict[str, tuple[int, int, int]] = {}
    for number, value, name in _items(spec):
        same = [value]
        if value >= COLOR_FLAG:
            red, green, blue = value >> 16 & 255, value >> 8 & 255, value & 255
            colors.setdefault(name, (red, green, blue))
            if red == green == blue:  # an all-black mask is read as grey
                same.append(red)
        if any(taken.setdefault(one, name) != name for one in same):
            raise UsageError(f"--classes names {number} twice.")
        raws[name] = list(dict.fromkeys([*raws.get(name, []), *same]))
    ignored = tuple(n for name in raws if name.lower() in _IGNORE for n in raws[name])
    kept = {name: raw for name, raw in raws.items() if name.lower() not in _IGNORE}
    if len(kept) < 2:
        raise UsageError("--classes must name at least two classes that count.")
    named = [name for name in kept if name.lower() == "background"]
    background = next(iter([*named, *(name for name, raw in kept.items() if 0 in raw)]), None)
    plain = all(0 <= raw[0] <= 255 for raw in kept.values())
    infos = []
    for i, name in enumerate(sorted(kept, key=lambda name: name != background)):
        role: Role = "background" if name == background else "class"
        color = colors.get(name, default_color(i + (background is None)))
        raw = tuple(kept[name])
        infos.append(ClassInfo(name, raw[0] if plain else i, color, role, raw))
    task: Task = "multiclass" if len(infos) > 2 else "binary"
    return Classes(tuple(infos), task, ignored)


def _items(spec: str) -> Iterator[tuple[str, int, str]]:
    """Yield each number as it is written, its value, and its name."""
    for item in spec.split(","):
        number, _, name = (part.strip() for part in item.partition("="))
        if not name or not number:
            raise UsageError(f"--classes: {item.strip()!r} must be like 255=salt or #ff0000=roof.")
        yield number, _number(number), name


def _number(text: str) -> int:
    try:
        if text.startswith("#") and len(text) == 7:
            return COLOR_FLAG + int(text[1:], 16)
        return int(text)
    except ValueError:
        pass
    raise UsageError(f"--classes: {text!r} is neither a number nor a colour like #ff0000.")


def _ask(cause: str, counts: Counter[int]) -> DataError:
    total = sum(counts.values())
    most = counts.most_common(8)
    shares = ", ".join(f"{written(n)} ({_percent(k / total)})" for n, k in most)
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    named = counts if len(counts) <= _MOST_CLASSES else dict(most)
    line = ",".join(f"{written(n)}=NAME" for n in sorted(named))
    return DataError(
        f"{cause}: {shares}{more}. Say what they mean: --classes "
        f'"{line}" (the name "ignore" stands for pixels that do not count).'
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(written(value) for value in values[:12])
    return shown + (f" and {len(values) - 12} more" if len(values) > 12 else "")


def written(number: int) -> str:
    """Return a mask's number, or `#rrggbb` where it is a colour."""
    return f"#{number - COLOR_FLAG:06x}" if number >= COLOR_FLAG else str(number)
