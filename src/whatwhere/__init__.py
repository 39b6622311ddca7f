"""U-Net segmentation for pictures of any size: what is where, for every pixel.

The public names are loaded when they are first used, so that `import whatwhere` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whatwhere._version import __version__

_WHERE = {
    "BundleError": "errors",
    "DataError": "errors",
    "NumericsError": "errors",
    "OutputError": "errors",
    "Predictor": "predict.engine",
    "Recipe": "config",
    "Run": "runs",
    "ShapeError": "errors",
    "Talk": "talk",
    "UnetClassifier": "learn",
    "UsageError": "errors",
    "WhatwhereError": "errors",
    "build_model": "nn.build",
    "geometry": "nn.build",
    "load": "predict.engine",
    "make_recipe": "config",
    "prepare_data": "learn",
}

__all__ = [  # the same names; a test compares
    "BundleError",
    "DataError",
    "NumericsError",
    "OutputError",
    "Predictor",
    "Recipe",
    "Run",
    "ShapeError",
    "Talk",
    "UnetClassifier",
    "UsageError",
    "WhatwhereError",
    "__version__",
    "build_model",
    "geometry",
    "jobs",
    "load",
    "make_recipe",
    "prepare_data",
]

if TYPE_CHECKING:
    from whatwhere import jobs
    from whatwhere.config import Recipe, make_recipe
    from whatwhere.errors import (
        BundleError,
        DataError,
        NumericsError,
        OutputError,
        ShapeError,
        UsageError,
        WhatwhereError,
    )
    from whatwhere.learn import UnetClassifier, prepare_data
    from whatwhere.nn.build import build_model, geometry
    from whatwhere.predict.engine import Predictor, load
    from whatwhere.runs import Run
    from whatwhere.talk import Talk


def __getattr__(name: str) -> Any:
    if name == "jobs":
        return importlib.import_module("whatwhere.jobs")
    if name not in _WHERE:
        raise AttributeError(f"module 'whatwhere' has no attribute {name!r}")
    return getattr(importlib.import_module(f"whatwhere.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
