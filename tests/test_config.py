"""The recipe: the tutorial's numbers, told apart from what cannot be followed."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from whatwhere.config import (
    Recipe,
    make_recipe,
    to_dict,
    to_toml,
)
from whatwhere.errors import UsageError


def test_the_defaults_are_the_tutorials() -> None:
    tutorial = {
        **{"model": "tutorial", "n_filters": 16, "dropout": 0.1, "batchnorm": True},
        **{"bn_momentum": 0.99, "kernel_size": 3, "upsample": "transposed"},
        **{"epochs": 50, "batch_size": 32},
        # Adam, ReduceLROnPlateau and EarlyStopping as Keras has them
        **{"lr": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
        **{"lr_factor": 0.1, "lr_patience": 5, "lr_min_delta": 1e-4, "min_lr": 1e-5},
        **{"stop_patience": 10, "stop_min_delta": 0.0, "seed": 42},
    }
    found = asdict(Recipe())
    assert {name: found[name] for name in tutorial} == tutorial
    assert make_recipe("tutorial") == make_recipe() == Recipe()


CHANGED = Recipe(
    model="unet2015",
    classes='0=background,255=sält "x"',
    bands="4,3,2",
    resize="128x96",
    split="80/20/0",
    lr=3e-5,
    min_lr=1e-7,
    augment=False,
    orientation="free",
    seed=2**32 - 1,
)


@pytest.mark.parametrize("recipe", [Recipe(), CHANGED])
def test_a_recipe_survives_its_toml(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "r.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert make_recipe(path) == make_recipe(str(path)) == recipe
    assert Recipe(**to_dict(recipe)) == recipe


def test_every_line_of_the_toml_is_explained() -> None:
    lines = to_toml(Recipe()).splitlines()[1:]
    assert len(lines) == len(fields(Recipe))
    assert all(len(line.split("  # ")[1]) > 5 for line in lines)


def test_settings_go_before_the_base_and_none_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("epochs = 7\nlr = 1\n")
    found = make_recipe(path, epochs=9, batch_size=None)
    assert (found.epochs, found.lr, found.batch_size) == (9, 1.0, 32)
    assert make_recipe(found, seed=1).epochs == 9 and found.seed == 42


@pytest.mark.parametrize(
    ("settings", "name", "text"),
    [
        ({"resize": 128}, "resize", "128"),
        ({"resize": [128, 96]}, "resize", "128x96"),
        ({"split": (70, 20, 10)}, "split", "70/20/10"),
        ({"bands": [4, 3, 2]}, "bands", "4,3,2"),
        ({"bands": 1}, "bands", "1"),
        ({"classes": ["rock", "salt"]}, "classes", "rock,salt"),
    ],
)
def test_numbers_and_lists_are_taken_as_their_text(
    settings: dict[str, Any], name: str, text: str
) -> None:
    assert getattr(make_recipe(**settings), name) == text


def test_the_model_gets_its_own_arguments_alone() -> None:
    assert make_recipe(n_filters=8, epochs=3).model_arguments == {
        **{"n_filters": 8, "dropout": 0.1, "batchnorm": True, "bn_momentum": 0.99},
        **{"kernel_size": 3, "upsample": "transposed"},
    }


def test_each_net_has_its_own_defaults_unless_they_are_given() -> None:
    assert make_recipe(model="unet2015").model_arguments == {"n_filters": 64, "dropout": 0.5}
    assert make_recipe(model="unet2015", n_filters=8).n_filters == 8
    found = make_recipe(
        model="resnet34", decoder_channels=(64, 32), backbone_args="drop_path_rate=0.1"
    ).model_arguments
    assert found == {
        **{"upsample": "nearest", "decoder_channels": (64, 32), "norm": "batch"},
        **{"activation": "relu", "dropout": 0.0, "anything": False},
        "backbone_args": {"drop_path_rate": 0.1},
    }


def test_a_recipe_for_another_net_keeps_what_both_have() -> None:
    base = make_recipe(model="tutorial", kernel_size=5, epochs=3)
    found = make_recipe(base, model="resnet34")
    assert (found.epochs, found.upsample, found.kernel_size) == (3, "nearest", 3)


def test_one_backbone_for_another_keeps_everything() -> None:
    base = make_recipe(model="resnet34", pretrained=False, norm="group", freeze_epochs=2)
    found = make_recipe(base, model="resnet50")
    assert (found.pretrained, found.norm, found.freeze_epochs) == (False, "group", 2)


def test_a_file_for_another_net_leaves_what_belongs_to_its_own(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "resnet34"\nupsample = "shuffle"\nepochs = 7\nloss = "dice"\n')
    found = make_recipe(path, model="unet2015")
    assert (found.n_filters, found.epochs, found.loss) == (64, 7, "dice")
    path.write_text(to_toml(make_recipe(epochs=4)), encoding="utf-8")
    assert make_recipe(path, model="resnet50").upsample == "nearest"
    path.write_text("weight_decay = 0.1\n")  # means something with what is given beside it
    assert make_recipe(path, optimizer="adamw").weight_decay == 0.1


def test_a_setting_that_the_net_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="kernel_size is not for resnet34"):
        make_recipe(model="resnet34", kernel_size=5)
    with pytest.raises(UsageError, match="anything is not for unet2015; encoder_lr is not for"):
        make_recipe(model="unet2015", anything=True, encoder_lr=0.1)
    with pytest.raises(UsageError, match="weight_decay is not for the optimizer adam; warmup is"):
        make_recipe(weight_decay=0.1, warmup=0.2)
    with pytest.raises(UsageError, match="lr_patience is not for the schedule cosine"):
        make_recipe(schedule="cosine", lr_patience=3)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no setting 'epoch', did you mean 'epochs'"):
        make_recipe(epoch=3)
    with pytest.raises(UsageError, match=r"there is no setting 'zzz'\.$"):
        make_recipe(zzz=3)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError, match="cannot be followed") as told:
        Recipe(
            epochs=0,
            dropout=1.0,
            lr=float("nan"),
            epsilon=float("inf"),
            kernel_size=4,
            upsample="cubic",
            orientation="down",
            resize="big",
            split="1/2",
            bands="0",
        )
    for part in (
        "epochs must be at least 1, not 0",
        "dropout must be at most 0.99, not 1.0",
        "lr must be a finite number, not nan",
        "epsilon must be a finite number, not inf",
        "kernel_size must be odd, not 4",
        "upsample must be one of transposed, nearest, bilinear, shuffle, not 'cubic'",
        "orientation must be one of auto, upright, free, not 'down'",
        "resize must be like 128 or 128x96",
        "split must be like 70/15/15, not '1/2'",
        "bands must be auto, grey, rgb or numbers from 1 like 4,3,2 or red=1,nir=4, not '0'",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2.5}, "epochs must be of type int, not 2.5"),
        ({"epochs": "3"}, "epochs must be of type int, not '3'"),
        ({"epochs": True}, "epochs must be of type int, not True"),
        ({"lr": True}, "lr must be of type float, not True"),
        ({"augment": 1}, "augment must be of type bool, not 1"),
        ({"model": 3}, "model must be of type str, not 3"),
        ({"resize": {"a": 1}}, "resize must be of type str"),
    ],
)
def test_values_of_another_type_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="the settings: " + message):
        make_recipe(**settings)


def test_an_unknown_recipe_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="no recipe 'tutorail'. Take tutorial or modern or timed, or a TOML"
    ):
        make_recipe("tutorail")
    with pytest.raises(UsageError, match=r"no\.toml: the recipe cannot be read: No such file"):
        make_recipe(tmp_path / "no.toml")
    with pytest.raises(UsageError, match="the recipe cannot be read: "):
        make_recipe(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"epochs = ", "this is not TOML"),
        (b"\xff", "this is not TOML"),
        (b"epochs = 3\nepochs = 4\n", "this is not TOML"),
        (b"epoch = 3\nlrr = 1\n", "no setting 'epoch', did you mean 'epochs'.; there is no .*'lr'"),
        (b"[train]\nepochs = 3\n", "there is no setting 'train'"),
        (b"epochs = 0\nseed = -1\n", "epochs must be at least 1, not 0; seed must be at least 0"),
        (b"lr = inf\n", "lr must be a finite number"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"r\.toml: .*{message}"):
        make_recipe(path)
