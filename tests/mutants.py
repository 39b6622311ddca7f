"""Puts small faults into the code and sees whether the tests notice.

`python tests/mutants.py tiling metrics` changes one thing at a time in a module: an operator, the
boundary of a comparison, a number by 1, a word, a condition, what is returned, a statement that is
left out. Each fault is imported and tested in a process of its own, by the module's own quick
tests, up to the first that fails. What no test has noticed is listed: a test is missing there,
unless the fault changes nothing (`SAME` holds these, with the reason; they are not counted).

Left as they are: messages, documentation, types, decorators, and what only another system runs.
Properties take the same examples each time, and failures are not made smaller. A fault by which
the tests take far longer than without it is noticed, too.

The score is the share that was noticed; below 90 % the exit status is 1. `--sample` takes so many
faults of each module, chosen by `--seed`. It forks, as POSIX does: Linux and macOS.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import io
import itertools
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.9
MEGABYTES = 2048  # more than there is already


@dataclass(frozen=True)
class Part:
    """A file and what tests it.

    Attributes:
        file: Below `src/whatwhere`.
        tests: Files or single tests below `tests`, the quickest first.
        names: The functions and classes that are changed; empty for all of the file.
    """

    file: str
    tests: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return ROOT / "src/whatwhere" / self.file

    @property
    def module(self) -> str:
        return "whatwhere." + self.file.removesuffix(".py").replace("/", ".")


MODULES: dict[str, tuple[Part, ...]] = {
    "tiling": (Part("tiling.py", ("test_tiling.py", "test_lattice.py")),),
    "metrics": (Part("metrics.py", ("test_metrics.py",)),),
    "files": (Part("files.py", ("test_files.py",)),),
    "labels": (
        Part("types.py", ("test_types.py",), ("ClassInfo", "Classes")),
        Part("data/classes.py", ("data/test_classes.py", "data/test_esri_source.py")),
        Part("data/labels.py", ("data/test_labels.py",)),
    ),
    "thresholds": (
        Part(
            "evaluate.py",
            ("test_evaluate.py",),
            ("Tuning", "evaluate", "tune", "_confusion", "_number", "parse_metric"),
        ),
        Part(
            "metrics.py",
            ("test_metrics.py", "test_evaluate.py"),
            ("STEPS", "ThresholdHistogram", "threshold_curve", "best_threshold", "truth_of_labels"),
        ),
    ),
}

ONE_IMAGE, ONE_LABEL = "there is one image", "there is one label"
AS_LONG = "both are always as long"
NAMES = "any name will do that nobody else takes"
TEMPORARY = "{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp"

SAME: dict[tuple[str, str], str] = {
    # tiling
    **{
        (line, f"2 * halo if blend else 0 → 2 * halo if blend else {other}"): "a stride is larger"
        for line in (
            "if core < max(stride, 2 * halo if blend else 0):",
            "least = 2 * halo + max(stride, 2 * halo if blend else 0)",
        )
        for other in ("-1", "1")
    },
    (
        "total = max(1, -(-side // core))",
        "max(1, -(-side // core)) → max(0, -(-side // core))",
    ): "a side has a pixel",
    **{
        (
            "rise = np.sin(np.pi / 2 * (np.arange(2 * halo) + 0.5) / max(2 * halo, 1)) ** 2",
            f"max(2 * halo, 1) → max(2 * halo, {other})",
        ): "without a halo there is no weight to divide"
        for other in (0, 2)
    },
    **{
        (
            "for i in range(max(0, (first - halo) // core), min(total, (last - 1 + halo) // core "
            "+ 1)):",
            what,
        ): "what tiles more there are, are of no use and are left out"
        for what in (
            "last - 1 → last - 0",
            "last - 1 → last + 1",
            "(last - 1 + halo) // core + 1 → (last - 1 + halo) // core + 2",
            "(last - 1 + halo) // core → (last - 1 + halo) * core",
        )
    },
    ("if stop > kept:", "stop > kept → stop >= kept"): "no tile that is looked at is empty",
    # metrics
    (
        "for hit, there, said in zip(hits.tolist(), support.tolist(), claimed.tolist(), "
        "strict=True)",
        "t(), claimed.tolist(), strict=True) → t(), claimed.tolist(), strict=False)",
    ): AS_LONG,
    ("return _nanmean(_nanmean(_iou(mine.confusion()[:, 0])).T)", "(:, 0) → (:, -1)"): ONE_LABEL,
    (
        "whole = mine.sum().confusion()[0, 0]  # (thresholds, 2, 2)",
        "(0, 0) → (-1, 0)",
    ): ONE_IMAGE,
    (
        "whole = mine.sum().confusion()[0, 0]  # (thresholds, 2, 2)",
        "(0, 0) → (0, -1)",
    ): ONE_LABEL,
    # thresholds
    ("steps = len(curves[0]) - 1", "curves[0] → curves[-1]"): "all are as long",
    (
        "values = [_number(c[round(t * steps)]) for c, t in zip(curves, best, strict=True)]",
        "zip(curves, best, strict=True) → zip(curves, best, strict=False)",
    ): AS_LONG,
    (
        "planes = zip(answer.truth, predicted, strict=True)",
        "swer.truth, predicted, strict=True) → swer.truth, predicted, strict=False)",
    ): AS_LONG,
    # labels
    (
        "for v, n, i in zip(found, counts, indexes, strict=True)",
        "ound, counts, indexes, strict=True) → ound, counts, indexes, strict=False)",
    ): AS_LONG,
    (
        "indexes = np.array([table.get(int(v), -1) for v in found], dtype=np.int64)",
        "-1 → -2",
    ): "what is below 0 is unknown",
    (
        "yield from zip(there, words, strict=True)",
        "zip(there, words, strict=True) → zip(there, words, strict=False)",
    ): AS_LONG,
    (
        'rows = [f"{info.value}={name}" for info, name in zip(classes, names, strict=True)]',
        "zip(classes, names, strict=True) → zip(classes, names, strict=False)",
    ): AS_LONG,
    **{
        ("if 255 in values and values != [0, 255]:", f"[0, 255] → {other}"): "both came earlier"
        for other in ("[0, 256]", "[0, 254]", "[-1, 255]")
    },
    (
        "value=value if values[-1] <= 255 else i,",
        "values[-1] <= 255 → values[-1] < 255",
    ): "255 came earlier",
    (
        "return _two((0,), (values[1],), values[1] if values[1] <= 255 else 1)",
        "values[1] <= 255 → values[1] <= 254",
    ): "255 came earlier",
    # files
    **{
        (line, f"secrets.token_hex(4) → secrets.token_hex({number})"): NAMES
        for number in (3, 5)
        for line in (
            f'temporary = path.parent / f"{TEMPORARY}"',
            f'name = f"{TEMPORARY}{{path.suffix}}"',
            f'hidden = path.with_name(f"{TEMPORARY}")',
            f'place = folder / f"{TEMPORARY}"',
            'probe = folder / f"{TEMPORARY}{secrets.token_hex(4)}.tmp"',
        )
    },
    (
        "if time.monotonic() > end:",
        "time.monotonic() > end → time.monotonic() >= end",
    ): "no clock stands at that very moment",
    (
        "os.truncate(descriptor, 0)",
        "os.truncate(descriptor, 0) → os.truncate(descriptor, 1)",
    ): "the number is written over the one letter that is left",
    ("names.remove(name)", "without names.remove(name)"): "a folder that is gone is passed over",
    (
        "descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)",
        "os.O_RDONLY | os.O_DIRECTORY → os.O_RDONLY & os.O_DIRECTORY",
    ): "a folder can be opened without the flag",
}
"""Faults that change nothing: the line and what was changed in it → why."""

# ---------------------------------------------------------------- faults

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}

CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "sin": "cos"}
"""Functions that others are called in place of."""

LEFT_OUT = (ast.Raise, ast.AugAssign, ast.Delete, ast.Continue, ast.Break)
"""Statements that may be left out, beside calls and what is stored in other things."""

TYPES = ("annotation", "returns", "type_params", "decorator_list")
"""Parts of the tree that nothing comes of when the tests run."""


@dataclass(frozen=True)
class Change:
    """Something else in a place of a tree.

    Attributes:
        holder: A node or a list of nodes.
        key: An attribute of the node, or a position in the list.
        new: What comes there.
    """

    holder: Any
    key: Any
    new: Any

    def make(self) -> Change:
        """Make the change; returns what undoes it."""
        if isinstance(self.holder, list):
            old, self.holder[self.key] = self.holder[self.key], self.new
        else:
            old = getattr(self.holder, self.key)
            setattr(self.holder, self.key, self.new)
        return Change(self.holder, self.key, old)


@dataclass(frozen=True)
class Fault:
    """A change of a module: the text of its line, what stands there → what comes."""

    line: int
    text: str
    what: str
    change: Change

    @property
    def same(self) -> bool:
        """Whether it is known to change nothing."""
        return (self.text, self.what) in SAME


class Changer:
    """Finds what can be changed in a part of a tree.

    Attributes:
        found: Where it stands, what it does, and the change.
        above: The nodes from the top to the one that is looked at.
    """

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, str, Change]] = []
        self.above: list[ast.AST] = []

    def look(self, node: ast.AST) -> None:
        """Find the changes of a node and of all that is in it."""
        self.above.append(node)
        getattr(self, f"_{type(node).__name__}", lambda _: None)(node)
        for name, value in ast.iter_fields(node):
            if name in TYPES or not _runs(node, name):
                continue
            for i, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, ast.AST):
                    place = (value, i) if isinstance(value, list) else (node, name)
                    self.replace(item, *place)
                    self.look(item)
        self.above.pop()

    def replace(self, item: ast.AST, holder: Any, key: Any) -> None:
        """Find what may stand in the place of a whole node."""
        if isinstance(item, ast.UnaryOp):
            self.note(holder, key, item.operand, f"{told(item)} → {told(item.operand)}", item)
        calls = isinstance(item, ast.Expr) and not isinstance(item.value, ast.Constant)
        stores = isinstance(item, ast.Assign) and isinstance(
            item.targets[0], ast.Attribute | ast.Subscript
        )
        if calls or stores or isinstance(item, LEFT_OUT):
            self.note(holder, key, ast.Pass(), f"without {told(item)}", item)

    def note(
        self, holder: Any, key: Any, new: Any, what: str = "", where: ast.AST | None = None
    ) -> None:
        """Keep a change; what is not said of it is seen in the expression around it."""
        change = Change(holder, key, new)
        where = where or self.above[-1]
        if not what:
            around = [one for one in self.above if isinstance(one, ast.expr | ast.stmt)]
            show: ast.AST = around[-1]
            if isinstance(show, ast.Constant) and isinstance(around[-2], SIMPLE):
                show = around[-2]
            before = told(show)
            undo = change.make()
            what = difference(before, told(show))
            undo.make()
        self.found.append((where, what, change))

    def _Compare(self, node: ast.Compare) -> None:
        for i, one in enumerate(node.ops):
            for other in COMPARISONS[type(one)]:
                self.note(node.ops, i, other())

    def _BinOp(self, node: ast.BinOp) -> None:
        words = any(_is_text(side) for side in (node.left, node.right))
        if type(node.op) in OPERATORS and not words:
            self.note(node, "op", OPERATORS[type(node.op)]())

    def _AugAssign(self, node: ast.AugAssign) -> None:
        self.note(node, "op", OPERATORS[type(node.op)]())

    def _BoolOp(self, node: ast.BoolOp) -> None:
        self.note(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())

    def _Constant(self, node: ast.Constant) -> None:
        value, above = node.value, self.above[:-1]
        if isinstance(value, bool):
            self.note(node, "value", not value)
        elif isinstance(value, int):
            self.note(node, "value", value + 1)
            self.note(node, "value", value - 1)
        elif isinstance(value, float):
            self.note(node, "value", value + 1)
        elif isinstance(value, str):
            message = any(isinstance(one, ast.Raise | ast.JoinedStr) for one in above)
            if not message and not isinstance(above[-1], ast.Expr):
                self.note(node, "value", f"X{value}")

    def _If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self.negate(node, "test", node.test)

    _While = _IfExp = _If

    def _comprehension(self, node: ast.comprehension) -> None:
        for i, test in enumerate(node.ifs):
            self.negate(node.ifs, i, test)

    def negate(self, holder: Any, key: Any, test: ast.expr) -> None:
        """Turn a condition round; one with `not` loses it elsewhere."""
        if not isinstance(test, ast.UnaryOp) and not _is_system(test):
            self.note(holder, key, ast.UnaryOp(ast.Not(), test), f"if not ({told(test)})", test)

    def _Return(self, node: ast.Return) -> None:
        if node.value is not None and told(node.value) != "None":
            self.note(node, "value", ast.Constant(None), f"{told(node)} → None", node)

    def _Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            self.note(node.func, "attr", CALLS[node.func.attr])
        elif isinstance(node.func, ast.Name) and node.func.id in CALLS:
            self.note(node.func, "id", CALLS[node.func.id])


SIMPLE = (ast.expr, ast.Assign, ast.AnnAssign, ast.Return, ast.Expr)
"""What is short enough to be shown."""


def _runs(node: ast.AST, name: str) -> bool:
    """Whether a field of a node is code that runs here."""
    if isinstance(node, ast.AnnAssign):
        return told(node.annotation) != "TypeAlias"
    if isinstance(node, ast.If) and _is_system(node.test):
        return name == "orelse"
    return not (isinstance(node, ast.FormattedValue) and name == "format_spec")


def _is_system(test: ast.expr) -> bool:
    return "sys.platform" in ast.unparse(test)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def told(node: ast.AST) -> str:
    """Return code in one line."""
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


def alike(one: str, other: str) -> int:
    """Return how many letters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def difference(before: str, after: str) -> str:
    """Return two texts without the most of what they begin and end with alike."""
    first = alike(before, after)
    last = alike(before[first:][::-1], after[first:][::-1])
    start, stop = max(0, first - 30), max(0, last - 30)
    return " → ".join(text[start : len(text) - stop] for text in (before, after))


def faults(part: Part) -> tuple[ast.Module, list[Fault]]:
    """Return a module's tree and the changes that can be made in it."""
    text = part.path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    changer = Changer()
    changer.above.append(tree)
    for i, node in enumerate(tree.body):
        targets = [getattr(node, "target", None), *getattr(node, "targets", [])]
        names = {getattr(one, "id", "") for one in targets} | {getattr(node, "name", "")}
        if not part.names or names & set(part.names):
            changer.replace(node, tree.body, i)
            changer.look(node)
    found = [
        Fault(where.lineno, lines[where.lineno - 1].strip(), what, change)
        for where, what, change in changer.found
        if isinstance(where, ast.expr | ast.stmt)
    ]
    return tree, found


# ---------------------------------------------------------------- trials


class Finder(importlib.abc.MetaPathFinder):
    """Gives a changed tree where its module is imported."""

    def __init__(self, part: Part, tree: ast.Module) -> None:
        self.part, self.tree = part, tree

    def find_spec(self, name: str, _: Any, __: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.part.module:
            return None
        path, tree = str(self.part.path), self.tree

        class Loader(SourceFileLoader):
            def get_code(self, _: str) -> CodeType:
                return compile(ast.fix_missing_locations(tree), path, "exec")

        return importlib.util.spec_from_file_location(name, path, loader=Loader(name, path))


def run_tests(tests: Sequence[str], folder: Path, *more: str) -> int:
    """Run tests here, up to the first that fails; returns what pytest does."""
    import pytest

    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "--tb", "no"]
    options += ["--basetemp", str(folder / "base"), "--rootdir", str(ROOT)]
    return int(pytest.main([*options, *more, *(str(ROOT / "tests" / test) for test in tests)]))


def load(tests: Sequence[str], folder: Path) -> None:
    """Import all that the tests need, then forget what is ours: each trial imports it anew."""
    import hypothesis

    steps = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants", phases=steps, database=None, derandomize=True, deadline=None
    )
    hypothesis.settings.load_profile("mutants")
    with contextlib.redirect_stdout(io.StringIO()):
        run_tests(tests, folder, "--collect-only")
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "/")
        if name.split(".")[0] == "whatwhere" and ROOT / "src" not in path.parents:
            raise SystemExit(f"{name} comes from {path}, not from {ROOT}.")
        if name != "__main__" and {ROOT / "src", ROOT / "tests"} & {*path.parents}:
            del sys.modules[name]


def attempt(
    fault: Fault | None, part: Part, tree: ast.Module, folder: Path, limit_s: float
) -> tuple[str, float]:
    """Test in a process of its own, with a fault or without; returns how it ended, and seconds."""
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            with open(folder / "told", "wb") as stream:
                for number in (1, 2):
                    os.dup2(stream.fileno(), number)
            bound(limit_s)
            if fault is not None:
                fault.change.make()
            sys.meta_path.insert(0, Finder(part, tree))
            code = run_tests(part.tests, folder)
        except BaseException:  # noqa: BLE001  # a fault may raise anything
            code = 1
        os._exit(code)
    status = wait(pid, begun + 10 + 4 * limit_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what the tests have started
    seconds = time.monotonic() - begun
    if os.WIFSIGNALED(status):
        return "took too long or died", seconds
    return ("noticed" if os.WEXITSTATUS(status) else "survived"), seconds


def bound(limit_s: float) -> None:
    """Bound the time and the memory of this process."""
    seconds = int(limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEGABYTES * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def wait(pid: int, end: float) -> int:
    """Wait for a process, or end it when its time is over; returns its status."""
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def chosen(part: Part, found: list[Fault], sample: int, seed: int) -> list[Fault]:
    """Take a sample of the faults, in their order; those that change nothing are left out."""
    counted = [one for one in found if not one.same]
    if not 0 < sample < len(counted):
        return counted
    return sorted(
        random.Random(f"{seed}{part.file}").sample(counted, sample), key=lambda one: one.line
    )


def trial(part: Part, folder: Path, sample: int, seed: int) -> Iterator[tuple[Fault, str]]:
    """Try the faults of a part, and yield how each ended."""
    tree, found = faults(part)
    wanted = chosen(part, found, sample, seed)
    same = sum(one.same for one in found)
    load(part.tests, folder)
    ended, seconds = attempt(None, part, tree, folder, 600)
    if ended != "survived":
        said = (folder / "told").read_text(encoding="utf-8")
        raise SystemExit(f"{said}\nthe tests of {part.file} fail without a fault.")
    print(
        f"{part.file}: {len(found)} faults, {same} of them change nothing, {len(wanted)} tried; "
        f"the tests take {seconds:.1f} s",
        flush=True,
    )
    for fault in wanted:
        ended, _ = attempt(fault, part, tree, folder, 3 + 3 * seconds)
        yield fault, ended
        if ended != "noticed":
            print(f"  {part.file}:{fault.line} {ended}: {fault.what}", flush=True)


def main() -> int:
    """Try the modules that are named, and print their scores."""
    parser = argparse.ArgumentParser(description="Mutation scores.")
    parser.add_argument("modules", nargs="+", choices=[*MODULES], metavar="MODULE")
    parser.add_argument("--sample", type=int, default=0, help="faults of each file; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    os.environ["OMP_NUM_THREADS"] = "1"
    scores = {}
    for name in said.modules:
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for part in MODULES[name]:
                counts.update(end for _, end in trial(part, Path(folder), said.sample, said.seed))
        scores[name] = 1 - counts["survived"] / counts.total()
        print(
            f"{name}: {scores[name]:.1%} of {counts.total()} noticed; {counts['survived']} "
            f"survived, {counts['took too long or died']} took too long or died",
            flush=True,
        )
    return int(min(scores.values()) < LEAST)


if __name__ == "__main__":
    raise SystemExit(main())
