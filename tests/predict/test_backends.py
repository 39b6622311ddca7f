"""A bundle is asked what it answered when it was saved; an encoder of one's own is passed again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from made_maps import make_pixels, make_predictor, save_bundle
from own_nets import Chain
from whatwhere import bundle
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, UsageError
from whatwhere.nn.build import build_model
from whatwhere.predict import backends
from whatwhere.predict.backends import TorchBackend, check_answers, note_answers
from whatwhere.predict.engine import Predictor, load
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization


def card(model: str, **changes: Any) -> Card:
    whole = Card(
        model=model, arguments={}, parameters=1, bands=Bands(("grey",)), pixel_size=None,
        classes=Classes((ClassInfo("a", 1, (0, 0, 0), raw=(1,)),), "multilabel"),
        normalization=Normalization((0.0,), (1.0,)), resize=None, chip_size=(32, 32),
        orientation="upright", geometry=Geometry(16, 122), thresholds=(0.5,), scores={},
        objects={}, self_test={}, tuning={}, recipe={}, data={}, versions={"torch": "2.99"},
        created="",
    )  # fmt: skip
    return whole.replace(**changes)


def net_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("tutorial", 1, 1, n_filters=1)


def saved(folder: Path, weights_seed: int = 1, **changes: Any) -> Path:
    """A bundle of seed 1's card with weights of a seed."""
    asked = card("tutorial", arguments={"n_filters": 1})
    test = note_answers(TorchBackend(net_of(1), "multilabel"), asked)
    weights = {key: tensor.numpy() for key, tensor in net_of(weights_seed).state_dict().items()}
    bundle.save(folder, asked.replace(self_test={**test, **changes}), weights)
    return folder


def test_what_a_net_answers_to_noise_is_noted() -> None:
    net = net_of(1).eval()
    asked = card("tutorial")
    found = note_answers(TorchBackend(net, "multilabel"), asked)
    noise = np.random.Generator(np.random.Philox(key=[0, 5])).standard_normal((1, 1, 32, 32))
    with torch.no_grad():
        answer = net(torch.from_numpy(noise.astype(np.float32))).sigmoid().numpy()
    assert found["mean"] == pytest.approx(float(answer.mean()), abs=1e-6)
    assert found["values"][0] == pytest.approx(float(answer[0, 0, 0, 0]), abs=1e-6)
    assert found["values"][-1] == pytest.approx(float(answer[0, 0, -1, -1]), abs=1e-6)
    assert len(found["values"]) == 16 and found["side"] == 32


def test_a_net_that_answers_as_it_did_is_loaded(tmp_path: Path) -> None:
    assert isinstance(load(saved(tmp_path / "bundle"), device="cpu"), Predictor)


def test_weights_that_are_whole_but_anothers_are_found(tmp_path: Path) -> None:
    """Their hash is right and they fit: only the answers tell."""
    message = r"does not answer as it did when it was saved \(off by .*saved with torch 2\.99"
    with pytest.raises(BundleError, match=message):
        load(saved(tmp_path / "bundle", weights_seed=2), device="cpu")


def test_a_single_changed_weight_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bundle")
    found = bundle.load(folder)
    weights = {name: np.array(tensor) for name, tensor in found.weights.items()}
    weights["head.bias"] += 0.1
    bundle.save(folder, found.card, weights)
    with pytest.raises(BundleError, match="does not answer as it did"):
        load(folder, device="cpu")


def test_no_card_can_allow_everything(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bundle", weights_seed=2, tolerance=1e9)
    found = bundle.load(folder)
    weights = {name: np.array(tensor) for name, tensor in found.weights.items()}
    weights["head.bias"] += 9
    bundle.save(folder, found.card, weights)
    with pytest.raises(BundleError, match=r"0\.1 is allowed"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"values": "x"},
        {"values": [0.5]},
        {"values": [0.5] * 15 + ["x"]},
        {"mean": {}},
        {"seed": 3},
        {"side": 64},
        {"tolerance": "a"},
    ],
)
def test_a_self_test_that_cannot_be_read_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="the card's self-test cannot be read: "):
        load(saved(tmp_path / "bundle", **changes), device="cpu")


@pytest.mark.parametrize("name", ["seed", "side", "values", "mean", "tolerance"])
def test_a_self_test_that_lacks_a_line_is_told(name: str) -> None:
    backend = TorchBackend(net_of(1), "multilabel")
    asked = card("tutorial")
    test = note_answers(backend, asked)
    check_answers(backend, asked.replace(self_test=test))
    del test[name]
    with pytest.raises(BundleError, match=rf"self-test cannot be read: KeyError\('{name}'\)"):
        check_answers(backend, asked.replace(self_test=test))


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_tolerance_that_is_none_allows_nothing(value: float) -> None:
    backend = TorchBackend(net_of(1), "multilabel")
    asked = card("tutorial")
    test = {**note_answers(backend, asked), "tolerance": value}
    with pytest.raises(BundleError, match="does not answer as it did"):
        check_answers(backend, asked.replace(self_test=test))


def test_an_encoder_of_ones_own_is_passed_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_model(Chain(1, (3, 4)), 1, 1)
    asked = card("own:Chain", geometry=Geometry(4, 12))
    asked = asked.replace(self_test=note_answers(TorchBackend(net, "multilabel"), asked))
    weights = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    bundle.save(tmp_path / "bundle", asked, weights)
    with pytest.raises(BundleError, match=r"encoder of its own, Chain\. Pass it: whatwhere\.load"):
        load(tmp_path, device="cpu")
    with pytest.raises(BundleError, match="the weights do not fit the net"):
        load(tmp_path, device="cpu", encoder=Chain(1, (3, 5)))
    image = np.random.default_rng(0).normal(size=(1, 21, 34)).astype(np.float32)
    with torch.no_grad():
        wanted = net.eval()(torch.from_numpy(image[None]))[0].sigmoid().numpy()
    found = load(tmp_path, device="cpu", encoder=Chain(1, (3, 4)))
    assert np.array_equal(found.probabilities(image), wanted)


# --- PyTorch in bfloat16, and compiled ----------------------------------------------------------


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "bundle", make_predictor("tutorial", seed=4))


def test_bfloat16_is_near_and_is_not_the_same(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_pixels(70, 90)
    exact = load(bundle_folder, device="cpu").probabilities(image)
    monkeypatch.setattr(backends, "has_bf16", lambda _device: True)
    net = load(bundle_folder, device="cpu", backend="torch-bf16")
    near = net.probabilities(image)
    assert net.engines == ("torch-bf16",) and near.dtype == np.float32
    assert 1e-5 < np.abs(near - exact).max() < 0.03


def test_bfloat16_is_refused_where_it_would_be_slower(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    with pytest.raises(UsageError, match="--backend torch-bf16: this is for CUDA .* not for cpu"):
        load(bundle_folder, device="cpu", backend="torch-bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert load(bundle_folder, device="cpu", backend="torch-bf16").engines == ("torch-bf16",)


def test_a_map_that_goes_on_keeps_its_precision(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "has_bf16", lambda _device: True)
    net = load(bundle_folder, device="cpu", backend="torch-bf16")
    with pytest.raises(UsageError, match=r"begun with torch-bf16, and there is only torch here"):
        load(bundle_folder, device="cpu").take("torch-bf16")
    net.take("torch-bf16")


def test_a_compiler_that_fails_is_told(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_graph: Any, **_options: Any) -> None:
        raise RuntimeError("no compiler was found\nand much more")

    monkeypatch.setattr(nn.Module, "compile", lambda net: setattr(net, "forward", broken))
    told = r"--backend torch-compiled: PyTorch's compiler cannot .* \(no compiler was found\)"
    with pytest.raises(UsageError, match=told):
        load(bundle_folder, device="cpu", backend="torch-compiled")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_what_is_compiled_answers_as_the_net_does(bundle_folder: Path) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    net = load(bundle_folder, device="cpu", backend="torch-compiled")
    assert counters["stats"]["unique_graphs"]
    usual = load(bundle_folder, device="cpu")
    for size in ((64, 64), (70, 90), (200, 33)):
        image = make_pixels(*size)
        found, expected = net.probabilities(image), usual.probabilities(image)
        np.testing.assert_allclose(found, expected, atol=1e-5)
