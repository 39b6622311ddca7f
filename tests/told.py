"""The command line called from tests, and what it tells."""

from __future__ import annotations

import re

from typer.testing import CliRunner, Result

from whatwhere import cli

RUNNER = CliRunner()


def call(*words: object) -> Result:
    return RUNNER.invoke(cli.app, [str(word) for word in words])


def assert_told(result: Result, code: int, *patterns: str) -> None:
    """One message, the right exit code, no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for pattern in patterns:
        assert re.search(pattern, result.output), result.output
