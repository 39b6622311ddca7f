"""The command line: what it prints, its exit codes, and that no trace is ever shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made import salt_folder, snapshot, write_pair
from told import RUNNER, assert_told, call
from whatwhere import __version__, cli


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("salt"), 12, (32, 32))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    done = call("train", data, "-o", path, "--epochs", 1, "--n-filters", 2, "--batch-size", 4)
    assert_told(done, 0, "rehearsal passed", r"epoch\s+1/1", "next: whatwhere tune")
    return path


def test_version_and_help() -> None:
    assert call("--version").output.strip() == f"whatwhere {__version__}"
    helped = call("--help").output
    names = ("demo", "inspect", "train", "lr-find", "evaluate", "tune", "predict", "models", "env")
    for name in names:
        assert re.search(rf"^\s+{name}\s", helped, re.MULTILINE), name


def test_every_setting_of_the_recipe_is_a_flag() -> None:
    import dataclasses

    from whatwhere.config import Recipe

    helped = RUNNER.invoke(cli.app, ["train", "--help"], env={"COLUMNS": "200"}).output
    for item in dataclasses.fields(Recipe):
        assert "--" + item.name.replace("_", "-") in helped


def test_inspect_tells_and_its_json_is_one_object(data: Path) -> None:
    assert_told(call("inspect", data), 0, "12 pairs", "foreground", "0 errors")
    found = json.loads(call("inspect", data, "--json").stdout)
    assert found["pairs"] == 12
    assert [problem["severity"] for problem in found["problems"]] == ["note"]  # empty masks


def test_inspect_exits_3_for_errors_alone(tmp_path: Path) -> None:
    folder = salt_folder(tmp_path / "data", 4, (32, 32))
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(folder / "masks" / "s01.png")
    assert_told(call("inspect", folder), 3, r"✗ error.*s01.png: the mask has 5×5 px", "1 error,")
    (folder / "masks" / "s01.png").unlink()
    (folder / "images" / "s01.png").unlink()
    (folder / "images" / "notes.txt").write_text("hello", encoding="utf-8")
    assert_told(call("inspect", folder), 0, "0 errors, 0 warnings, 1 note$")


def test_lr_find_prints_the_flag_to_copy(data: Path, tmp_path: Path) -> None:
    words = ("lr-find", data, "--n-filters", 2, "--batch-size", 4)
    found = json.loads(call(*words, "--json", "-o", tmp_path / "lr.png").stdout)
    assert found["lrs"][0] < found["suggestion"] < found["lrs"][-1]
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.format == "PNG"
    flag = f"{found['suggestion']:.2g}"
    assert_told(call(*words), 0, f"whatwhere train .* -o RUN --lr {re.escape(flag)}$")
    assert_told(call(*words, "-o", tmp_path / "lr.jpg"), 2, "let its name end in .png")
    assert_told(call(*words, "--precision", "16", "--device", "cpu"), 2, "Take bf16 or 32")


def test_tune_evaluate_predict_in_json(run: Path, data: Path, tmp_path: Path) -> None:
    tuned = json.loads(call("tune", run, data, "--json").stdout)
    assert 0 <= tuned["labels"]["foreground"]["threshold"] <= 1
    scores = json.loads(call("evaluate", run, data, "--json").stdout)
    assert scores["threshold"] == tuned["labels"]["foreground"]["threshold"]
    done = call("predict", run, data / "images" / "s00.png", "-o", tmp_path / "m.png", "--json")
    assert json.loads(done.stdout)["images"][0]["files"] == [str(tmp_path / "m.png")]
    assert_told(call("evaluate", run, data), 0, "mean IoU", "background")
    assert_told(call("tune", run, data), 0, "at 0.5")
    assert_told(call("predict", run, data, "-o", tmp_path / "out"), 0, "12 images segmented")


def test_models_prints_the_stages() -> None:
    told = call("models", "tutorial", "--shapes").output
    assert "2,164,305" in told
    assert "2,161,361" in told
    assert re.search(r"c5\s+8×8×256", told)
    assert re.search(r"head\s+128×128×1", told)
    rgb = json.loads(call("models", "tutorial", "--in-channels", 3, "--json").stdout)
    assert (rgb[0]["parameters"], rgb[0]["trainable"]) == (2_164_593, 2_161_649)
    assert_told(call("models", "qq*"), 2, "no model matches 'qq\\*'. Try 'resnet\\*'")


def test_env_is_worth_a_bug_report() -> None:
    found = json.loads(call("env", "--json").stdout)
    assert found["whatwhere"] == __version__
    assert found["libraries"]["torch"]
    assert_told(call("env"), 0, "processors", "torch")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, not 0"),
        (["--model", "resnet"], "there is no model 'resnet'. Did you mean resnet"),
        (["--upsample", "cubic", "--dropout", "2"], "dropout must be at most 0.99.*upsample must"),
        (["--resize", "big"], "resize must be like 128 or 128x96"),
        (["--split", "100/0/0"], "split needs pairs to train on and to validate on"),
        (["--kernel-size", "4"], "kernel_size must be odd, not 4"),
        (["--recipe", "nowhere.toml"], "nowhere.toml: the recipe cannot be read"),
        (["--recipe", "turtorial"], "there is no recipe 'turtorial'"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda, mps, not 'tpu'"),
        (["--classes", "a,b,c"], "2 different names are needed"),
        (["--lr", "fast"], "Invalid value for '--lr'"),
        (["--precision", "16", "--device", "cpu"], "--precision 16 is not for the processor"),
        (["--class-weights", "1,2,3"], "3 numbers for 2 classes.*background, foreground, in this"),
    ],
)
def test_wrong_settings_exit_2_and_write_nothing(
    words: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    assert_told(call("train", data, "-o", tmp_path / "run", *words), 2, message)
    assert not (tmp_path / "run").exists()


def test_unusable_data_exits_3(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_told(call("train", tmp_path / "none", "-o", out), 3, "none: there is no such folder")
    (tmp_path / "empty").mkdir()
    assert_told(call("train", tmp_path / "empty", "-o", out), 3, "there is no images/ in it")
    one = tmp_path / "one"
    write_pair(one, "a", np.zeros((9, 9), np.uint8), np.eye(9, dtype=np.uint8))
    assert_told(call("train", one, "-o", out), 3, "there is 1 different image: at least 2")
    colors = tmp_path / "colors"
    rng = np.random.default_rng(0)
    for name in "abcd":
        picture = rng.integers(0, 255, (9, 9), dtype=np.uint8)
        mask = np.zeros((9, 9, 3), np.uint8)
        mask[:4] = (255, 0, 0)
        write_pair(colors, name, picture, mask)
    assert_told(call("train", colors, "-o", out), 3, "--classes", "#ff0000=NAME")
    assert not out.exists()


def test_a_damaged_bundle_exits_4(run: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (weights,) = (copy / "bundle").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert_told(call("predict", copy, data, "-o", tmp_path / "out"), 4, "the weights are damaged")
    assert not (tmp_path / "out").exists()
    assert_told(call("evaluate", tmp_path / "m.pth", data), 4, "can run code when they are opened")


def test_an_output_that_cannot_be_made_exits_5(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first", encoding="utf-8")
    done = call("predict", run, data, "-o", tmp_path / "file" / "out")
    assert_told(done, 5, "cannot make this folder")
    assert_told(call("train", data, "-o", tmp_path / "file" / "run"), 5, "cannot make this folder")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "here first"


def test_a_run_is_never_overwritten(run: Path, data: Path) -> None:
    before = snapshot(run)
    assert_told(call("train", data, "-o", run), 2, "a run is in this folder")
    assert snapshot(run) == before


def test_debug_shows_where_an_error_arose(tmp_path: Path) -> None:
    done = call("inspect", tmp_path / "none", "--debug")
    assert done.exit_code == 3
    assert "Traceback" in done.stderr
    assert "errors.DataError" in done.stderr


def test_full_memory_exits_5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from whatwhere import jobs

    def greedy(*_args: object, **_named: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 EB")

    monkeypatch.setattr(jobs, "inspect", greedy)
    assert_told(call("inspect", tmp_path), 5, "the memory is full. Try a smaller --batch-size")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_terminals_of_other_alphabets_are_written_to(encoding: str, data: Path) -> None:
    words = [sys.executable, "-m", "whatwhere", "inspect", str(data)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(words, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"12 pairs" in done.stdout


def test_a_fault_of_ours_leaves_its_trace_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    found = re.search(r"Its trace is in (\S+):", told)
    assert found
    trace = Path(found.group(1))
    assert "ZeroDivisionError: on purpose" in trace.read_text(encoding="utf-8")
    trace.unlink()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_the_best_so_far_and_exits_130(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", str(data), "-o", str(out), "--epochs", "1000", "--n-filters", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "whatwhere", *words, "--stop-patience", "1000"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (out / "log.csv").exists():
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "interrupted" in told
    assert (out / "bundle" / "bundle.json").exists()
