"""Try one backbone of every family that timm has, and write down which of them work.

    python docs/sweep_backbones.py [FAMILY ...]

Writes `docs/explanation/backbones.md`; with families named, tries these alone and writes nothing.
Takes some minutes and needs no network: nothing is pretrained.
"""

from __future__ import annotations

import collections
import os
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm
import torch
from timm.models import _registry
from torch import nn

from whatwhere.errors import WhatwhereError
from whatwhere.nn.build import build_model
from whatwhere.nn.dynamic import DynamicUNet

PAGE = Path(__file__).resolve().parent / "explanation" / "backbones.md"
LARGEST = 120_000_000  # parameters; a larger member is not tried
SIZES = ((37, 21), (64, 96))
PROMISED = 0.95

FAULTS = (
    *(WhatwhereError, RuntimeError, ValueError, TypeError, AttributeError),
    *(AssertionError, LookupError, ArithmeticError),
)


@dataclass(frozen=True)
class Row:
    """What came of a family.

    Attributes:
        family: timm's module.
        tried: The member, empty where none makes the claim.
        parameters: Of its feature extractor.
        sizes: The reductions of its feature maps.
        stride: What sides of an image are mirrored up to multiples of [px].
        square: Whether it takes images of one size alone.
        fault: Why it does not work; empty where it does.
    """

    family: str
    tried: str
    parameters: int
    sizes: tuple[int, ...] = ()
    stride: int = 0
    square: bool = False
    fault: str = ""


def main(asked: list[str]) -> int:
    """Try all families, or those asked for; print, and write the page."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    families: dict[str, list[str]] = collections.defaultdict(list)
    for name in timm.list_models(exclude_filters="test_*"):  # timm's own tests' are no one's choice
        families[_registry._model_to_module[name]].append(name)
    rows = []
    for family in asked or sorted(families):
        started = time.perf_counter()
        rows.append(sweep(family, families[family]))
        say(f"{time.perf_counter() - started:6.1f} s  {rows[-1]}")
    tried = [row for row in rows if row.tried and row.parameters <= LARGEST]
    works = sum(not row.fault for row in tried)
    say(f"{works} of {len(tried)} work: {works / max(len(tried), 1):.1%}")
    if not asked:
        PAGE.write_text(page(rows, tried, works), encoding="utf-8", newline="\n")
    return 0 if works >= PROMISED * len(tried) else 1


def sweep(family: str, names: list[str]) -> Row:
    """Try the smallest member of a family that claims to give feature maps."""
    refusals: list[str] = []
    sizes = {}
    for name in names:
        try:
            with torch.device("meta"):
                sizes[name] = count(timm.create_model(name, features_only=True))
        except FAULTS as error:
            refusals.append(first_line(error))
    if not sizes:
        return Row(family, "", 0, fault=refusals[0])
    name = min(sizes, key=lambda one: (sizes[one], one))
    if sizes[name] > LARGEST:
        return Row(family, name, sizes[name], fault="not tried, too large")
    try:
        net = build_model(name, 3, 2)
        if not isinstance(net, DynamicUNet):
            raise TypeError(f"{name} became a {type(net).__name__}")
        run(net)
    except FAULTS as error:
        return Row(family, name, sizes[name], fault=first_line(error))
    reductions = tuple(level.reduction for level in net.encoder.levels)
    return Row(family, name, sizes[name], reductions, net.encoder.stride, bool(net.encoder.square))


def run(net: DynamicUNet) -> None:
    """Run a net forward and back at several sizes; raises where anything is not as it should be."""
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width)
        for training in (False, True):
            logits = net.train(training)(image)
            if logits.shape != (1, 2, height, width) or not torch.isfinite(logits).all():
                raise ValueError(f"{height}×{width} gives {tuple(logits.shape)}, or no numbers")
        net.zero_grad()
        (logits * torch.randn_like(logits)).sum().backward()
    idle = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    if any(name.startswith(("decoder", "head")) for name in idle) or all(
        parameter.grad is None for parameter in net.encoder.parameters()
    ):
        raise ValueError(f"no gradient reaches {idle[0]}")


def say(text: str) -> None:
    """Tell how it goes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def count(net: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in net.parameters())


def first_line(error: BaseException) -> str:
    """Return what an error says, shortened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) < 180 else f"{text[:177]}…"


def page(rows: list[Row], tried: list[Row], works: int) -> str:
    """Return the page as Markdown."""
    lines = [
        "# Which backbones work",
        "",
        "Any backbone of timm that gives feature maps can be the encoder: "
        "`whatwhere train DATA -o RUN --model NAME`. Nothing is known of them by name. What maps a "
        "backbone gives, at which sizes, and what sides it takes is found by passing a few small "
        "images through it, and the decoder is planned from that. A size that it lacks becomes a "
        "step without a skip, and an image whose sides do not fit is mirrored up and cut back. A "
        "backbone that takes images of one size alone, as some transformers do, is given the image "
        "in squares of that size: it sees no farther than a square, and its squares meet in the "
        "decoder.",
        "",
        f"So whether it works can be tried. Of each of timm's {len(rows)} families the smallest "
        f"member that claims feature maps was built for 3 bands and 2 classes, and run forward and "
        f"back on images of {' and '.join(f'{h}×{w}' for h, w in SIZES)} px. **{works} of "
        f"{len(tried)} work: {works / len(tried):.1%}.** Members of more than "
        f"{LARGEST / 1e6:.0f} M parameters were not tried. What does not work is refused with "
        "a message when the net is built, before anything is trained. "
        f"(timm {version('timm')}, torch "
        f"{version('torch').split('+')[0]}; parameters are those of the encoder alone.)",
        "",
        "| family | tried | parameters | sizes 1/… | works? |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row.tried):
        told = row.fault.replace("|", "/")
        if not told:
            told = f"yes, {'squares' if row.square else 'sides'} of {row.stride} px"
        elif row.parameters <= LARGEST:
            told = f"no: {told}"
        sizes = ", ".join(map(str, row.sizes)) or "–"
        lines.append(
            f"| {row.family} | `{row.tried}` | {row.parameters / 1e6:.1f} M | {sizes} | {told} |"
        )
    silent = [row.family for row in rows if not row.tried]
    if silent:
        lines += ["", f"No member of these families gives feature maps: {', '.join(silent)}."]
    lines += [
        "",
        "`whatwhere models NAME` tells the same of any other member, and what it takes in memory.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
