"""What `whatwhere env` finds amiss, on machines that are not this one."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from pathlib import Path
from typing import Any

import pytest

from whatwhere import environment

FINE: dict[str, str | None] = dict.fromkeys(environment.LIBRARIES, "1.0")


def torch(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "built_for": None,
        "cuda": False,
        "mps": False,
        "threads": 2,
        "bytecode": True,
    }
    usual |= {"folder": "/site"}
    return {**usual, "error": None, **changes}


def test_a_machine_without_a_gpu_is_fine() -> None:
    assert environment.find_amiss(FINE, [], torch()) == []


def test_a_torch_for_processors_beside_an_idle_gpu_is_told_with_the_command() -> None:
    (found,) = environment.find_amiss(FINE, ["NVIDIA H100"], torch())
    assert "NVIDIA H100 is idle" in found["cause"]
    assert found["remedy"].startswith("pip install --force-reinstall torch")


def test_a_driver_too_old_is_told() -> None:
    (found,) = environment.find_amiss(FINE, ["NVIDIA T4"], torch(built_for="13.0"))
    assert "cannot use the NVIDIA T4" in found["cause"]
    assert "driver" in found["remedy"]
    assert environment.find_amiss(FINE, ["T4"], torch(built_for="13.0", cuda=True)) == []


def test_missing_and_malicious_libraries_are_told() -> None:
    broken = {**FINE, "scipy": None, "imagecodecs": None, "lightning": "2.6.3"}
    causes = [found["cause"] for found in environment.find_amiss(broken, [], torch())]
    assert causes == [
        "scipy is not installed.",
        "lightning 2.6.3 was published by an attacker.",
    ]


def test_a_torch_that_cannot_be_loaded_is_told() -> None:
    (found,) = environment.find_amiss(FINE, [], torch(error="libcudart.so is missing"))
    assert "libcudart.so is missing" in found["cause"]


def test_the_drivers_cards_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        stdout = "GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)\n"

    monkeypatch.setattr(environment.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_a, **_k: Told())
    assert environment._gpus() == ["NVIDIA L4", "NVIDIA L4"]


def test_no_driver_means_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    assert environment._gpus() == []


def test_a_start_that_compiles_torch_each_time_is_told() -> None:
    (found,) = environment.find_amiss(FINE, [], torch(bytecode=False))
    assert "without its bytecode" in found["cause"]
    assert "-m compileall" in found["remedy"]
    assert sys.executable in found["remedy"] and "/site" in found["remedy"]
    unknown = torch(bytecode=None, error="no")
    assert not any("bytecode" in one["cause"] for one in environment.find_amiss(FINE, [], unknown))


def test_bytecode_is_looked_for_where_python_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("1", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("module", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert environment._has_bytecode(module) is False
    py_compile.compile(str(path))
    assert environment._has_bytecode(module) is True
    spec.cached = None
    spec.has_location = False  # then Python looks for none
    assert environment._has_bytecode(module) is None
