"""The house's arrows run one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "whatwhere"

LAYERS = {
    **dict.fromkeys(("errors", "_version"), 0),
    **dict.fromkeys(("types", "machine", "notation"), 1),
    **dict.fromkeys(("config", "tiling", "files", "talk", "borders", "grid", "symmetries"), 2),
    **dict.fromkeys(("io", "nn", "losses", "metrics"), 3),
    **dict.fromkeys(("data", "bundle"), 4),
    **dict.fromkeys(("train", "predict", "packages", "foreign"), 5),
    **dict.fromkeys(("evaluate", "nets", "pictures", "report"), 6),
    "runs": 7,
    "raster_function": 7,
    "export": 7,
    **dict.fromkeys(("training", "predicting", "chipping", "quantizing"), 8),
    "jobs": 9,
    **dict.fromkeys(("show", "environment", "face"), 10),
    **dict.fromkeys(("demo", "learn"), 11),
    "cli": 12,
    "__main__": 13,
}
# Where a library may be imported when the module is, not inside a function.
HOMES = {
    "torch": {
        *("nn", "losses", "nets", "train", "training"),
        *(f"data/{name}" for name in ("augment", "loader", "plan", "resident")),
    },
    "timm": set(),
    "lightning": {"train"},
    "matplotlib": set(),
    "PIL": {"io"},
    "tifffile": set(),
    "rasterio": {"io"},
    "pyogrio": {"io"},
    "shapely": {"io", "predict/polygons", "predict/outlines", "predict/rings"},
    "safetensors": set(),
    "onnx": set(),
    "onnxruntime": set(),
    "onnxscript": set(),
    "openvino": set(),
    "nncf": set(),
    "scipy": {"data/salt", "evaluate"},
    "typer": {"cli"},
    "rich": set(),
    "tomli_w": set(),
}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(tree: ast.AST) -> list[str]:
    """All modules that are imported, wherever in the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def at_module_level(tree: ast.Module) -> list[str]:
    """Modules that are imported as soon as the file is."""
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports(ast.Module(body=list(nodes), type_ignores=[]))


def arrows_up(source: str, name: str) -> list[str]:
    """What a room imports that is not below it."""
    room = name.split("/")[0]
    wrong = []
    for target in imports(ast.parse(source)):
        parts = target.split(".")
        if parts[0] != "whatwhere" or len(parts) < 2:
            continue
        other = parts[1]
        public = other not in LAYERS  # a name of the package itself, which knows all rooms
        if public or (other != room and LAYERS[other] >= LAYERS[room]):
            wrong.append(target)
    return wrong


def strangers(source: str, name: str) -> list[str]:
    """Heavy libraries that are imported where they have no home."""
    room = name.split("/")[0]
    found = []
    for target in at_module_level(ast.parse(source)):
        library = target.split(".")[0]
        if library in HOMES and not HOMES[library] & {room, name}:
            found.append(target)
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_imports_lower_layers_only(path: Path) -> None:
    assert arrows_up(path.read_text(encoding="utf-8"), name_of(path)) == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_libraries_are_imported_at_home_only(path: Path) -> None:
    assert strangers(path.read_text(encoding="utf-8"), name_of(path)) == []


def test_every_room_has_a_layer() -> None:
    rooms = {name_of(path).split("/")[0] for path in modules()}
    assert rooms == set(LAYERS)


def test_the_test_sees_an_arrow_that_runs_up() -> None:
    assert arrows_up("from whatwhere.train.fit import fit", "predict/engine")
    assert arrows_up("def f():\n    import whatwhere.cli", "jobs")
    assert not arrows_up("from whatwhere.predict.decide import decide", "predict/engine")
    assert strangers("import lightning.pytorch as pl", "jobs")
    assert not strangers("def f():\n    import torch", "jobs")


def test_packages_start_empty() -> None:
    inner = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert [path for path in inner if path.read_text(encoding="utf-8").strip()] == []


def loaded_after(code: str) -> set[str]:
    """The libraries that are in memory after some code ran in a fresh Python."""
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


HEAVY = {"numpy", "torch", "lightning", "timm", "matplotlib", "PIL", "scipy", "rasterio", "shapely"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import whatwhere; whatwhere.__version__") & HEAVY


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import contextlib, io\nfrom whatwhere.cli import app\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    app({words!r}, standalone_mode=False)"
    )
    assert not loaded_after(code) & HEAVY


def test_prediction_does_not_load_lightning() -> None:
    code = "import whatwhere.jobs, whatwhere.predict.backends, whatwhere.nn.build"
    assert "lightning" not in loaded_after(code)


def test_reading_and_deciding_do_not_load_torch() -> None:
    assert "torch" not in loaded_after("import whatwhere.jobs, whatwhere.predict.engine")
