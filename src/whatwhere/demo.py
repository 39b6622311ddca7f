"""The demonstration: seismic sections made on the spot, and the whole main job on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from whatwhere import files, jobs, runs, show
from whatwhere.config import make_recipe
from whatwhere.data.salt import Section, best_threshold_iou, make_section
from whatwhere.errors import NumericsError, UsageError
from whatwhere.io.image import encode_png, read_image, read_mask
from whatwhere.talk import Talk

SECTIONS = 400
NEW_SIZES = ((101, 101), (101, 101), (160, 300), (75, 404))
"""(height, width) of the sections that are segmented at the end [px]."""

EPOCHS = 7
BATCH = 16


def demo(folder: Path, seed: int, talk: Talk | None = None) -> float:
    """Make a data set, then inspect, train, tune, evaluate, predict and report.

    The recipe is the tutorial's with few epochs, and smaller batches for more steps in each.

    Args:
        folder: Where everything goes; it must not be there yet, or be empty.
        seed: What all chance is drawn from.
        talk: Where lines and bars go.

    Returns:
        The IoU of the salt on sections the net has not seen.

    Raises:
        UsageError: The folder is not empty.
        OutputError: It cannot be written.
        NumericsError: The net learned nothing.
    """
    talk = talk or Talk()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: there is something here already. Take another folder.")
    recipe = make_recipe(epochs=EPOCHS, batch_size=BATCH, seed=seed, classes="background,salt")
    data, run, new = folder / "data", folder / "run", folder / "new"
    _title(talk, "1. Made-up seismic sections, saved like the real ones")
    write_sections(data, seed, SECTIONS, talk)
    for i, size in enumerate(NEW_SIZES):
        section = make_section(seed, SECTIONS + i, size)
        files.write_bytes(new / f"{section.name}.png", encode_png(section.image))

    _title(talk, f"2. whatwhere inspect {data}")
    talk.say(show.inspection(jobs.inspect(data, talk=talk)))

    flags = f"--epochs {EPOCHS} --batch-size {BATCH} --classes background,salt"
    _title(talk, f"3. whatwhere train {data} -o {run} {flags}")
    trained = jobs.train(data, run, recipe=recipe, talk=talk)
    if trained is None:
        raise NumericsError("the training gave no run.")
    talk.say(show.scores(trained.scores))

    _title(talk, f"4. whatwhere tune {run} {data}")
    talk.say(show.tuning(jobs.tune(run, data, talk=talk)))

    _title(talk, f"5. whatwhere evaluate {run} {data}")
    scores = jobs.evaluate(run, data, talk=talk)
    talk.say(show.scores(scores))
    iou: float = scores["classes"][-1]["iou"] or 0.0
    plain, level, bright = _best_intensity(data, run)
    side = "at least" if bright else "below"
    talk.say(
        f"\nIoU of the salt on {scores['images']} sections the net has not seen: {iou:.3f}\n"
        f"the best that one intensity can do on them (salt is {side} {level}): {plain:.3f}"
    )

    _title(talk, f"6. whatwhere predict {run} {new} -o {folder / 'masks'} --overlay")
    written = jobs.predict(run, new, folder / "masks", overlay=True, talk=talk)
    talk.say(show.predictions(written, as_json=False))

    _title(talk, "Where to look")
    talk.say(f"  {run / 'report.html'}  curves, examples, the threshold, scores, methods")
    talk.say(f"  {folder / 'masks' / 'overlays'}  the salt drawn on sections of four sizes")
    _title(talk, "What to type next, with a folder of your own (images/ and masks/)")
    talk.say("  whatwhere inspect DATA")
    talk.say("  whatwhere train DATA -o RUN")
    talk.say("  whatwhere tune RUN DATA")
    talk.say("  whatwhere evaluate RUN DATA")
    talk.say("  whatwhere predict RUN NEW_IMAGES -o MASKS --overlay")
    return iou


def write_sections(folder: Path, seed: int, count: int, talk: Talk) -> None:
    """Write sections the way the salt challenge stores them.

    Images are grey in three equal bands; masks are 16-bit, 0 and 65535, but 8-bit where they are
    empty.
    """
    sections = (make_section(seed, index) for index in range(count))
    for section in talk.track(sections, "making sections", count):
        _write(folder, section)


def _write(folder: Path, section: Section) -> None:
    picture = np.repeat(section.image[..., None], 3, axis=-1)
    files.write_bytes(folder / "images" / f"{section.name}.png", encode_png(picture))
    mask = np.where(section.mask, np.uint16(65535), np.uint16(0))
    stored = mask if section.mask.any() else mask.astype(np.uint8)
    files.write_bytes(folder / "masks" / f"{section.name}.png", encode_png(stored))


def _best_intensity(data: Path, run: Path) -> tuple[float, int, bool]:
    """The best IoU of a single intensity threshold on the test sections, chosen on themselves."""
    keys = runs.split_keys(run, "test")
    images = [read_image(data / "images" / f"{key}.png")[0][0] for key in keys]
    masks = [read_mask(data / "masks" / f"{key}.png")[0] > 0 for key in keys]
    return best_threshold_iou(images, masks)


def _title(talk: Talk, text: str) -> None:
    talk.say(f"\n── {text}")
