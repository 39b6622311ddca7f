"""A run in pictures and words: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from whatwhere import files
from whatwhere.bundle import Card
from whatwhere.config import MODELS
from whatwhere.notation import parse_loss
from whatwhere.types import Classes

FOLDER = "report"
Color: TypeAlias = tuple[int, int, int]

_SCALED = "normalised by mean and standard deviation of the training images"


def areas_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the areas as CSV."""
    stream = io.StringIO()
    if rows:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return stream.getvalue()


def methods(card: Card, scored: Mapping[str, Any] | None) -> str:
    """Return a paragraph for a paper: what was done, with every number of the recipe."""
    recipe, data = card.recipe, card.data
    flips = "left-right flips" if card.orientation == "upright" else "all symmetries of the square"
    changes = (
        f"Training chips were changed at random: {flips}, rotations up to {recipe['rotate']:g}°, "
        f"scale up to {recipe['scale']:.0%}, shifts up to {recipe['shift']:.0%}, brightness up to "
        f"{recipe['brightness']:g} standard deviations and contrast up to {recipe['contrast']:.0%}."
        if recipe["augment"]
        else "Training chips were not augmented."
    )
    if recipe.get("mixup"):
        changes += (
            " Each was laid over another one of its batch, the share drawn from a beta "
            f"distribution (alpha {recipe['mixup']:g}), and the losses of both masks were mixed "
            "alike."
        )
    if recipe.get("half_size"):
        what = "time" if recipe.get("minutes") else "steps"
        changes += f" Their sides were halved in the first {recipe['half_size']:.0%} of the {what}."
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    what = _monitored(recipe)
    by = "" if what == "loss" else f" by the {what}"
    text = (
        f"A U-Net ({_net(card)}) was trained on {data['train']} {_what(card)} and validated on "
        f"{data['val']}; {data['test']} were kept for testing. {_taken(card)}. {changes} "
        f"{_course(recipe, _loss(recipe, card.classes.task))}, and the weights of the best epoch "
        f"({card.scores['epoch']:g}{by}, validation loss {card.scores['val_loss']:.4f}) were kept."
    )
    if card.tuning:
        chosen = ", ".join(f"{threshold:g}" for threshold in card.thresholds)
        text += (
            f" The threshold ({chosen}) was chosen on {card.tuning['on']} as the one with "
            f"the highest {card.tuning['metric']}."
        )
    elif card.thresholds:
        text += " The threshold was 0.5."
    if scored:
        text += (
            f" On {scored['images']} images ({scored['on']}) the mean IoU was "
            f"{_score(scored['mean_iou'])} and the pixel accuracy "
            f"{_score(scored['pixel_accuracy'])}."
        )
    return f"{text} Seed {recipe['seed']}; {versions}."


def _monitored(recipe: Mapping[str, Any]) -> str:
    """What of the validation split decided."""
    return str(recipe.get("monitor", "loss")).replace("_", " ")


def _what(card: Card) -> str:
    """What was trained on: images, or blocks of scenes."""
    if "block_px" not in card.data:
        return "images"
    return f"blocks of about {card.data['block_px']} px, cut from scenes,"


def _taken(card: Card) -> str:
    """Say what was taken of the images, and how their values were brought to one scale."""
    scaled = card.recipe.get("normalize", True)
    if "block_px" in card.data:
        size = "" if card.pixel_size is None else f" of {card.pixel_size:.3g} m"
        return (
            f"Training blocks lost a strip of {card.recipe['split_gap']:g} of a chip's side beside "
            f"other blocks, and {card.recipe['class_sampling']:.0%} of the training chips were "
            f"drawn around a pixel of a class drawn evenly. Pixels{size} were "
            + (
                f"clipped to the 0.1 and 99.9 percentile for measuring and {_SCALED}"
                if scaled
                else "taken as they are"
            )
        )
    size = f"stretched to {card.resize[0]}×{card.resize[1]} px" if card.resize else "at their size"
    return f"Images were taken {size}" + (f" and {_SCALED}" if scaled else ", values as they are")


def _net(card: Card) -> str:
    """Say what the net is and what it began with."""
    recipe = card.recipe
    words = [card.model, f"{card.parameters:,} parameters"]
    if "n_filters" in card.arguments:
        words.append(f"{recipe['n_filters']} filters in the first block")
    else:
        words.append(f"{recipe['upsample']} upsampling")
    if recipe["dropout"]:
        words.append(f"dropout {recipe['dropout']:g}")
    if recipe["pretrained_path"]:
        words.append(f"started from {recipe['pretrained_path']}")
    elif card.model not in MODELS and ":" not in card.model and recipe["pretrained"]:
        words.append("pretrained on ImageNet")
    return ", ".join(words)


def _loss(recipe: Mapping[str, Any], task: str) -> str:
    names = {
        "cross_entropy": "cross-entropy" if task == "multiclass" else "binary cross-entropy",
        "unet2015": "cross-entropy with weights between touching objects",
        "lovasz": "Lovász loss",
    }
    parts = [
        (f"{weight:g} × " if weight != 1 else "") + names.get(name, f"{name} loss")
        for name, weight in parse_loss(recipe["loss"]).items()
    ]
    weights = f", classes weighted ({recipe['class_weights']})" if recipe["class_weights"] else ""
    return " + ".join(parts) + weights


def _course(recipe: Mapping[str, Any], loss: str) -> str:
    """Say how the weights were fitted, without a full stop."""
    decay = f", weight decay {recipe['weight_decay']:g}" if recipe["weight_decay"] else ""
    batches = f"batches of {recipe['batch_size']}"
    if recipe["accumulate"] > 1:
        batches += f", {recipe['accumulate']} of which made a step"
    text = (
        f"Weights were fitted by {'AdamW' if recipe['optimizer'] == 'adamw' else 'Adam'} (learning "
        f"rate {recipe['lr']:g}, β₁ {recipe['beta_1']:g}, β₂ {recipe['beta_2']:g}, ε "
        f"{recipe['epsilon']:g}{decay}) on the {loss} in {batches}"
    )
    if recipe["encoder_lr"] != 1:
        text += f", at {recipe['encoder_lr']:g} of the rate in the backbone's first level"
    if recipe["freeze_epochs"]:
        but = " (but for its first filters)" if recipe.get("train_first") else ""
        text += f", with a frozen backbone{but} in the first {recipe['freeze_epochs']} epochs"
    if recipe["clip"]:
        text += f", gradients clipped to a norm of {recipe['clip']:g}"
    if recipe["precision"] != "32":
        text += f", in {recipe['precision']} mixed precision"
    if recipe["ema"]:
        of = "time" if recipe.get("minutes") else "steps"
        text += f"; weights were averaged with a half-life of {recipe['ema']:.0%} of the {of}"
    if recipe["schedule"] == "plateau":
        text += (
            f"; the learning rate was multiplied by {recipe['lr_factor']:g} after "
            f"{recipe['lr_patience']} epochs without a better validation {_monitored(recipe)}"
        )
    else:
        form = "a cosine" if recipe["schedule"] == "cosine" else "one cycle"
        text += (
            f"; the learning rate rose for {recipe['warmup']:.0%} of the steps and fell along "
            f"{form} to the end"
        )
    stop = f"{recipe['stop_patience']} or after " if recipe["stop_patience"] else ""
    return f"{text}, training stopped after {stop}{recipe['epochs']} epochs"


def write(run: Path, card: Card, colors: Sequence[tuple[str, Color]]) -> Path:
    """Put what lies in `RUN/report/` into `RUN/report.html`; what is not there is left out.

    Args:
        run: The run folder.
        card: Of its bundle.
        colors: What the colours of the errors mean: names and `(red, green, blue)`.

    Raises:
        OutputError: It cannot be written.
    """
    folder = run / FOLDER
    sections: list[str] = []
    test, validation = _json(folder / "test.json"), _json(folder / "validation.json")
    sections.append(_headline(card, test or validation))
    choice = _json(folder / "choice.json")
    if choice:
        sections.append(f"<h2>Choice</h2>{_choice(choice)}")
    for title, name, note in (
        ("Training", "curves", _waiting_note(run)),
        ("Examples", "examples", _legend(card.classes, colors)),
        ("Threshold", "thresholds", _threshold_note(card)),
    ):
        picture = folder / f"{name}.png"
        if picture.exists():
            sections.append(f"<h2>{title}</h2>{note}{_embed(picture, title)}")
    for title, scored in (("Test", test), ("Validation", validation)):
        if scored:
            sections.append(f"<h2>Scores: {title.lower()}</h2>{_score_table(scored)}")
            picture = folder / f"areas_{title.lower()}.png"
            if picture.exists():
                source = f"{FOLDER}/areas_{title.lower()}.csv"
                sections.append(
                    f"<p>Counts and areas of each image: <a href='{source}'>{source}</a></p>"
                    f"{_embed(picture, 'Areas', 'small')}"
                )
    data = _json(folder / "data.json")
    if data:
        sections.append(f"<h2>Data</h2>{_data_table(data, card)}")
    sections.append(f"<h2>Methods</h2><p class='methods'>{_e(methods(card, test))}</p>")
    page = _PAGE.replace("{title}", _e(run.name)).replace("{body}", "\n".join(sections))
    return files.write_text(run / "report.html", page)


def _headline(card: Card, scored: Mapping[str, Any] | None) -> str:
    cells = [("model", card.model), ("best epoch", f"{card.scores['epoch']:g}")]
    if scored:
        rows = [row for row in scored["classes"] if row["name"] in [i.name for i in card.classes]]
        if card.classes.task == "binary":
            cells.insert(0, (f"IoU of {rows[-1]['name']}", _score(rows[-1]["iou"])))
        cells.insert(0, (f"mean IoU on {scored['on']}", _score(scored["mean_iou"])))
    if card.thresholds:
        cells.append(("threshold", ", ".join(f"{t:g}" for t in card.thresholds)))
    boxes = "".join(
        f"<div><b>{_e(value)}</b><span>{_e(name)}</span></div>" for name, value in cells
    )
    return f"<div class='headline'>{boxes}</div>"


def _choice(choice: Mapping[str, Any]) -> str:
    """Why this net was taken, and how its time was divided."""
    rows = "".join(
        f"<tr><td>{'<b>' * row['chosen']}{_e(row['name'])}{'</b>' * row['chosen']}</td>"
        + (
            f"<td colspan='4'>{_e(row['error'])}</td></tr>"
            if row["error"]
            else f"<td>{row['parameters']:,}</td><td>{row['steps']}</td>"
            f"<td>{row['step_seconds']:.2f}</td><td>{_score(row['score'])}</td></tr>"
        )
        for row in choice["candidates"]
    )
    heads = ("net", "parameters", "steps", "seconds a step", "mean IoU")
    titles = "".join(f"<th>{head}</th>" for head in heads)
    lines = "".join(
        f"<tr><th>{_e(name)}</th><td>{_e(value)}</td></tr>"
        for part in ("found", "plan")
        for name, value in choice[part].items()
    )
    return (
        f"<p>The training had {choice['minutes']:g} minutes. Nets were tried for a few per cent of "
        f"them, on a few validation chips; one was taken because: {_e(choice['because'])}.</p>"
        f"<table><tr>{titles}</tr>{rows}</table><table>{lines}</table>"
    )


def _legend(classes: Classes, colors: Sequence[tuple[str, Color]]) -> str:
    keys = [(info.name, info.color) for info in classes]
    keys += colors
    chips = "".join(f"<span><i style='background:rgb{c}'></i>{_e(n)}</span>" for n, c in keys)
    return (
        "<p>Validation images from the worst to the best, evenly spread.</p>"
        f"<p class='legend'>{chips}</p>"
    )


def _waiting_note(run: Path) -> str:
    """Return what the log says of the time that steps waited for data; nothing without one."""
    try:
        text = (run / "log.csv").read_text(encoding="utf-8")
        found = [float(row["waiting"]) for row in csv.DictReader(io.StringIO(text))]
    except (KeyError, OSError, TypeError, ValueError):  # none, of an older version, or changed
        return ""
    if not found:
        return ""
    share = statistics.median(found[1:] or found)
    return f"<p>Of the time of the steps, {share:.1%} went by waiting for data.</p>"


def _threshold_note(card: Card) -> str:
    if not card.tuning:
        return (
            "<p>On the validation images. The bundle holds 0.5; "
            "<code>whatwhere tune RUN DATA</code> chooses the best.</p>"
        )
    rows = "".join(
        f"<li>{_e(name)}: {_e(card.tuning['metric'])} {_score(row['value'])} at "
        f"{row['threshold']:g}, {_score(row['at_half'])} at 0.5</li>"
        for name, row in card.tuning["labels"].items()
    )
    return f"<p>Chosen on {_e(card.tuning['on'])}:</p><ul>{rows}</ul>"


def _score_table(scored: Mapping[str, Any]) -> str:
    heads = ("IoU", "Dice", "precision", "recall")
    rows = "".join(
        f"<tr><td>{_e(row['name'])}</td><td>{_e(row['value'])}</td>"
        + "".join(f"<td>{_score(row[head.lower()])}</td>" for head in heads)
        + f"<td>{row['support']:,}</td></tr>"
        for row in scored["classes"]
    )
    titles = "".join(f"<th>{head}</th>" for head in ("class", "value", *heads, "support [px]"))
    return (
        f"<p>{_e(scored['images'])} images, {_e(scored['on'])}{_e(_decided(scored))}.</p>"
        f"<table><tr>{titles}</tr>{rows}</table>"
        f"<p>Mean IoU {_score(scored['mean_iou'])} (over the whole set), "
        f"{_score(scored['mean_iou_images'])} (mean over images); pixel accuracy "
        f"{_score(scored['pixel_accuracy'])}.</p>"
    )


def _decided(scored: Mapping[str, Any]) -> str:
    threshold = scored["threshold"]
    if threshold is None:
        return ", the most likely class taken"
    if isinstance(threshold, Mapping):
        return ", thresholds " + ", ".join(f"{name} {value:g}" for name, value in threshold.items())
    return f", threshold {threshold:g}"


def _data_table(data: Mapping[str, Any], card: Card) -> str:
    sizes = ", ".join(f"{s['height']}×{s['width']} ({s['images']})" for s in data["sizes"][:6])
    lines = {
        "folder": data["root"],
        (
            "blocks" if "block_px" in card.data else "pairs"
        ): f"{data['pairs']}: {card.data['train']} to train, {card.data['val']} to validate, "
        f"{card.data['test']} to test",
        "sizes [px]": sizes + (" …" if len(data["sizes"]) > 6 else ""),
        "number types": ", ".join(f"{name} ({count})" for name, count in data["types"].items()),
        "bands": ", ".join(card.bands.names),
        "orientation": card.orientation,
    }
    rows = "".join(f"<tr><th>{_e(k)}</th><td>{_e(str(v))}</td></tr>" for k, v in lines.items())
    shares = "".join(
        f"<tr><td>{_e(row['name'])}</td><td>{_e(', '.join(map(str, row['raw'])))}</td>"
        f"<td>{_e(row['value'])}</td><td>{row['share']:.1%}</td></tr>"
        for row in data["classes"]
    )
    notes = "".join(
        f"<li><b>{_e(p['severity'])}</b> {_e(p['file'])}: {_e(p['cause'])} {_e(p['remedy'])}</li>"
        for p in data["problems"][:20]
    )
    heads = "<tr><th>class</th><th>read as</th><th>written as</th><th>pixels</th></tr>"
    return f"<table>{rows}</table><table>{heads}{shares}</table><ul>{notes}</ul>"


def _embed(path: Path, alt: str, kind: str = "") -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img class='{kind}' alt='{_e(alt)}' src='data:image/png;base64,{data}'>"


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a damaged piece is left out, as one that is not there
    return value


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _e(text: str) -> str:
    return html.escape(str(text), quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · whatwhere</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-weight: 600; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; display: block; } img.small { max-width: 430px; }
table { border-collapse: collapse; margin: .6rem 0 1rem; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #eee;
  font-variant-numeric: tabular-nums; vertical-align: top; overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; gap: .8rem; }
.headline div { background: #f4f6f8; border-radius: 8px; padding: .6rem 1rem; }
.headline b { display: block; font-size: 1.25rem; } .headline span { color: #666; }
.legend span { margin-right: 1.2rem; } .legend i { display: inline-block; width: .9em;
  height: .9em; margin-right: .35em; vertical-align: -.1em; border: 1px solid #999; }
.methods { background: #f4f6f8; border-radius: 8px; padding: 1rem; }
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
