"""What the catalogue needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from made import salt_folder
from told import assert_told
from training_cases import Died, train, weights
from whatwhere.train.state import States


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the nets lie that several cases use."""
    return tmp_path_factory.mktemp("nets")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("training") / "data", 12, (32, 32))


@pytest.fixture(scope="session")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a training that nothing happens to."""
    run = tmp_path_factory.mktemp("calm") / "run"
    assert_told(train(data, run), 0, "next: ")
    return weights(run)


@pytest.fixture(scope="session")
def died(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a training that died after its fourth state."""
    run = tmp_path_factory.mktemp("died") / "run"
    write, count = States.write, 0

    def dying(self: States, step: int, state: bytes) -> Path:
        nonlocal count
        count += 1
        path = write(self, step, state)
        if count == 4:
            raise Died
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(States, "write", dying)
        with pytest.raises(Died):
            train(data, run)
    return run


@pytest.fixture
def run(died: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(died, tmp_path / "run"))
