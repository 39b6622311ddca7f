"""Pretrained weights: from a file, from the hub's cache, for any bands, or told to be missing."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from whatwhere.errors import UsageError
from whatwhere.nn.build import build_model
from whatwhere.nn.pretrained import adapt_filters, fetch_weights, has_weights, make_encoder

LITE = "tf_efficientnet_lite0"


@pytest.fixture
def lite(real_weights: Callable[[str], Path]) -> Path:
    return real_weights(f"{LITE}.safetensors")


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    """Weights as timm would offer them, classifier and all."""
    torch.manual_seed(9)
    net = timm.create_model("test_resnet")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


# ---------------------------------------------------------------- filters

FILTERS = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
R, G, B = (FILTERS.numpy()[:, i] for i in range(3))
MEAN = (R + G + B) / 3


@pytest.mark.parametrize(
    ("bands", "names", "planes"),
    [
        (1, ("grey",), [MEAN]),
        (1, (), [MEAN]),
        (3, ("red", "green", "blue"), [R, G, B]),
        (3, ("blue", "green", "red"), [B, G, R]),
        (4, ("nir", "Red", "GREEN", "blue"), [MEAN, R, G, B]),
        (2, ("green", "swir"), [G, MEAN]),
        (1, ("red",), [R]),
        (2, (), [R, G]),
        (5, (), [R, G, B, MEAN, MEAN]),
        (4, ("band 1", "band 2", "band 3", "band 4"), [R, G, B, MEAN]),
        (3, ("x", "y", "z"), [R, G, B]),
    ],
)
def test_filters_go_to_the_bands_of_their_name_or_place(
    bands: int, names: tuple[str, ...], planes: list[NDArray[Any]]
) -> None:
    found = adapt_filters(FILTERS, bands, names).numpy()
    wanted = np.stack(planes, axis=1) * np.float32(3 / bands)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_one_band_gets_the_sum_of_the_three() -> None:
    found = adapt_filters(FILTERS, 1, ("grey",)).numpy()
    np.testing.assert_allclose(found[:, 0], R + G + B, atol=1e-6)


@pytest.mark.parametrize("names", [("blue", "red", "green"), ("nir", "red", "green", "blue", "x")])
def test_equal_bands_are_answered_as_by_three(names: tuple[str, ...]) -> None:
    """Where each of the three has its filter; the means make up for the others."""
    found = adapt_filters(FILTERS, len(names), names).numpy().sum(axis=1)
    np.testing.assert_allclose(found, R + G + B, atol=1e-5)


# ---------------------------------------------------------------- a file


@pytest.mark.parametrize(
    ("bands", "names"),
    [(3, ("red", "green", "blue")), (1, ("grey",)), (4, ("blue", "green", "red", "nir"))],
)
def test_real_weights_are_loaded_for_any_bands(
    lite: Path, bands: int, names: tuple[str, ...]
) -> None:
    encoder = make_encoder(LITE, bands, pretrained=lite, band_names=names)
    raw = load_file(lite)
    first = raw["conv_stem.weight"]
    wanted = {
        1: first.sum(axis=1, keepdims=True),
        3: first,
        4: np.concatenate([first[:, ::-1], first.mean(axis=1, keepdims=True)], axis=1) * 3 / 4,
    }[bands]
    state = {key: tensor.numpy() for key, tensor in encoder.body.state_dict().items()}
    np.testing.assert_allclose(state.pop("conv_stem.weight"), wanted, rtol=1e-5, atol=1e-7)
    compared = [key for key in state if key in raw]
    assert len(compared) > 200
    assert all(np.array_equal(state[key], raw[key]) for key in compared)
    left = {key for key in state if key not in raw}
    assert all(key.endswith("num_batches_tracked") for key in left)


def test_features_are_those_of_timms_own_model(lite: Path) -> None:
    encoder = make_encoder(LITE, 3, pretrained=lite).eval()
    theirs = timm.create_model(
        LITE, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(lite)}
    ).eval()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, wanted in zip(encoder(image), theirs(image), strict=True):
            assert torch.equal(ours, wanted)
            assert wanted.std() > 0.01


def test_a_file_of_ones_own_is_loaded_and_the_decoder_is_drawn(own_file: Path) -> None:
    torch.manual_seed(1)
    net = build_model("test_resnet", 3, pretrained=own_file)
    raw = load_file(own_file)
    for key, tensor in net.encoder.body.state_dict().items():
        assert np.array_equal(tensor.numpy(), raw[key]), key


def test_bands_in_another_order_get_their_own_filters(own_file: Path) -> None:
    names = ("blue", "green", "red")
    net = build_model("test_resnet", 3, pretrained=own_file, band_names=names)
    first = load_file(own_file)["conv1.0.weight"]
    found = net.encoder.body.state_dict()["conv1.0.weight"].numpy()
    np.testing.assert_allclose(found, first[:, ::-1], rtol=1e-6)


@pytest.mark.parametrize("name", ["w.pth", "w.PT", "w.pkl", "w.bin", "w.ckpt", "w.npz", "w.h5"])
def test_files_that_could_run_code_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(UsageError, match=rf"{name}: files of this kind can run code.*safetensors"):
        build_model("test_resnet", 3, pretrained=tmp_path / name)


def test_a_missing_file_and_another_kind_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.safetensors: there is no such file of weights"):
        build_model("test_resnet", 3, pretrained=tmp_path / "no.safetensors")
    (tmp_path / "w.txt").write_text("x")
    with pytest.raises(UsageError, match=r"w\.txt: weights are read from \.safetensors files"):
        build_model("test_resnet", 3, pretrained=str(tmp_path / "w.txt"))


def test_a_file_that_is_none_of_safetensors_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no header")
    with pytest.raises(UsageError, match=r"w\.safetensors: these weights do not fit test_resnet: "):
        build_model("test_resnet", 3, pretrained=tmp_path / "w.safetensors")


def test_weights_of_another_net_are_told(own_file: Path) -> None:
    message = r"weights\.safetensors: these weights do not fit test_efficientnet: .*state_dict"
    with pytest.raises(UsageError, match=message):
        build_model("test_efficientnet", 3, pretrained=own_file)


def test_filters_that_cannot_be_fitted_are_told(tmp_path: Path) -> None:
    """A stem that deals pixels out into channels has no filters over the bands."""
    torch.manual_seed(0)
    name = "tresnet_m"
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    message = f"first filters of {name} cannot be fitted to 1 bands.*--no-pretrained"
    with pytest.raises(UsageError, match=message):
        build_model(name, 1, pretrained=tmp_path / "w.safetensors")


def test_filters_of_several_stems_are_all_fitted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("crossvit_tiny_240").state_dict(), tmp_path / "w.safetensors")
    encoder = make_encoder("crossvit_tiny_240", 1, pretrained=tmp_path / "w.safetensors")
    raw = load_file(tmp_path / "w.safetensors")
    for number in (0, 1):
        key = f"patch_embed.{number}.proj.weight"
        found = encoder.body.state_dict()[f"model.{key}"].numpy()
        np.testing.assert_allclose(found, raw[key].sum(axis=1, keepdims=True), atol=1e-6)


# ---------------------------------------------------------------- the hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache; returns its folder."""

    def refuse(*_args: Any, **_more: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_that_cannot_be_reached_is_told_and_nothing_is_random(offline: Path) -> None:
    message = (
        r"weights of resnet18 cannot be fetched from http\S+ \(Network is unreachable\)\. .*"
        r"--no-pretrained.*--pretrained-path FILE"
    )
    with pytest.raises(UsageError, match=message):
        build_model("resnet18", 3, pretrained=True)


def test_what_lies_in_the_cache_is_taken_without_the_hub(offline: Path, own_file: Path) -> None:
    config = timm.get_pretrained_cfg("test_resnet")
    folder = offline / f"models--{config.hf_hub_id.replace('/', '--')}"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    (folder / "snapshots" / "1" / "model.safetensors").write_bytes(own_file.read_bytes())
    net = build_model("test_resnet", 3, pretrained=True)
    raw = load_file(own_file)
    for key, tensor in net.encoder.body.state_dict().items():
        assert np.array_equal(tensor.numpy(), raw[key]), key


def test_a_backbone_without_weights_on_the_hub_is_told(offline: Path) -> None:
    message = r"no pretrained weights for convnext_atto_rms on the hub\. Train without.*FILE\)"
    assert not has_weights("convnext_atto_rms")
    with pytest.raises(UsageError, match=message):
        fetch_weights("convnext_atto_rms")


def test_a_tag_that_is_not_there_names_those_that_are(offline: Path) -> None:
    with pytest.raises(UsageError, match=r"no weights of the name 'x'. There are: resnet18\.a1_in"):
        build_model("resnet18.x", 3)
    with pytest.raises(UsageError, match=r"convnext_atto_rms has no weights of .* It has none"):
        build_model("convnext_atto_rms.x", 3)
    assert not has_weights("resnet18.x")
    with pytest.raises(UsageError, match=r"weights for resnet18.x on the hub. There are: resnet18"):
        fetch_weights("resnet18.x")


def test_whether_there_are_weights_is_known_without_the_hub(offline: Path) -> None:
    assert has_weights("resnet34") and has_weights("resnet34.a1_in1k")


# ---------------------------------------------------------------- what cannot be built


def test_arguments_that_timm_does_not_know_are_told() -> None:
    with pytest.raises(UsageError, match="test_resnet cannot be built so: .*'colour'"):
        build_model("test_resnet", 3, colour="red")


def test_timms_own_arguments_reach_the_backbone() -> None:
    net = build_model("test_resnet", 3, output_stride=8)
    assert [level.reduction for level in net.encoder.levels] == [2, 4, 8]


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet43'. Did you mean resnet"):
        build_model("resnet43")
