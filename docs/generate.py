"""Write the reference pages of the documentation from the code itself.

    python docs/generate.py [FOLDER]

Writes Markdown into `docs/reference/`, or FOLDER: the command line, the recipe's keys, the exit
codes, the Python API and the figures of the benchmarks. Nothing here is written by hand twice: what
a page says is the text of a flag, a setting or a docstring, or a row of a benchmark.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import figures

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent

# Help texts are wrapped to the terminal's width and coloured by some terminals.
os.environ.update(
    COLUMNS="88", TERMINAL_WIDTH="88", NO_COLOR="1", _TYPER_FORCE_DISABLE_TERMINAL="1"
)

API = (
    (
        "whatwhere.jobs",
        (
            "inspect",
            "chip",
            "lr_find",
            "train",
            "tune",
            "evaluate",
            "predict",
            "assemble",
            "export",
            "models",
        ),
    ),
    ("whatwhere.learn", ("prepare_data", "UnetClassifier")),
    ("whatwhere.config", ("make_recipe",)),
    ("whatwhere.runs", ("Run",)),
    (
        "whatwhere.nn.build",
        *[("build_model", "list_models", "geometry", "freeze", "unfreeze", "depth_groups")],
    ),
    ("whatwhere.predict.engine", ("load", "Predictor")),
    ("whatwhere.predict.images", ("Written",)),
    ("whatwhere.bundle", ("Card", "Bundle", "load", "load_card")),
    ("whatwhere.types", ("Classes", "ClassInfo", "Bands", "Normalization", "Geometry")),
    ("whatwhere.talk", ("Talk",)),
)
"""What the page of the Python API shows: modules and names, in this order."""


def main(folder: Path) -> None:
    """Write all pages into a folder; a page that has not changed is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "command-line.md": command_line(),
        "recipe.md": recipe(),
        "exit-codes.md": exit_codes(),
        "python.md": python(),
        **figures.write(folder),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")


def command_line() -> str:
    """Return the page of all commands: their help, and a table of their flags."""
    import typer.main
    from typer.testing import CliRunner

    from whatwhere.cli import app

    group: Any = typer.main.get_command(app)
    runner = CliRunner()

    def help_of(*names: str) -> str:
        result = runner.invoke(app, [*names, "--help"], prog_name="whatwhere")
        if result.exit_code != 0:
            raise RuntimeError(f"whatwhere {' '.join(names)} --help failed:\n{result.output}")
        return f"```text\n{result.output.strip()}\n```\n"

    parts = [
        "# Command line\n",
        "Results go to standard output, progress to standard error. RUN is a run folder or its "
        "bundle; for `evaluate` and `predict` an `.onnx` or `.xml` file of it too. DATA is a "
        "folder with `images/` and `masks/` or `labels/`; a raster, or a folder "
        "of rasters, with `--labels`; or a `data.toml` that lists scenes.\n",
        help_of(),
    ]
    for name, command in group.commands.items():
        rows = [row for row in map(_parameter_row, command.params) if row is not None]
        parts += [
            f"## whatwhere {name}\n",
            f"{_cell(command.help or '')}\n",
            _table(("argument or flag", "meaning", "default"), rows),
            help_of(name),
        ]
    return "\n".join(parts)


def recipe() -> str:
    """Return the page of the recipe's settings."""
    from whatwhere.config import RECIPES, Recipe

    rows = []
    for item in dataclasses.fields(Recipe):
        low, high = item.metadata["low"], item.metadata["high"]
        limits = [
            f"≥ {low}" if low is not None else "",
            f"≤ {high}" if high is not None else "",
        ]
        rows.append(
            (
                f"`{item.name}`",
                type(item.default).__name__,
                f"`{_toml(item.default)}`",
                ", ".join(limit for limit in limits if limit),
                item.metadata["help"],
            )
        )
    names = " or ".join(f"`{name}`" for name in RECIPES)
    return "\n".join(
        [
            "# The recipe\n",
            "Every number of a training. A key is the flag `--key` of `whatwhere train` (with `-` "
            "for `_`), an argument of `jobs.train` and `make_recipe`, and a line of a TOML file. "
            f"`--recipe` takes {names}, or a TOML file; a flag goes before the file, the file "
            "before the default. Unknown keys and values out of their range are refused, all at "
            "once.\n",
            "In TOML and Python, sizes may be numbers or pairs, and shares, bands and class names "
            "lists: `resize = [96, 128]`, `split = [80, 10, 10]`.\n",
            _table(("key", "type", "default", "range", "meaning"), rows),
        ]
    )


def exit_codes() -> str:
    """Return the page of the exit codes and the errors that have them."""
    from whatwhere import errors

    found = [
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, errors.WhatwhereError)
    ]
    rows = []
    for error in sorted(found, key=lambda one: one.exit_code):
        builtin = next(b.__name__ for b in error.__mro__ if b.__module__ == "builtins")
        rows.append(
            (str(error.exit_code), f"`{error.__name__}`", f"`{builtin}`", _first(error.__doc__))
        )
    return "\n".join(
        [
            "# Exit codes\n",
            "Errors go to standard error as one message that says what was asked, what came and "
            "what to do. The code tells the kind; in Python each kind is an exception that "
            "inherits a builtin too, so either may be caught.\n",
            _table(("code", "exception", "also a", "meaning"), rows),
            f"0 means that all is well. 5 is given too where the memory is full. "
            f"{errors.INTERRUPTED} means that the user interrupted the command (Ctrl-C), 143 "
            "that the system asked a training to end (SIGTERM): what was finished is kept, and "
            "`--resume` goes on. "
            "`whatwhere inspect` ends with 3 when it finds an error in the "
            "data. 2 is given by the command line itself for unknown commands and flags.\n",
        ]
    )


def python() -> str:
    """Return the page of the Python API."""
    parts = [
        "# Python\n",
        "The verbs of the command line are functions of `whatwhere.jobs`: `from whatwhere import "
        "jobs`. `Recipe`, `make_recipe`, `Run`, `Predictor`, `build_model` and the errors are "
        "public names of `whatwhere` itself; they are loaded when they are first used.\n",
    ]
    for module_name, names in API:
        module = importlib.import_module(module_name)
        parts += [f"## {module_name}\n", f"{_prose(inspect.getdoc(module) or '')}\n"]
        for name in names:
            parts += _describe(name, getattr(module, name))
    return "\n".join(parts)


def _describe(name: str, thing: Any) -> Iterator[str]:
    """Yield the Markdown of a function or a class with its public methods."""
    yield f"### {name}\n"
    yield f"```python\n{_signature(name, thing)}\n```\n"
    yield f"{_prose(inspect.getdoc(thing) or '')}\n"
    if not inspect.isclass(thing):
        return
    start = thing.__dict__.get("__init__")
    if start is not None and start.__doc__:
        yield f"{_prose(inspect.cleandoc(start.__doc__))}\n"
    for key, member in vars(thing).items():
        if key.startswith("_"):
            continue
        if isinstance(member, property):
            if member.__doc__:
                yield f"**`{name}.{key}`**: {_prose(inspect.cleandoc(member.__doc__))}\n"
            continue
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(function) and function.__doc__:
            yield f"#### {name}.{key}\n"
            yield f"```python\n{_signature(key, getattr(thing, key))}\n```\n"
            yield f"{_prose(inspect.cleandoc(function.__doc__))}\n"


def _signature(name: str, thing: Callable[..., Any]) -> str:
    """Return a signature, one argument on a line where it is long."""
    signature = inspect.signature(thing)
    shown, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        shown.append(_unquoted(str(parameter)))
    back = signature.return_annotation
    arrow = "" if back is inspect.Signature.empty or inspect.isclass(thing) else f" -> {back}"
    whole = f"{name}({', '.join(shown)}){arrow}"
    if len(whole) <= 88:
        return whole
    return "\n".join([f"{name}(", *[f"    {one}," for one in shown], f"){arrow}"])


def _unquoted(parameter: str) -> str:
    """Take away the quotes of an annotation, and keep those of a default."""
    annotation, equals, default = parameter.partition(" = ")
    return annotation.replace("'", "") + equals + default


def _prose(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        heading = re.fullmatch(
            r"(Args|Attributes|Returns|Yields|Raises|Example|Source|Shapes):", line
        )
        if heading:
            section = heading[1]
            lines += ["", f"**{section}**", ""]
        elif section == "Example":
            lines.append(line)  # indented by four: a block of code
        elif section in ("Args", "Attributes", "Raises") and re.match(r" {4}\S", line):
            name, colon, text = line.strip().partition(":")
            lines.append(f"- `{name}`{colon}{text}" if colon else f"- {name}")
        elif section and line.startswith("    "):
            lines.append(
                f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip()
            )
        elif re.match(r"RUN/|\s{4}\S", line):
            lines.append(line if line.startswith("    ") else f"    {line}")
        else:
            section = "" if line.strip() else section
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _parameter_row(parameter: Any) -> tuple[str, str, str] | None:
    """Return a row for an argument or an option of a command."""
    if getattr(parameter, "hidden", False):
        return None
    meaning = parameter.help or ""
    told = re.search(r"\s*\[default: (.*)\]$", meaning)
    if told:
        default, meaning = told[1], meaning[: told.start()]
    elif parameter.required:
        default = "required"
    elif parameter.default is None or parameter.default is False:
        default = ""
    else:
        default = str(parameter.default)
    if parameter.param_type_name == "argument":
        metavar = parameter.metavar or parameter.name.upper()
        return f"`{metavar}`", _cell(meaning), _code(default)
    flags = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
    return flags, _cell(meaning), _code(default)


def _code(default: str) -> str:
    return default if default in ("", "required", "none", "on", "off") else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _first(docstring: str | None) -> str:
    return _cell(inspect.cleandoc(docstring or "").split("\n\n")[0])


def _toml(value: Any) -> str:
    import tomli_w

    text = tomli_w.dumps({"x": value}).strip().removeprefix("x = ")
    if tomllib.loads(f"x = {text}")["x"] != value:
        raise RuntimeError(f"{value!r} does not survive TOML")
    return text


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reference")
