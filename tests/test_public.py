"""What `import whatwhere` promises."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import whatwhere


def test_every_public_name_is_there() -> None:
    for name in whatwhere.__all__:
        assert getattr(whatwhere, name) is not None


def test_the_list_of_public_names_is_the_lazy_table() -> None:
    assert set(whatwhere.__all__) == {*whatwhere._WHERE, "jobs", "__version__"}
    assert dir(whatwhere) == sorted(whatwhere.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unet_learner'"):
        _ = whatwhere.unet_learner  # type: ignore[attr-defined]


def test_the_version_is_the_one_in_the_changelog() -> None:
    changelog = Path(__file__).parent.parent / "CHANGELOG.md"
    assert f"[{whatwhere.__version__}]" in changelog.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_wheel_carries_its_types(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(root)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "whatwhere" / "py.typed").exists()
    user = tmp_path / "user.py"
    user.write_text(
        "from whatwhere import build_model\nreveal_type(build_model('tutorial', 3))\n",
        encoding="utf-8",
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(user)]
    told = subprocess.run(
        mypy, capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={"MYPYPATH": str(site), "PATH": ""},
    )  # fmt: skip
    assert 'Revealed type is "torch.nn.modules.module.Module"' in told.stdout, told.stdout
