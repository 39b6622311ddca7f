"""From pictures to masks in one file: make a few pictures, train on them, tune, predict.

    python examples/quickstart.py [OUTPUT]

The pictures are made-up seismic sections, so nothing is downloaded. The net is far too small and
trained for one epoch only: what is shown is how the pieces fit together, not how good they get.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from whatwhere import Run, jobs
from whatwhere.data.salt import make_sections


def write_data(folder: Path, count: int = 16) -> Path:
    """Write sections as `images/NAME.png` and `masks/NAME.png`, the layout that is read."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for section in make_sections(count, seed=7, size=(64, 64)):
        mask = section.mask.astype(np.uint8) * 255  # 0 is background, 255 is salt
        Image.fromarray(section.image).save(folder / "images" / f"{section.name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{section.name}.png")
    return folder


def main(output: Path) -> None:
    """Train, tune and predict; everything lands in `output`."""
    data = write_data(output / "data")

    found = jobs.inspect(data)
    print(f"{found['pairs']} pairs, task {found['task']}")

    # Any setting of the recipe is an argument; see `whatwhere train --help`.
    run = jobs.train(
        data, output / "run", classes="0=background,255=salt", n_filters=4, epochs=1, device="cpu"
    )
    if not isinstance(run, Run):
        sys.exit("there is no run after a dry run")
    print(f"mean IoU on the validation split: {run.scores['mean_iou']}")

    tuned = jobs.tune(run.path, data, device="cpu")
    print(f"threshold: {tuned['labels']['salt']['threshold']}")

    scores = jobs.evaluate(run.path, data, device="cpu")
    print(f"mean IoU on {scores['on']}: {scores['mean_iou']}")

    written = jobs.predict(run.path, data, output / "predicted", probabilities=True, device="cpu")
    print(f"{len(written)} masks, such as {written[0].files[0]}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        main(Path(tempfile.mkdtemp(prefix="whatwhere-quickstart-")))
