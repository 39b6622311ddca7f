"""Blocks of scenes: dealt by area so that all classes train, apart on the ground."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from made_maps import NORTH_UP, write_scene
from made_scenes import PLACES, bright_scene, town, truth_of, write_places
from whatwhere.config import make_recipe
from whatwhere.data.areas import deal_blocks, keep_apart, with_labels, write_splits
from whatwhere.data.augment import Augmentation
from whatwhere.data.census import look
from whatwhere.data.doctor import Survey, class_pixels, classes_of
from whatwhere.data.draws import Draws
from whatwhere.data.inputs import Inputs
from whatwhere.data.lattice import block_side, edges, usual_chip
from whatwhere.data.loader import Chips, Reader, make_loader
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.scenes import Block, Wish
from whatwhere.data.sources import Split
from whatwhere.data.stats import measure_sample
from whatwhere.errors import DataError, UsageError
from whatwhere.io.vector import read_features
from whatwhere.talk import QUIET, Talk
from whatwhere.types import Geometry

SHARES = (0.7, 0.15, 0.15)


def survey(root: Path, wish: Wish | None = None, **said: Any) -> Survey:
    return look(Inputs.of(root, **said), wish or Wish(), 0.25, QUIET)


def blocks_of(splits: dict[Split, list[Any]], split: Split) -> list[Block]:
    return [pair for pair in splits[split] if isinstance(pair, Block)]


# ---------------------------------------------------------------- sides and edges


@given(st.integers(1, 20000), st.integers(1, 40).map(lambda n: n * 64))
def test_blocks_cover_a_side_once_and_none_is_small(length: int, side: int) -> None:
    found = edges(length, side)
    starts, lengths = zip(*found, strict=True)
    assert starts[0] == 0 and sum(lengths) == length
    assert list(starts[1:]) == [sum(lengths[:i]) for i in range(1, len(found))]
    if len(found) > 1:
        assert min(lengths) >= side / 2 and max(lengths) < 1.5 * side


@pytest.mark.parametrize(
    ("sizes", "chip", "side", "chosen"),
    [
        ([(3072, 3072)], 0, 512, 256),
        ([(30000, 30000)], 0, 2048, 256),
        ([(443, 489)], 0, 128, 64),
        ([(1300, 1300)], 0, 256, 160),
        ([(1300, 1300)], 256, 512, 256),
        ([(512, 512)] * 40, 0, 512, 256),
    ],
)
def test_sides_of_blocks(sizes: list[Any], chip: int, side: int, chosen: int) -> None:
    assert block_side(sizes, chip) == side and (chip or usual_chip(side)) == chosen


# ---------------------------------------------------------------- dealing


@given(
    st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=2, max_size=30),
    st.integers(0, 9),
    st.sampled_from([SHARES, (0.8, 0.2, 0.0)]),
)
@settings(max_examples=60, deadline=None)
def test_every_class_trains_and_every_block_is_dealt_once(
    counts: list[tuple[int, ...]], seed: int, shares: tuple[float, float, float]
) -> None:
    from whatwhere.data.areas import _assign

    pixels = np.array(counts, dtype=float)
    order = np.random.default_rng(seed).permutation(len(pixels))
    sides = np.array(_assign(pixels[order], np.array(shares)))
    assert len(sides) == len(pixels) and set(sides.tolist()) <= {0, 1, 2}
    assert (sides == 1).any() and (shares[2] > 0 or not (sides == 2).any())
    spread = (pixels > 0).sum(axis=0)
    trained = pixels[order][sides == 0].sum(axis=0)
    assert (trained[spread > 2] > 0).all()


def test_shares_are_of_pixels(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    found = survey(scene, labels=labels)
    classes = classes_of(found, "")
    splits = deal_blocks(found, classes, SHARES, 3)
    total = np.array(class_pixels(found, found.pairs, classes))
    for split, share in zip(("train", "val", "test"), SHARES, strict=True):
        mine = np.array(class_pixels(found, splits[split], classes))
        assert np.allclose(mine / total, share, atol=0.06)
    again = deal_blocks(found, classes, SHARES, 3)
    other = deal_blocks(found, classes, SHARES, 4)
    assert again == splits and other != splits


def test_a_class_of_one_block_trains(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(5, 5, 20, 20), *PLACES[1:]]
    kinds = ["rare", *["house"] * (len(PLACES) - 1)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": kinds})
    found = survey(scene, labels=labels, class_field="kind")
    classes = classes_of(found, "")
    for seed in range(6):
        splits = deal_blocks(found, classes, SHARES, seed)
        assert class_pixels(found, splits["train"], classes)[2] == 400


def gaps(plan_splits: dict[Split, list[Any]], size: tuple[int, int]) -> NDArray[np.int64]:
    """Which split each pixel is in: 0 for none."""
    found = np.zeros(size, dtype=np.int64)
    for number, split in enumerate(("train", "val", "test"), 1):
        for block in blocks_of(plan_splits, split):  # type: ignore[arg-type]
            assert (found[block.window.slices] == 0).all()
            found[block.window.slices] = number
    return found


def test_training_blocks_keep_off_the_others(tmp_path: Path) -> None:
    scene, labels, truth = town(tmp_path)
    found = survey(scene, Wish(chip_size=64), labels=labels)
    classes = classes_of(found, "")
    dealt = deal_blocks(found, classes, SHARES, 1)
    before = gaps(dealt, (640, 640))
    found, splits = keep_apart(found, dealt, classes)
    after = gaps(splits, (640, 640))
    assert (before > 0).all() and np.array_equal(after > 1, before > 1)
    held = before > 1
    near = held.copy()
    for step in range(1, 17):  # a quarter of a chip, along rows and columns
        near[step:] |= held[:-step]
        near[:-step] |= held[step:]
        near[:, step:] |= held[:, :-step]
        near[:, :-step] |= held[:, step:]
    assert not ((after == 1) & near).any()
    for block in blocks_of(splits, "train"):
        facts = found.facts[block.key]
        rows, columns = block.window.slices
        assert facts.size == (block.window.height, block.window.width)
        assert facts.numbers[0][1] == truth[rows, columns].sum()
        assert np.array_equal(block.labels()[0], truth[rows, columns])
        for number, places in facts.places.items():  # type: ignore[attr-defined]
            assert (truth[rows, columns][tuple(places.T)] == number).all()


def test_a_gap_of_nothing_takes_nothing(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    found = look(Inputs.of(scene, labels=labels), Wish(), 0.0, QUIET)
    classes = classes_of(found, "")
    dealt = deal_blocks(found, classes, SHARES, 1)
    assert keep_apart(found, dealt, classes)[1] == dealt


def two_scenes(root: Path, shift: int, splits: tuple[str, str] | None = None) -> Path:
    truth = truth_of((256, 256), PLACES[:1], [1])
    lines = []
    for i, name in enumerate("ab"):
        place = NORTH_UP @ Affine.translation(shift * i, 0)
        bright_scene(root / f"{name}.tif", truth, transform=place, seed=i)
        write_places(root / f"{name}.gpkg", [(30, 40, 150, 150)], transform=place)
        lines += ["[[scene]]", f'image = "{name}.tif"', f'labels = "{name}.gpkg"']
        lines += [f'split = "{splits[i]}"'] if splits else []
    (root / "data.toml").write_text("\n".join(lines), encoding="utf-8")
    return root / "data.toml"


def test_given_splits_are_kept_and_must_not_overlap(tmp_path: Path) -> None:
    found = survey(two_scenes(tmp_path, 256, ("val", "train")))
    splits = deal_blocks(found, classes_of(found, ""), SHARES, 1)
    assert {block.scene.name for block in blocks_of(splits, "val")} == {"a"}
    assert {block.scene.name for block in blocks_of(splits, "train")} == {"b"}
    found = survey(two_scenes(tmp_path, 200, ("val", "train")))
    with pytest.raises(DataError, match=r"a\.tif: it shows ground that .*b\.tif shows too"):
        deal_blocks(found, classes_of(found, ""), SHARES, 1)
    found = survey(two_scenes(tmp_path, 256, ("train", "train")))
    splits = deal_blocks(found, classes_of(found, ""), SHARES, 1)
    assert splits["val"] and splits["train"] and not splits["test"]


def test_blocks_of_one_ground_stay_on_one_side(tmp_path: Path) -> None:
    found = survey(two_scenes(tmp_path, 0))
    for seed in range(5):
        splits = deal_blocks(found, classes_of(found, ""), (0.5, 0.5, 0.0), seed)
        train, val = (
            {(b.window.row, b.window.column) for b in blocks_of(splits, split)}
            for split in ("train", "val")
        )
        assert train and val and not train & val


def test_one_block_cannot_be_dealt(tmp_path: Path) -> None:
    truth = truth_of((150, 150), [(0, 0, 60, 60)], [1])
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_places(tmp_path / "l.gpkg", [(0, 0, 60, 60)])
    found = survey(scene, labels=labels)
    with pytest.raises(DataError, match="there is 1 block with labels: at least 2 are needed"):
        deal_blocks(found, classes_of(found, ""), SHARES, 1)


def test_where_the_splits_lie_is_written(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    found = survey(scene, labels=labels)
    splits = deal_blocks(found, classes_of(found, ""), SHARES, 1)
    write_splits(tmp_path / "splits.geojson", splits)
    drawn = read_features(tmp_path / "splits.geojson", field="split")
    assert Counter(drawn.values) == {split: len(pairs) for split, pairs in splits.items()}
    keys = read_features(tmp_path / "splits.geojson", field="key").values
    assert sorted(keys) == sorted(pair.key for pair in found.pairs)


def test_the_gap_holds_at_corners_and_between_scenes(tmp_path: Path) -> None:
    found = survey(two_scenes(tmp_path, 256), Wish(chip_size=64))
    classes = classes_of(found, "")
    dealt = deal_blocks(found, classes, SHARES, 1)
    _, splits = keep_apart(found, dealt, classes)

    def place(block: Block) -> tuple[int, int, int, int]:
        column = block.window.column + 256 * (block.scene.name == "b")
        row = block.window.row
        return row, column, row + block.window.height, column + block.window.width

    trained = [place(block) for block in blocks_of(splits, "train")]
    held = [place(block) for side in ("val", "test") for block in blocks_of(splits, side)]  # type: ignore[arg-type]
    assert trained and held
    for a in trained:
        for b in held:
            down, across = max(a[0] - b[2], b[0] - a[2]), max(a[1] - b[3], b[1] - a[3])
            assert max(down, across) >= 16


def test_training_blocks_with_nothing_left_are_told(tmp_path: Path) -> None:
    found = survey(two_scenes(tmp_path, 256), Wish(chip_size=64))
    classes = classes_of(found, "")
    names = [pair.key for pair in found.pairs]
    held = set(names[::2])
    dealt: dict[Split, list[Any]] = {"train": [], "val": [], "test": []}
    for pair in found.pairs:
        dealt["val" if pair.key in held else "train"].append(pair)
    bare = dealt["train"][0]
    numbers = [Counter({99: zone.total()}) for zone in found.facts[bare.key].zones]  # type: ignore[attr-defined]
    facts = {**found.facts, bare.key: replace(found.facts[bare.key], zones=tuple(numbers))}  # type: ignore[call-arg]
    left, splits = keep_apart(replace(found, facts=facts), dealt, classes)
    assert len(splits["train"]) == len(dealt["train"]) - 1 and bare.key not in left.facts
    (warned,) = [p for p in left.problems if "too near others" in p.cause]
    assert bare.key in warned.cause and warned.severity == "warning"


def test_a_sparse_scene_is_measured_by_enough_of_its_pixels(tmp_path: Path) -> None:
    truth = np.zeros((512, 512), dtype=np.int64)
    pixels = np.zeros((1, 512, 512), dtype=np.uint16)
    pixels[0, :20, :20] = np.random.default_rng(1).integers(100, 200, (20, 20))  # 400 px with data
    truth[:10] = 1
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    labels = write_places(tmp_path / "l.geojson", [(0, 0, 10, 512)])
    found = survey(scene, Wish(chip_size=64), labels=labels)
    (facts,) = found.facts.values()
    values = facts.values  # type: ignore[attr-defined]
    assert values.shape[0] == 1 and 100 <= values.shape[1] <= 400
    assert values.min() >= 100 and values.max() < 200


def test_blocks_without_a_known_number_are_left_out(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    kinds = ["pond" if row < 256 and column < 256 else "house" for row, column, _, _ in PLACES]
    kinds[-1] = "road"
    labels = write_places(tmp_path / "l.gpkg", PLACES, columns={"kind": kinds})
    found = survey(scene, labels=labels, class_field="kind")
    classes = classes_of(found, "house,road")
    left = with_labels(found, classes)
    assert len(left.pairs) < len(found.pairs)
    assert all(sum(class_pixels(left, [pair], classes)) for pair in left.pairs)
    draws = Draws.of(found.pairs, found.facts, classes, 0.5)
    assert draws is not None
    bare = next(i for i, pair in enumerate(found.pairs) if pair not in left.pairs)
    which, _ = draws.within(bare, np.random.default_rng(1))
    assert which != bare and draws.blocks[which]


# ---------------------------------------------------------------- values


def test_hot_pixels_do_not_stretch_the_statistics() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(100, 10, (2, 50_000))
    hot = values.copy()
    hot[1, :20] = 65535
    plain, odd = measure_sample([values]), measure_sample([hot[:, :20_000], hot[:, 20_000:]])
    assert plain.mean == pytest.approx((100, 100), abs=0.3)
    assert odd.mean == pytest.approx(plain.mean, abs=0.1)
    assert odd.std == pytest.approx((10, 10), abs=0.3)
    with pytest.raises(DataError, match="no pixel of the training blocks has data"):
        measure_sample([values[:, :0]])


# ---------------------------------------------------------------- chips


def plan_of(root: Path, **options: Any) -> tuple[DataPlan, NDArray[np.int64]]:
    scene, labels, truth = town(root)
    recipe = make_recipe(**{"chip_size": 64, **options})
    return plan_data(Inputs.of(scene, labels=labels), recipe, QUIET), truth


def chips_of(plan: DataPlan, **options: Any) -> Chips:
    pairs, facts = plan.splits["train"], plan.survey.facts
    share = options.pop("share", 0.5)
    return Chips(
        pairs,
        {key: one.size for key, one in facts.items()},
        plan.reader,
        options.pop("shape", plan.shape),
        seed=5,
        **{
            "training": True,
            "draws": Draws.of(pairs, facts, plan.classes, share),
            **options,
        },
    )


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("image", "labels", "valid"))


@pytest.mark.parametrize("geometry", [Geometry(16, 0), Geometry(16, 92, 92, 12)])
@pytest.mark.parametrize("training", [True, False])
def test_chips_are_the_same_whether_blocks_are_kept_or_not(
    tmp_path: Path, geometry: Geometry, training: bool
) -> None:
    plan, _ = plan_of(tmp_path)
    options = {"geometry": geometry, "training": training, "shape": (50, 40)}
    if not training:
        options["draws"] = None
    kept, none = (chips_of(plan, cache_mb=mb, **options) for mb in (64, 0))
    for epoch in (0, 3):
        for index in range(0, len(kept), 7):
            assert same(kept[epoch, index], none[epoch, index])
    assert kept._cache and not none._cache


def test_a_chip_of_a_block_that_is_not_kept_reads_no_more_than_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of(tmp_path)
    chips = chips_of(plan, cache_mb=0)
    sizes: list[tuple[int, int]] = []
    read = Reader.__call__

    def noticed(self: Reader, pair: Any) -> Any:
        sizes.append((pair.window.height, pair.window.width))
        return read(self, pair)

    monkeypatch.setattr(Reader, "__call__", noticed)
    for index in range(len(chips)):
        assert chips[1, index]["valid"].any()
    assert max(max(size) for size in sizes) <= 64


def test_labels_lie_under_their_pixels(tmp_path: Path) -> None:
    plan, _ = plan_of(tmp_path)
    chips = chips_of(plan)
    for index in range(len(chips)):
        chip = chips[2, index]
        bright = (
            chip["image"][0]
            > (90 - plan.reader.normalization.mean[0]) / (plan.reader.normalization.std[0])
        )
        assert np.array_equal(chip["labels"][chip["valid"]], bright[chip["valid"]])


def test_rare_classes_are_drawn_as_often_as_others(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(300, 300, 6, 6), *PLACES]
    kinds = ["rare", *["house"] * len(PLACES)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": kinds})
    recipe = make_recipe(chip_size=64, classes="background,house,rare", split="90/10/0")
    plan = plan_data(Inputs.of(scene, labels=labels, class_field="kind"), recipe, QUIET)

    def holding(share: float) -> float:
        chips = chips_of(plan, share=share)
        drawn = [chips[epoch, i] for epoch in range(4) for i in range(len(chips))]
        return float(np.mean([(chip["labels"][chip["valid"]] == 2).any() for chip in drawn]))

    assert holding(0.0) < 0.06
    assert holding(0.5) == pytest.approx(1 / 6, abs=0.06)
    assert holding(1.0) == pytest.approx(1 / 3, abs=0.08)


def test_no_chip_is_without_a_label(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(row, column, 9, 9) for row in range(40, 640, 128) for column in range(40, 640, 128)]
    kinds = ["a", "b"] * 12 + ["a"]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": kinds})
    inputs = Inputs.of(scene, labels=labels, class_field="kind", aoi=labels)
    plan = plan_data(inputs, make_recipe(chip_size=48), QUIET)
    assert plan.classes.names == ["a", "b"]
    for share in (0.0, 0.5):
        chips = chips_of(plan, share=share)
        assert all(chips[epoch, i]["valid"].any() for epoch in range(3) for i in range(len(chips)))
        assert all(chips[0, i]["image"].any() for i in range(len(chips)))


@pytest.mark.slow
def test_batches_are_the_same_with_workers(tmp_path: Path) -> None:
    plan, _ = plan_of(tmp_path)
    chips = chips_of(replace(plan), cache_mb=0)

    def batches(workers: int) -> list[Any]:
        return list(make_loader(chips, 32, augmentation=Augmentation("free"), workers=workers))

    for one, other in zip(batches(0), batches(1), strict=True):
        assert all((one[name] == other[name]).all() for name in one)


# ---------------------------------------------------------------- the plan


def test_the_plan_says_what_was_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = plan_of(tmp_path)
    plan.tell(Talk())
    told = capsys.readouterr().err
    assert "blocks of 128 px" in told and "orientation free" in told
    assert "pixels of 0.5 m; 16 px between training blocks and others" in told
    assert plan.fingerprint()["block_px"] == 128
    upright, _ = plan_of(tmp_path, orientation="upright")
    assert upright.orientation == "upright"


def test_settings_that_mean_nothing_for_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resize stretches images; scenes are read at another"):
        plan_of(tmp_path, resize="64")
    with pytest.raises(UsageError, match="--resolution-m is for scenes"):
        plan_data(tmp_path / "none", make_recipe(resolution_m=2.0), QUIET)
