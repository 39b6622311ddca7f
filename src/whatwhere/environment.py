"""What `whatwhere env` tells: versions, processor, memory, GPU, and what is amiss."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from whatwhere._version import __version__
from whatwhere.machine import memory_mb, processors

LIBRARIES = (
    *(
        "torch",
        "timm",
        "lightning",
        "numpy",
        "scipy",
        "pillow",
        "tifffile",
        "safetensors",
        "matplotlib",
    ),
    *("typer", "rich", "tomli-w", "rasterio", "pyogrio", "shapely", "imagecodecs"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"),
)
_OPTIONAL = {
    "imagecodecs": "tiff",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "openvino": "openvino",
    "nncf": "int8",
}


def environment() -> dict[str, Any]:
    """Return what a bug report needs, as JSON can hold it; `amiss` lists causes and remedies."""
    found = {name: _version(name) for name in LIBRARIES}
    gpus = _gpus()
    torch = _torch()
    return {
        "whatwhere": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "processors": processors(),
        "memory_mb": memory_mb(),
        "gpus": gpus,
        "torch": torch,
        "libraries": found,
        "amiss": find_amiss(found, gpus, torch),
    }


def find_amiss(
    libraries: dict[str, str | None], gpus: list[str], torch: dict[str, Any]
) -> list[dict[str, str]]:
    """Return what should be mended: a cause and a command for each.

    Args:
        libraries: Versions by name; None where one is not installed.
        gpus: Names of the NVIDIA cards that the driver sees.
        torch: What `environment` says of it: `built_for`, `cuda`, `bytecode`, `folder`, `error`.
    """
    amiss = []

    def note(cause: str, remedy: str) -> None:
        amiss.append({"cause": cause, "remedy": remedy})

    for name, version in libraries.items():
        if version is None and name not in _OPTIONAL:
            note(f"{name} is not installed.", f"pip install {name}")
    if libraries.get("lightning") in ("2.6.2", "2.6.3"):
        note(
            f"lightning {libraries['lightning']} was published by an attacker.",
            'pip install --upgrade "lightning>=2.6.6", and change the secrets of this machine',
        )
    if torch["error"]:
        note(f"torch cannot be loaded: {torch['error']}", "pip install --force-reinstall torch")
    elif gpus and not torch["cuda"] and torch["built_for"] is None:
        note(
            f"torch was built for processors alone, and the {gpus[0]} is idle.",
            "pip install --force-reinstall torch  (on Windows: --index-url of your CUDA version, "
            "see pytorch.org)",
        )
    elif gpus and not torch["cuda"]:
        note(
            f"torch was built for CUDA {torch['built_for']}, but cannot use the {gpus[0]}.",
            "nvidia-smi  (its CUDA version must be at least torch's: update the driver)",
        )
    if torch["bytecode"] is False:
        note(
            "torch was installed without its bytecode, and here none is kept: each start compiles "
            "it anew, which takes some seconds.",
            f'"{sys.executable}" -m compileall -q "{torch["folder"]}"  (as who may write there)',
        )
    return amiss


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_bytecode(module: Any) -> bool | None:
    """Whether it lies where Python keeps it; None where Python keeps none."""
    cached = module.__spec__.cached
    return Path(cached).exists() if cached else None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {
            "built_for": None,
            "cuda": False,
            "mps": False,
            "threads": None,
            "bytecode": None,
            "folder": None,
            "error": str(error),
        }
    return {
        "built_for": torch.version.cuda,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "bytecode": _has_bytecode(torch),
        "folder": str(Path(torch.__file__).parent.parent),
        "error": None,
    }


def _gpus() -> list[str]:
    """The NVIDIA cards that the driver sees, whatever torch thinks of them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        told = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"GPU \d+: (.+?) \(UUID", told.stdout)
