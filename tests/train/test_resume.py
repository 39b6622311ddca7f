"""A training that is killed, stopped or damaged goes on, and ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from forks import Forks
from made import salt_folder
from whatwhere import files, jobs
from whatwhere.cli import app
from whatwhere.config import make_recipe
from whatwhere.data.inputs import Inputs
from whatwhere.data.plan import plan_data
from whatwhere.errors import BundleError, BusyError, Interrupted, NumericsError, UsageError
from whatwhere.nn.build import build_model
from whatwhere.talk import QUIET, Talk
from whatwhere.train.callbacks import Waiting
from whatwhere.train.fit import fit
from whatwhere.train.state import KEPT, States, decode, encode, read_state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills as POSIX does")

SETTINGS: dict[str, Any] = {
    **{"epochs": 3, "batch_size": 4, "ema": 0.1, "mixup": 0.3, "dropout": 0.2, "lr_patience": 1},
    "save_minutes": 0.0,
}
WHOLE: dict[str, Any] = {**SETTINGS, "n_filters": 2}
STEPS = 12  # 16 training chips in batches of 4, 3 epochs


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("resume") / "data", 22)


@pytest.fixture(scope="module")
def ends(forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training leaves that nobody disturbs: it has as many steps as we think."""
    run = tmp_path_factory.mktemp("calm") / "run"
    assert forks.run(job="fit", data=data, run=run, settings=SETTINGS)["code"] == 0
    assert not (run / "checkpoints").exists()
    return {name: (run / name).read_bytes() for name in ("best.bin", "end.bin")}


def leftovers(run: Path) -> list[str]:
    """Temporary files, and states whose name does not fit what is in them."""
    found = [str(path) for path in run.rglob("*") if path.name.startswith(files.TEMPORARY)]
    for path in States(run / "checkpoints").paths():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found += [] if digest[:32] in path.name else [str(path)]
    return found


def go_on(forks: Forks, ends: dict[str, bytes], data: Path, run: Path, **more: Any) -> None:
    """Go on, and see that the end is the calm one's."""
    damaged = [one for one in leftovers(run) if "checkpoints/step" in one]
    assert not damaged
    assert forks.run(job="fit", data=data, run=run, settings=SETTINGS, **more)["code"] == 0
    assert {name: (run / name).read_bytes() for name in ends} == ends
    assert not leftovers(run) and sorted(p.name for p in run.iterdir()) == sorted(ends)


PHASES = [("fsync", "before"), ("fsync", "after"), ("replace", "before"), ("replace", "after")]


@pytest.mark.parametrize("kill", range(24))
def test_a_kill_in_any_phase_of_a_save_changes_no_bit(
    forks: Forks, ends: dict[str, bytes], data: Path, tmp_path: Path, kill: int
) -> None:
    call, when = [*PHASES, ("open", "after"), ("unlink", "after")][kill % 6]
    died = forks.run(
        job="fit", data=data, run=tmp_path / "run", settings=SETTINGS,
        call=call, when=when, number=1 + 3 * (kill // 6) + kill % 4,
    )  # fmt: skip
    assert died["signal"] == signal.SIGKILL
    go_on(forks, ends, data, tmp_path / "run")


def test_a_training_may_die_many_times(
    forks: Forks, ends: dict[str, bytes], data: Path, tmp_path: Path
) -> None:
    for number in (4, 3, 4, 3):
        died = forks.run(
            job="fit", data=data, run=tmp_path / "run", settings=SETTINGS,
            call="replace", when="after", number=number,
        )  # fmt: skip
        assert died["signal"] == signal.SIGKILL
    go_on(forks, ends, data, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("after_s", [0.0, 0.05])
def test_a_polite_stop_keeps_the_step_and_has_its_own_code(
    forks: Forks, data: Path, tmp_path: Path, number: int, after_s: float
) -> None:
    settings = {**SETTINGS, "epochs": 4000, "stop_patience": 0, "save_minutes": 60.0}
    ended = forks.run(
        job="fit", data=data, run=tmp_path / "run", settings=settings,
        after_s=after_s, signal=int(number), once=tmp_path / "run" / "best.bin",
    )  # fmt: skip
    assert ended["code"] == 128 + number and ended["since_signal"] < 5
    paths = States(tmp_path / "run" / "checkpoints").paths()
    assert len(paths) == 1 and not leftovers(tmp_path / "run")
    state = read_state(paths[0])
    assert state["at"]["epoch"] * 4 + state["at"]["batch"] == state["global_step"] > 0


def test_a_signal_that_comes_after_a_step_was_looked_at_loses_no_more_than_a_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the callback that keeps states and Lightning's own look at what it heard."""
    plan = plan_data(Inputs(data), make_recipe(batch_size=4, epochs=3), QUIET)
    states, steps = States(tmp_path / "checkpoints"), 0

    def late(*_args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Waiting, "on_train_batch_end", late)
    with pytest.raises(Interrupted):
        fit(
            build_model("tutorial", 1, 1, n_filters=2), plan.loader("train"), plan.loader("val"),
            plan.recipe, "binary", 2, on_best=lambda *_: None, talk=QUIET, states=states,
            save_minutes=60,
        )  # fmt: skip
    (path,) = states.paths()
    assert read_state(path)["global_step"] == 3


def test_the_whole_of_it_goes_on_by_the_command_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in WHOLE.items()]
    runner = CliRunner()
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert runner.invoke(app, ["train", str(data), "-o", str(calm), *words]).exit_code == 0
    write, count = States.write, 0

    class Died(BaseException):
        pass

    def dying(self: States, step: int, state: bytes) -> Path:
        nonlocal count
        count += 1
        path = write(self, step, state)
        if count == 6:
            raise Died
        return path

    with monkeypatch.context() as patch:
        patch.setattr(States, "write", dying)
        with pytest.raises(Died):
            runner.invoke(app, ["train", str(data), "-o", str(run), *words], catch_exceptions=False)
    assert len(States(run / "checkpoints").paths()) == KEPT
    refused = runner.invoke(app, ["train", str(data), "-o", str(run), *words])
    assert refused.exit_code == 2 and "--resume goes on with it" in refused.output
    other = runner.invoke(app, ["train", str(data), "-o", str(run), "--lr", "0.5", "--resume"])
    assert other.exit_code == 2 and "begun with" in other.output and "0.001" in other.output
    done = runner.invoke(app, ["train", str(data), "-o", str(run), "--resume"])
    assert done.exit_code == 0, done.output
    assert "resume   at epoch 2, after 2 of 4 batches (step 6)" in done.output
    assert weights(run) == weights(calm)
    rows = [(one / "log.csv").read_text().splitlines() for one in (calm, run)]
    cut = [[[*row.split(",")[:1], *row.split(",")[2:-1]] for row in one] for one in rows]
    assert cut[0] == cut[1]  # all but the seconds and the waiting
    again = runner.invoke(app, ["train", str(data), "-o", str(run), "--resume"])
    assert again.exit_code == 2 and "this training is finished" in again.output


def weights(run: Path) -> str:
    return str(json.loads((run / "bundle" / "bundle.json").read_text())["weights"]["sha256"])


def died_at(run: Path, data: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a training that dies after so many states."""
    write, count = States.write, 0

    def dying(self: States, step: int, state: bytes) -> Path:
        nonlocal count
        count += 1
        if count == number:
            raise SystemExit
        return write(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(States, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            jobs.train(data, run, talk=QUIET, **WHOLE)


def test_a_damaged_state_is_passed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, run = tmp_path / "calm", tmp_path / "run"
    jobs.train(data, calm, talk=QUIET, **WHOLE)
    died_at(run, data, 8, monkeypatch)
    newest = States(run / "checkpoints").paths()[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    jobs.train(data, run, resume=True, talk=Talk())
    told = capsys.readouterr().err
    assert f"{newest}: this state is damaged" in told and "The one before it is taken." in told
    assert "(step 6)" in told and weights(run) == weights(calm)


def test_other_data_is_refused_with_a_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = shutil.copytree(data, tmp_path / "data")
    died_at(tmp_path / "run", mine, 5, monkeypatch)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for folder in ("images", "masks"):
        shutil.copy(mine / folder / "s00.png", mine / folder / "s01.png")
    with pytest.raises(UsageError, match="not the training that was begun") as caught:
        jobs.train(mine, tmp_path / "run", resume=True, talk=QUIET)
    assert "images" in str(caught.value) and "masks" in str(caught.value)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    with pytest.raises(UsageError, match="there is no training to go on with"):
        jobs.train(data, tmp_path / "none", resume=True, talk=QUIET)


def test_a_run_has_one_holder_and_a_dead_ones_lock_is_taken_over(
    forks: Forks, ends: dict[str, bytes], data: Path, tmp_path: Path
) -> None:
    with files.locked(tmp_path / "run"):
        with pytest.raises(BusyError, match=rf"process {os.getpid()} is at work"):
            jobs.train(data, tmp_path / "run", talk=QUIET, **WHOLE)
        busy = forks.run(job="fit", data=data, run=tmp_path / "run", settings=SETTINGS)
        assert busy["code"] == 75
    died = forks.run(
        job="fit", data=data, run=tmp_path / "run", settings=SETTINGS,
        call="fsync", when="before", number=5,
    )  # fmt: skip
    assert died["signal"] == signal.SIGKILL and (tmp_path / "run" / files.LOCK).exists()
    go_on(forks, ends, data, tmp_path / "run")


def test_a_state_comes_back_as_it_was() -> None:
    spread = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = {
        "step": 3,
        "state_dict": {"a": spread, "b": torch.tensor(1.5, dtype=torch.bfloat16)},
        "optimizer": {0: {"m": torch.arange(3)}, 1: [None, True, 2.5, "word", (1, 2)]},
        "best": float("inf"),
        "told": {"b", "a"},
        "counts": np.arange(4).reshape(2, 2),
    }
    back = decode(encode(state))
    assert back["state_dict"]["a"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back["state_dict"]["a"], spread)
    assert back["state_dict"]["b"].dtype == torch.bfloat16
    assert torch.equal(back["optimizer"][0]["m"], torch.arange(3))
    assert back["optimizer"][1] == [None, True, 2.5, "word", (1, 2)]
    assert back["best"] == float("inf") and back["told"] == {"a", "b"}
    assert np.array_equal(back["counts"], state["counts"])  # type: ignore[arg-type]
    assert encode(state) == encode(state)


def test_what_has_no_word_or_is_not_finite_is_not_kept() -> None:
    with pytest.raises(TypeError, match="a complex has no word in a state"):
        encode({"a": 1j})
    with pytest.raises(NumericsError, match="the weights a are not finite"):
        encode({"state_dict": {"a": torch.tensor([1.0, float("nan")])}})


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 8, b"\xff" * 100, encode({"a": [1]})[:40], b"\x02" + b"\0" * 7 + b"{}"],
    ids=["nothing", "no head", "a long head", "half", "no words"],
)
def test_what_is_no_state_is_told(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode(data)


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    states = States(tmp_path)
    path = states.write(7, encode({"state_dict": {"a": torch.randn(20)}, "n": [1, 2]}))
    whole = path.read_bytes()
    chance = random.Random(3)
    for _ in range(200):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(bytes(flipped))
        with pytest.raises(BundleError, match="this state is damaged"):
            read_state(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match="this state is damaged"):
            read_state(path)
    path.write_bytes(whole)
    assert read_state(path)["n"] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("workers", "most"), [(0, 180), (2, 20)])
def test_two_hundred_kills_at_random(data: Path, tmp_path: Path, workers: int, most: int) -> None:
    """Half of them with temporary files on another file system, if there is one."""
    chance = random.Random(workers)
    away = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=away) as other:
        servers = [Forks(), Forks(TMPDIR=other)]
        calm = tmp_path / "calm"
        job: dict[str, Any] = {"job": "train", "data": data, "settings": WHOLE, "workers": workers}
        usual = servers[0].run(run=calm, **job)
        assert usual["code"] == 0
        kills = 0
        while kills < most:
            run, server = tmp_path / f"run{kills}", servers[kills % 2]
            first = server.run(run=run, after_s=chance.uniform(0.2, usual["seconds"]), **job)
            kills += first["signal"] == signal.SIGKILL
            assert not [one for one in leftovers(run) if "checkpoints/step" in one]
            if first["code"] is None:
                if not (run / "recipe.toml").exists() or not (run / "report.html").exists():
                    assert server.run(run=run, **job)["code"] == 0
                elif (run / "checkpoints").exists():
                    assert server.run(run=run, **job)["code"] in (0, 2)
            assert weights(run) == weights(calm) and not leftovers(run)
            shutil.rmtree(run)
        for server in servers:
            server.close()
        assert not list(Path(other).glob("whatwhere*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hundred_polite_stops(forks: Forks, data: Path, tmp_path: Path, number: int) -> None:
    chance = random.Random(int(number))
    settings = {**SETTINGS, "epochs": 4000, "stop_patience": 0, "save_minutes": 60.0}
    slowest = 0.0
    for _ in range(100):
        run = tmp_path / "run"
        ended = forks.run(
            job="fit", data=data, run=run, settings=settings,
            after_s=chance.uniform(0.0, 0.5), signal=int(number), once=run / "best.bin",
        )  # fmt: skip
        assert ended["code"] == 128 + number
        slowest = max(slowest, ended["since_signal"])
        shutil.rmtree(run)
    assert slowest < 5
