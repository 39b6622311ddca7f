"""What several tests need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
