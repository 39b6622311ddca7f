"""Names that no file can have."""

from __future__ import annotations

import errno
from pathlib import Path

from whatwhere.errors import DataError, Problem

_NEVER = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
_SHOWN = 100  # letters


def require_name(path: Path) -> None:
    """Raise `DataError` where no file can be called so, and asking for one would be an error."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _NEVER:
            return
        told = (error.strerror or str(error)).lower()
    except ValueError as error:  # a zero byte
        told = str(error)
    else:
        return
    text = str(path)
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    cause = f"no file can have this name ({told})."
    raise DataError(
        f"{shown}: {cause} Check it.", [Problem("error", shown, cause, "Check the name.")]
    )
