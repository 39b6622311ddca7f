"""Run every benchmark that takes minutes: `make bench`. The others say how they are started."""

from __future__ import annotations

import startup
import steps


def main() -> None:
    """Measure, and keep the rows in `benchmarks/results/`."""
    startup.main()
    steps.main()


if __name__ == "__main__":
    main()
