"""What a training starts from: an encoder of one's own, another run, a file of weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from made import blocks_folder, salt_folder
from own_nets import Chain
from whatwhere import jobs
from whatwhere.bundle import load as load_bundle
from whatwhere.errors import BundleError, UsageError
from whatwhere.predict.engine import load
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)
TINY: dict[str, Any] = {"epochs": 1, "batch_size": 4, "talk": QUIET, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("salt"), count=10, size=(32, 32))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    jobs.train(data, path, n_filters=2, **TINY)
    return path


def weights(path: Path) -> dict[str, Any]:
    return {name: np.array(tensor) for name, tensor in load_bundle(path).weights.items()}


def learned(names: Any) -> list[str]:
    return [name for name in names if not name.endswith(("_mean", "_var", "_tracked"))]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# ---------------------------------------------------------------- an encoder of one's own


def test_a_net_on_an_encoder_of_ones_own_is_trained_and_loaded(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Chain(1, (4, 6))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    jobs.train(data, tmp_path / "run", encoder=encoder, **TINY)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    found = load_bundle(tmp_path / "run")
    assert found.card.model == "own:Chain" and found.card.geometry.stride == 4
    with pytest.raises(BundleError, match=r"encoder of its own, Chain"):
        load(tmp_path / "run")
    predictor = load(tmp_path / "run", encoder=Chain(1, (4, 6)))
    state = predictor.net.state_dict()
    assert all(np.array_equal(state[name].numpy(), t) for name, t in found.weights.items())
    assert predictor.probabilities(np.zeros((1, 9, 40), np.uint8)).shape == (1, 9, 40)
    trained = found.weights["encoder.body.convs.0.weight"]
    assert not np.array_equal(trained, before["convs.0.weight"].numpy())
    with pytest.raises(BundleError, match=r"encoder of its own, Chain"):
        jobs.evaluate(tmp_path / "run", data, talk=QUIET)
    own: dict[str, Any] = {"encoder": Chain(1, (4, 6)), "talk": QUIET}
    jobs.tune(tmp_path / "run", data, **own)
    assert jobs.evaluate(tmp_path / "run", data, **own)["images"] > 0
    assert jobs.predict(tmp_path / "run", data, tmp_path / "out", **own)


def test_an_own_encoder_brings_its_weights_itself(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="an encoder of your own brings its weights itself"):
        jobs.train(
            data, tmp_path / "run", encoder=Chain(1, (4, 6)), pretrained_path=str(file), **TINY
        )


def test_loading_leaves_the_users_module_alone(data: Path, tmp_path: Path) -> None:
    encoder = Chain(1, (4, 6))
    jobs.train(data, tmp_path / "run", encoder=encoder, **TINY)
    mine = Chain(1, (4, 6))
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    load(tmp_path / "run", encoder=mine)
    assert mine.training
    assert all(torch.equal(before[name], tensor) for name, tensor in mine.state_dict().items())


def test_an_own_encoder_that_is_named_alone_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder of your own is passed in Python: encoder="):
        jobs.train(data, tmp_path / "run", model="own:Chain", **TINY)


# ---------------------------------------------------------------- another run


def test_the_same_task_goes_on_where_the_run_ended(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate next to nothing the weights stay what they were."""
    quick = {**TINY, "talk": Talk()}
    jobs.train(data, tmp_path / "more", pretrained_path=str(run), lr=1e-12, weight_decay=0, **quick)
    told = said(capsys)
    old, new = weights(run), weights(tmp_path / "more")
    assert f"start    from {run}: {len(old)} arrays were kept" in told
    assert "start anew" not in told and "in the bundle" not in told
    for name in learned(old):
        np.testing.assert_allclose(new[name], old[name], rtol=0, atol=1e-6, err_msg=name)
    with open(tmp_path / "more" / "log.csv", encoding="utf-8", newline="") as stream:
        assert float(next(csv.DictReader(stream))["val_loss"]) > 0
    assert load_bundle(tmp_path / "more").card.arguments["n_filters"] == 2  # the run's own


def test_other_classes_get_a_fresh_head_and_it_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = blocks_folder(tmp_path / "blocks", [(32, 32)] * 8)
    quick = {**TINY, "talk": Talk()}
    out = tmp_path / "more"
    jobs.train(other, out, pretrained_path=str(run), lr=1e-12, weight_decay=0, **quick)
    told = said(capsys)
    assert "head.weight, head.bias start anew" in told
    assert "in the bundle" in told and "classes" in told and "bands " not in told
    old, new = weights(run), weights(out)
    assert new["head.weight"].shape[0] == 3
    for name in learned(old):
        if not name.startswith("head"):
            np.testing.assert_allclose(new[name], old[name], rtol=0, atol=1e-6, err_msg=name)


def test_other_bands_get_fitted_filters_and_it_is_said(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {**TINY, "talk": Talk(), "bands": "rgb"}
    out = tmp_path / "more"
    jobs.train(data, out, pretrained_path=str(run), lr=1e-12, weight_decay=0, **quick)
    told = said(capsys)
    assert "c1.layers.0.weight was fitted to the bands" in told
    assert "grey" in told and "red, green, blue" in told
    old, new = weights(run)["c1.layers.0.weight"], weights(out)["c1.layers.0.weight"]
    np.testing.assert_allclose(new, np.repeat(old, 3, axis=1) / 3, rtol=0, atol=1e-6)


def test_another_architecture_is_refused_with_a_table(
    data: Path, run: Path, tmp_path: Path
) -> None:
    table = r"does not go with this recipe:\n +in the bundle +wanted *\n +model +tutorial +unet2015"
    with pytest.raises(UsageError, match=table):
        jobs.train(data, tmp_path / "a", model="unet2015", pretrained_path=str(run), **TINY)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match=r"does not go with(.|\n)*n_filters +2 +3"):
        jobs.train(data, tmp_path / "b", n_filters=3, pretrained_path=str(run), **TINY)


def test_a_run_that_is_not_there_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="empty: there is no bundle in it"):
        jobs.train(data, tmp_path / "a", pretrained_path=str(tmp_path / "empty"), **TINY)


def test_the_rate_finder_starts_from_a_run_too(data: Path, run: Path) -> None:
    """The run gives the net: of 2 filters, where the recipe says 16."""
    found = jobs.lr_find(data, pretrained_path=str(run), batch_size=4, talk=QUIET)
    assert 1e-7 < found["suggestion"] < 1
    card = str(run / "bundle" / "bundle.json")
    assert jobs.lr_find(data, pretrained_path=card, batch_size=4, talk=QUIET) == found


# ---------------------------------------------------------------- a file of weights


def test_a_backbone_starts_from_a_file(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    jobs.train(
        data, tmp_path / "run", model="test_resnet", pretrained_path=path,
        lr=1e-12, weight_decay=0, upsample="nearest", **TINY,
    )  # fmt: skip
    found = weights(tmp_path / "run")
    first = state["conv1.0.weight"].numpy().sum(axis=1, keepdims=True)  # one band
    np.testing.assert_allclose(found["encoder.body.conv1.0.weight"], first, rtol=0, atol=1e-5)
    later = "layer2.0.conv1.weight"
    np.testing.assert_allclose(found[f"encoder.body.{later}"], state[later].numpy(), atol=1e-6)


def test_a_file_is_for_backbones(data: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="for a backbone, and tutorial has none. Give a run or"):
        jobs.train(data, tmp_path / "a", pretrained_path=path, **TINY)
