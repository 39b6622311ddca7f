"""Training chips of scenes on disk, in the layout that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whatwhere.chipping.esri import cut_esri
from whatwhere.chipping.folder import cut_folder
from whatwhere.chipping.layout import ESRI, Cut
from whatwhere.config import Recipe
from whatwhere.data.inputs import Inputs
from whatwhere.talk import Talk


def cut_chips(data: Inputs, output: Path, recipe: Recipe, cut: Cut, talk: Talk) -> dict[str, Any]:
    """Cut scenes into chips, as `jobs.chip` describes it."""
    cut.check(data)
    write = cut_esri if cut.layout == ESRI else cut_folder
    return write(data, output, recipe, cut, talk)
