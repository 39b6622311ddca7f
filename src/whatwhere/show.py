"""Results as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from whatwhere.errors import Problem, plain

_MARKS = {"error": "✗ error", "warning": "! warning", "note": "· note"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first to the left, the others to the right."""
    lines = [list(heads), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "─" * max(map(len, text)), *text[1:]])


def inspection(found: Mapping[str, Any]) -> str:
    """Return what `inspect` found."""
    sizes = found["sizes"]
    listed = ", ".join(f"{s['height']}×{s['width']} ({s['images']})" for s in sizes[:5])
    more = f" and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
    scenes, exports = found.get("scenes", []), found.get("exports", [])
    kind, state = ("blocks", "with labels") if scenes else ("pairs", "in order")
    lines = [
        f"{found['root']}: {found['pairs']} {kind}, {found['readable']} of them {state}",
        *_scenes(scenes),
        *(line for export in exports for line in _export(export, len(exports) > 1)),
        *([""] if exports and sizes else []),
    ]
    if sizes:
        types = ", ".join(f"{name} ({n})" for name, n in found["types"].items())
        bands = ", ".join(f"{name} ({n} images)" for name, n in found["bands"].items())
        lines += [f"sizes [px]  {listed}{more}", f"types       {types}", f"bands       {bands}"]
    if found["splits"]:
        lines.append(
            f"splits      {', '.join(f'{n} {name}' for name, n in found['splits'].items())}"
        )
    if found["classes"]:
        rows = [
            (
                row["name"],
                ", ".join(_number(number) for number in row["raw"]),
                str(row["value"]),
                f"{row['pixels']:,}",
                f"{row['share']:.2%}",
            )
            for row in found["classes"]
        ]
        heads = ("class", "read as", "written as", "pixels", "share")
        lines += ["", f"task        {found['task']}", table(heads, rows)]
    counts = dict.fromkeys(_MARKS, 0)
    lines.append("")
    for problem in found["problems"]:
        counts[problem["severity"]] += 1
        told = Problem(problem["severity"], problem["file"], problem["cause"], problem["remedy"])
        lines.append(f"{_MARKS[problem['severity']]}  {told}")
    lines.append(", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items()))
    return "\n".join(lines)


def _scenes(scenes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each scene, up to twenty."""
    lines = []
    for one in scenes[:20]:
        size = one["pixel_size_m"]
        told = "unknown" if size is None else f"{size:.3g} m"
        if size is not None and abs(size / one["read_at_m"] - 1) > 0.02:
            told += f", read at {one['read_at_m']:.3g} m"
        split = f"; {one['split']}" if one["split"] else ""
        lines.append(
            f"scene       {one['name']}: {one['height']}×{one['width']} px, {one['crs']}, pixels "
            f"{told}; {', '.join(one['bands'])}{split}"
        )
    if len(scenes) > 20:
        lines.append(f"            and {len(scenes) - 20} more")
    return lines


def _export(one: Mapping[str, Any], named: bool) -> list[str]:
    """What an export of Esri's says of itself: a few lines, and a table of its classes."""
    chips = "chips" if one["chips"] is None else f"{one['chips']:,} chips"
    size = " of {}×{} px".format(*one["chip_px"]) if one["chip_px"] else ""
    where = f" in {one['folder']}" if named else ""
    lines = [f"export      {one['mode'] or 'of a kind it does not say'}: {chips}{size}{where}"]
    if one["listed"] is not None:
        lines.append(f"            {one['listed']:,} lines in map.txt")
    if one["bands"]:
        lines.append(f"            bands {', '.join(one['bands'])}")
    if one["cell_size"]:
        low, high = one["cell_size"]
        told = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        system = f" of {one['crs']}" if one["crs"] else ""
        lines.append(f"            pixels of {told} units{system}")
    for band in one["statistics"]:
        lines.append(
            f"            band {band['band']}: {band['min']:g} to {band['max']:g}, "
            f"mean {band['mean']:.6g}, deviation {band['std']:.6g}"
        )
    counted = [
        name
        for name in ("images", "pixels", "shapes")
        if any(name in row for row in one["classes"])
    ]
    if one["classes"]:
        rows = [
            (
                row["name"],
                str(row["value"]),
                "#{:02x}{:02x}{:02x}".format(*row["color"]) if row["color"] else "–",
                *(f"{row[name]:,}" if name in row else "–" for name in counted),
            )
            for row in one["classes"]
        ]
        lines.append(table(("class", "value", "colour", *counted), rows))
    return lines


def chips(found: Mapping[str, Any]) -> str:
    """Return how many chips were cut, what their masks hold, and what to type next."""
    counts = ", ".join(
        f"{count} {split}" for split, count in found["chips"].items() if split != "all"
    )
    height, width = found["chip_px"]
    if "next" not in found:
        return (
            f"at the most {sum(found['chips'].values())} chips of {height}×{width} px would be in "
            f"{found['output']}{': ' * bool(counts)}{counts}\n"
            f'classes: "{found["classes"]}"'
        )
    left = found["left_out"]
    without = f"; {left} with nothing to learn from were left out" if left else ""
    lines = [
        f"{sum(found['chips'].values())} chips of {height}×{width} px in {found['output']}"
        f"{': ' * bool(counts)}{counts}{without}",
        f'classes: "{found["classes"]}", kept in classes.toml, which train reads',
    ]
    if "pixels" in found:
        pixels = ", ".join(f"{name} {count:,}" for name, count in found["pixels"].items())
        lines.append(f"pixels: {pixels}")
    lines.append(f"next: {found['next']}")
    if "next_python" in found:
        lines.append(f"or in Python: {found['next_python']}")
    return "\n".join(lines)


def scores(found: Mapping[str, Any]) -> str:
    """Return a table of the classes, and the means below it."""
    heads = ("class", "value", "IoU", "Dice", "precision", "recall", "support [px]")
    rows = [
        (
            row["name"],
            str(row["value"]),
            *(_score(row[name]) for name in ("iou", "dice", "precision", "recall")),
            f"{row['support']:,}",
        )
        for row in found["classes"]
    ]
    threshold = found["threshold"]
    if isinstance(threshold, Mapping):
        threshold = ", ".join(f"{name} {value:g}" for name, value in threshold.items())
    decided = "most likely class" if threshold is None else f"threshold {threshold}"
    return "\n".join(
        [
            f"{found['images']} image{'s' * (found['images'] != 1)} ({found['on']}), {decided}",
            table(heads, rows),
            f"mean IoU {_score(found['mean_iou'])} over the whole set, "
            f"{_score(found['mean_iou_images'])} as the mean over images; "
            f"pixel accuracy {_score(found['pixel_accuracy'])}",
        ]
    )


def tuning(found: Mapping[str, Any]) -> str:
    """Return the thresholds that were chosen, 0.5 beside them."""
    rows = [
        (name, f"{row['threshold']:g}", _score(row["value"]), _score(row["at_half"]))
        for name, row in found["labels"].items()
    ]
    heads = ("label", "threshold", found["metric"], "at 0.5")
    return (
        f"{found['images']} images ({found['on']})\n{table(heads, rows)}\n"
        "The thresholds are kept in the bundle."
    )


def predictions(written: Sequence[Any], as_json: bool) -> str:
    """Return what was written for each image and scene."""
    if as_json:
        rows = [
            {
                "image": str(one.image),
                "files": [str(f) for f in one.files],
                "pixels": one.pixels,
                "polygons": one.objects,
            }
            for one in written
        ]
        return json.dumps({"images": rows})
    done = [one for one in written if one.files]
    count = sum(len(one.files) for one in done)
    example = plain(done[0].files[0]) if done else ""
    lines = [
        f"{len(done)} image{'s' * (len(done) != 1)} segmented, "
        f"{count} file{'s' * (count != 1)} written" + (f", such as {example}" if done else "")
    ]
    lines += [
        f"{plain(one.files[-1])}: {one.objects:,} polygon{'s' * (one.objects != 1)}"
        for one in done
        if one.objects is not None
    ]
    waiting = len(written) - len(done)
    if waiting:
        lines.append(f"{waiting} wait{'s' * (waiting == 1)} for other shards")
    return "\n".join(lines)


def exported(found: Mapping[str, Any]) -> str:
    """Return what was written, and how near to the original it is."""
    size = found["bytes"]
    told = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    lines = [f"{found['file']}: {told}"]
    if found["compared"]:
        sizes = ", ".join("×".join(map(str, one)) for one in found["compared"])
        lines.append(
            f"the largest difference of a probability from the net's is "
            f"{found['largest_difference']:.1e} ({sizes} px)"
        )
    return "\n".join(lines)


def models(found: Mapping[str, Any], pattern: str) -> str:
    """Return a line for each model, its stages where they were asked for, and what is left out."""
    rows = [
        (
            one["name"],
            f"{one['parameters']:,}",
            " ".join(map(str, one["reductions"])),
            str(one["stride"]),
            "yes" if one["pretrained"] else "no",
            f"{one['training_memory_mb_512']:,}",
        )
        for one in found["models"]
    ]
    heads = ("model", "parameters", "sizes 1/", "stride [px]", "pretrained", "memory [MB]")
    text = [table(heads, rows)] if rows else []
    text.append("memory: what a training keeps for each 512×512 px")
    for one in found["models"]:
        if "stages" in one:
            stages = [
                (name, "×".join(map(str, [*shape[1:], shape[0]]))) for name, shape in one["stages"]
            ]
            margin = "the whole tile" if one["margin"] is None else f"{one['margin']} px"
            text += ["", table((one["name"], "height×width×channels"), stages)]
            text.append(f"parameters that learn: {one['trainable']:,}; a pixel sees {margin} far")
    left = found["left_out"]
    if left:
        shown = "; ".join(f"{name}, which {reason}" for name, reason in list(left.items())[:3])
        text.append(f"\n{len(left)} cannot be taken, such as {shown}")
    if not pattern:
        text.append(
            f"\n{found['backbones']:,} backbones are known: whatwhere models 'resnet*' lists those."
        )
    return "\n".join(text)


def environment(found: Mapping[str, Any]) -> str:
    """Return versions, machine, and what is amiss."""
    torch = found["torch"]
    memory = "unknown" if found["memory_mb"] is None else f"{found['memory_mb']:,} MB free"
    lines = [
        f"whatwhere    {found['whatwhere']}",
        f"python       {found['python']} ({found['executable']})",
        f"system       {found['system']}",
        f"processors   {found['processors']}, {torch['threads']} threads",
        f"memory       {memory}",
        f"GPU          {', '.join(found['gpus']) or 'none seen by the driver'}",
        f"torch's CUDA {torch['built_for'] or 'none'}, usable: {'yes' if torch['cuda'] else 'no'}"
        f"{'; Apple MPS usable' if torch['mps'] else ''}",
    ]
    lines += [
        f"{name:<12} {version or 'not installed'}" for name, version in found["libraries"].items()
    ]
    lines += [f"amiss: {one['cause']} Mend it: {one['remedy']}" for one in found["amiss"]]
    return "\n".join([*lines, *([] if found["amiss"] else ["nothing is amiss"])])


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _number(number: int) -> str:
    return f"#{number & 0xFFFFFF:06x}" if number >= 1 << 24 else str(number)
