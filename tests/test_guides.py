"""The shorter guides of those who come from elsewhere: each block of code runs, as it stands or
with smaller numbers, and what is told of settings, nets and losses is so."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from told import call
from whatwhere.config import Recipe
from whatwhere.data.salt import make_section
from whatwhere.face.words import DATA_WORDS, MODEL_WORDS, SETTINGS
from whatwhere.learn import UnetClassifier, prepare_data
from whatwhere.nn.build import build_model, count_parameters, list_models
from whatwhere.notation import LOSSES

GUIDES = Path(__file__).parent.parent / "docs" / "how-to"

SMALLER = {
    '"resnet34", in_channels=4, n_classes=3, pretrained=True': '"test_resnet", in_channels=4, '
    "n_classes=3",
    '"resnet34", pretrained_backbone=True': '"test_resnet", pretrained_backbone=False, '
    'decoder_channels="8,8,4,4,4"',
    "fit(8,": "fit(1,",
    "n_filters=16,\n": "n_filters=2,\n",
    "epochs=50": "epochs=1",
    "resize=128": "resize=32",
    "--model resnet34": "--model test_resnet --no-pretrained --decoder-channels 8,8,4,4,4",
    "--epochs 20": "--epochs 1",
    "--resize 128": "--resize 32 --n-filters 2 --epochs 1",
}
"""What is done with less in a test."""


def text_of(guide: str) -> str:
    return (GUIDES / f"{guide}.md").read_text(encoding="utf-8")


def blocks(guide: str) -> list[tuple[str, str]]:
    """The blocks of code of a guide, with their languages."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text_of(guide), re.M | re.S)


def rows(guide: str) -> list[list[str]]:
    """The cells of all tables of a guide, heads left out."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text_of(guide), re.M):
        for line in table.splitlines()[2:]:
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


@pytest.fixture
def salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader types: `salt/` lies in it."""
    for index in range(12):
        section = make_section(5, index, (32, 32))
        for place, pixels in (("images", section.image), ("masks", section.mask)):
            path = tmp_path / "salt" / place / f"s{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", ["from-smp", "from-fastai", "from-keras"])
def test_each_block_of_code_runs(guide: str, salt: Path) -> None:
    names: dict[str, Any] = {}
    found = blocks(guide)
    used = set()
    for language, code in found:
        for usual, small in SMALLER.items():
            if usual in code:
                used.add(usual)
                code = code.replace(usual, small)
        if language == "python":
            exec(compile(code, guide, "exec"), names)
            continue
        assert language == "sh"
        for line in code.splitlines():
            program, *words = shlex.split(line, comments=True)
            done = call(*words)
            assert program == "whatwhere" and done.exit_code == 0, done.output
    assert found and used
    if guide == "from-smp":
        assert names["logits"].shape == (2, 3, 130, 75) and names["net"].head.weight.grad.any()
        assert len(list((salt / "masks").glob("*.png"))) == 12
    elif guide == "from-fastai":
        assert len(names["learn"].runs) == 2 and names["mask"].shape == (32, 32)
    else:
        assert (salt / "run" / "report.html").is_file() and names["run"].scores


# segmentation_models_pytorch


def test_the_net_has_as_many_parameters_as_is_told() -> None:
    told = re.search(r'`ww\.build_model\("resnet34"\)` ([\d,]+)', text_of("from-smp"))
    assert told
    net = build_model("resnet34")
    assert sum(p.numel() for p in net.parameters()) == int(told[1].replace(",", ""))
    widths = ast.literal_eval(re.findall(r"`decoder_channels=(\(.*?\))`", text_of("from-smp"))[0])
    assert [step.layers[0].out_channels for step in net.decoder] == list(widths)


def test_arguments_of_a_net_are_there() -> None:
    known = {"pretrained", "band_names", "in_channels", "n_classes", "backbone_args"}
    known |= set(inspect.signature(build_model("resnet10t").__init__).parameters)
    table = {theirs: ours for theirs, ours, *_ in rows("from-smp") if theirs.startswith("`")}
    for theirs in ("encoder_depth", "in_channels", "classes", "aux_params"):
        (ours,) = (cell for name, cell in table.items() if theirs in name)
        named = re.findall(r"`(\w+)", ours)
        assert named and set(named) <= known, theirs
    fewer = build_model("resnet10t", backbone_args={"out_indices": (0, 1, 2, 3)})
    assert len(fewer.encoder.levels) == 4


def test_encoders_have_the_names_that_are_told() -> None:
    text = text_of("from-smp")
    table = text[text.index("## Names of encoders") : text.index("`whatwhere models")]
    names = [name for line in table.splitlines() for name in cells(line)[-1:]]
    told = [name for cell in names for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(told) > 8 and all(list_models(name) for name in told if name != "NAME")


def cells(line: str) -> list[str]:
    return line.strip("|").split(" | ") if line.startswith("| ") else []


def test_losses_have_the_names_that_are_told() -> None:
    text = text_of("from-smp")
    table = text[text.index("| `smp.losses`") : text.index("| `mode=")]
    told = {
        name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", cells(line)[1])
    }
    assert told == {"dice", "lovasz", "tversky", "focal", "cross_entropy"} <= set(LOSSES)


# fastai


def test_every_keyword_is_one() -> None:
    known = {*SETTINGS, *DATA_WORDS, *MODEL_WORDS}
    for one in (prepare_data, UnetClassifier.__init__, UnetClassifier.fit, UnetClassifier.predict):
        known |= set(inspect.signature(one).parameters)
    for theirs, ours in rows("from-fastai"):
        for name in re.findall(r"(\w+)=", " ".join(re.findall(r"`([^`]*)`", ours))):
            assert name in known, theirs
        for name in re.findall(r"`(\w+)\(", ours):
            assert hasattr(UnetClassifier, name) or name in ("prepare_data", "UnetClassifier")
    assert UnetClassifier(None, "tutorial").recipe.warmup == Recipe().warmup == 0.1


# The Keras tutorial


def test_the_numbers_are_those_of_the_recipe() -> None:
    found = {}
    for _, ours, _ in rows("from-keras"):
        for name, value in re.findall(r"`(\w+) = ([^`]+)`", ours):
            found[name] = ast.literal_eval(value.replace("true", "True"))
    assert len(found) > 18
    usual = Recipe()
    assert found == {name: getattr(usual, name) for name in found}
    text = text_of("from-keras")
    parameters = count_parameters(build_model("tutorial"))
    assert f"{parameters.total:,} numbers, of which {parameters.trainable:,} learn" in text
