"""The demonstration and the examples, as a newcomer runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from whatwhere import demo
from whatwhere.errors import UsageError
from whatwhere.talk import Talk

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("drawn")


def test_a_small_demonstration_goes_through_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SECTIONS", 16)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    demo.demo(tmp_path / "demo", 1, Talk())
    told = capsys.readouterr().err
    for words in (
        *("inspect", "train", "tune", "evaluate", "predict", "report.html"),
        "sections the net has not seen",
        "the best that one intensity can do",
    ):
        assert words in told
    assert (tmp_path / "demo" / "run" / "report.html").exists()
    assert len(list((tmp_path / "demo" / "masks").glob("*.png"))) == len(demo.NEW_SIZES)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="there is something here already"):
        demo.demo(tmp_path, 1, Talk(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("report.html"))


def test_the_example_recipe_is_one() -> None:
    from whatwhere.config import make_recipe

    make_recipe(ROOT / "examples" / "recipe.toml")


@pytest.mark.slow
def test_the_demonstration_finds_salt_that_intensity_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.demo(tmp_path / "demo", 42, Talk()) >= 0.85
