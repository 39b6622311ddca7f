"""What the catalogue needs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the nets lie that several cases use."""
    return tmp_path_factory.mktemp("nets")
