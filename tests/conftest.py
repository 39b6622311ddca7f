"""What several tests need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from whatwhere import pictures
from whatwhere.io.image import encode_png

Drawing = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="session", autouse=True)
def drawing() -> Iterator[Drawing]:
    """Figures are built, but not drawn: that was three quarters of a small training.

    Gives what lets them be drawn, for tests that are about what is drawn.
    """
    draw = pictures._png
    pixel = encode_png(np.full((1, 1), 255, np.uint8))

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pictures, "_png", draw)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_png", lambda _figure: pixel)
        yield drawn


@pytest.fixture(scope="module")
def drawn(drawing: Drawing) -> Iterator[None]:
    """Let the figures of a whole module be drawn."""
    with drawing():
        yield


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return the folder of a real data set by its name, or skip where it is not."""

    def find(name: str) -> Path:
        root = os.environ.get("WHATWHERE_DATA")
        if not root:
            pytest.skip("WHATWHERE_DATA does not say where the real data is")
        if not Path(root, name).is_dir():
            pytest.skip(f"WHATWHERE_DATA has no {name}/")
        return Path(root, name)

    return find


@pytest.fixture
def real_weights() -> Callable[[str], Path]:
    """Return a file of pretrained weights by its name, or skip where it is not."""

    def find(name: str) -> Path:
        root = os.environ.get("WHATWHERE_WEIGHTS")
        if not root:
            pytest.skip("WHATWHERE_WEIGHTS does not say where real weights are")
        if not Path(root, name).is_file():
            pytest.skip(f"WHATWHERE_WEIGHTS has no {name}")
        return Path(root, name)

    return find
