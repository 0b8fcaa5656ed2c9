"""Every broken tree is answered with one clear sentence; nothing is written or changed."""

import contextlib
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys

import pytest
from broken_trees import LIST, TREES

from data_prep import build

# PIL warns of some pictures; the commands that are asked for here do not pass it on.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 60  # a tree takes a fraction of one; what takes more waits for something
LONGEST = 1_200  # characters of an answer: about what a screen shows at once
BAR = re.compile(r"(listing|reading|writing) [^|]*(\||: \d+ \w+ \[)")
REMEDY = re.compile(
    r"\b(choose|correct|fetch|give|keep|leave|make|mend|move|prepare|put|quote|remove|save|unpack|"
    r"write|expected)\b|is a quote not closed"
)
RUNS = [(name, mode) for name, tree in TREES.items() for mode in tree.modes]
AS_PROCESSES = [
    ("luperson: raw is not there", "build"),
    ("icfg_pedes: annotation is a named pipe", "check"),
    ("cuhk_pedes: 100,000 brackets", "check"),
    ("cuhk_pedes: file_path is half a letter", "build"),
    ("rstp_reid: pictures in no annotation with names that are no UTF-8", "check"),
    ("luperson: a PNG of 10000x10000", "build"),
    ("luperson: a tar.gz cut off", "check"),
    ("luperson_t: Arrow cut in half", "build"),
    ("folder: CSV with a quote not closed", "build"),
    ("luperson_mllm: --records damaged", "build"),
]


def snapshot(folder):
    """All that is below a folder: kinds, times, targets of links, contents."""
    out, folders = {}, [os.fsencode(folder)]
    while folders:  # os.walk does not come down from 1,000 folders
        for entry in os.scandir(folders.pop()):
            found = entry.stat(follow_symlinks=False)
            what = os.readlink(entry.path) if entry.is_symlink() else b""
            if stat.S_ISREG(found.st_mode):
                what = pathlib.Path(os.fsdecode(entry.path)).read_bytes()
            if stat.S_ISDIR(found.st_mode):
                folders.append(entry.path)
            out[entry.path] = (found.st_mode, found.st_size, found.st_mtime_ns, what)
    return out


@contextlib.contextmanager
def limited():
    """Ends what waits for ever."""

    def stop(*_):
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def arguments(tree, here, mode):
    """The command line of a broken tree, which is made in `here`."""
    raw = here / "raw"
    if tree.ready:
        raw.mkdir()
    tree.make(raw)
    args = [tree.set, "--raw", str(raw), "--out", str(here / "out")]
    args += [arg.format(raw=raw, here=here) for arg in tree.args]
    return [*args, "--check"] if mode == "check" else args


def assert_answered(tree, code, out, err):
    """The command ended with 1 and one sentence, which has what it must have."""
    assert code == 1, out + err
    assert "Traceback" not in out + err
    lines = [line for line in re.split(r"[\r\n]", err) if line.strip(" \x1b[A")]
    lines = [line for line in lines if not BAR.match(line)]
    (error,) = lines
    assert error.startswith("error: ")
    answers = [error]
    answers += [line for line in out.split("\n") if line.startswith("PROBLEM: ")]
    if "see above" in error:
        assert answers[1:]
    for line in [*out.split("\n"), error]:
        assert line.isprintable(), ascii(line)
        assert len(line) <= LONGEST, f"{len(line)} characters: {line}"
    assert REMEDY.search(error), error
    wanted = [[word for word in tree.words if word not in line] for line in answers]
    assert [] in wanted, (tree.words, answers)


def assert_untouched(before, here):
    """Nothing is other than it was, but for OUT.partial."""
    partial = os.fsencode(here / "out.partial")
    after = snapshot(here)
    assert os.fsencode(here / "out") not in after
    for path in before.keys() | after.keys():
        if path != partial and not path.startswith(partial + b"/"):
            assert before.get(path) == after.get(path), path


@pytest.fixture
def here(tmp_path):
    """A folder that is gone afterwards, which pytest cannot do with every tree."""
    folder = tmp_path / "here"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize(("name", "mode"), RUNS, ids=[f"{n} ({m})" for n, m in RUNS])
def test_a_broken_tree_is_answered_with_one_sentence(name, mode, here, capsys):
    tree = TREES[name]
    args = arguments(tree, here, mode)
    before = snapshot(here)
    capsys.readouterr()
    with limited():
        code = build.main(args)
    assert_answered(tree, code, *capsys.readouterr())
    assert_untouched(before, here)


def test_broken_trees_are_answered_alike_by_processes(tmp_path):
    for number, (name, mode) in enumerate(AS_PROCESSES):
        tree, here = TREES[name], tmp_path / str(number)
        here.mkdir()
        args = arguments(tree, here, mode)
        before = snapshot(here)
        done = subprocess.run(
            [sys.executable, "-m", "data_prep.build", *args],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert_answered(tree, done.returncode, done.stdout, done.stderr)
        assert_untouched(before, here)


def test_the_corpus_is_large_and_of_all_sets():
    assert len(TREES) == len(LIST) >= 60  # no name twice
    assert {tree.set for tree in TREES.values()} == set(build.READERS)
