"""Record sets: what goes in comes out, or a sentence does; a killed write leaves none.

Faults are put into the files themselves, and writers are killed with SIGKILL.
"""

import concurrent.futures
import io
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import records
from unipt_jax.data.records import UNKNOWN, CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def picture(seed, height=16, width=8):
    """A noisy JPEG, so that no two pictures are alike and none compresses away."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def person(index, captions=("a man", "a tall man")):
    return PersonRecord(
        picture(index),
        f"{index:04}.jpg",
        file_path=f"cam1/{index:04}.jpg",
        person_id=index // 2 + 7,
        label=index // 2,
        captions=captions,
    )


def write(folder, people, kind=PersonRecord, **kwargs):
    records.write_set(folder, kind, {"train": people}, metadata={}, **kwargs)


def run(code, *args, **env):
    """Runs Python code on its own, in the repository."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "set"
    write(out, [person(i) for i in range(6)])
    return out


# --- a round trip --------------------------------------------------------------------


def test_every_field_of_a_person_record_comes_back_as_it_went_in(tmp_path):
    people = [
        PersonRecord(
            picture(0),
            "ein/bild ä.jpg",
            file_path="cam 1/ä, ö.jpg",
            person_id=2**40,
            label=12,
            captions=(
                "Ein Mann mit Hütchen.",
                "一个穿红衣服的人",
                "👩🏽‍🦱 walks\n\tby",
                "",
            ),
            attributes={"Farbe": "grün", "empty": "", "emoji": "🧢"},
        ),
        PersonRecord(b"", "", captions=()),
        PersonRecord(picture(1), "x", captions=("",), attributes={}),
    ]
    write(tmp_path / "set", people)
    source = Records(tmp_path / "set", "train", PersonRecord)
    assert len(source) == 3
    assert list(source) == people
    assert source[1].person_id == source[1].label == UNKNOWN
    assert type(source[0].person_id) is int


def test_every_field_of_a_caption_record_comes_back_as_it_went_in(tmp_path):
    made = [
        CaptionRecord(
            "ä", ("a", "中文"), {"colour": ["red", 0.5], "deep": {"x": None}}
        ),
        CaptionRecord("b", ()),
    ]
    write(tmp_path / "set", made, CaptionRecord)
    assert list(Records(tmp_path / "set", "train", CaptionRecord)) == made


def test_the_order_written_is_the_order_read_and_splits_stay_apart(tmp_path):
    sets = {
        "train": [person(i) for i in (5, 1, 4, 1, 9)],
        "test": [person(i) for i in (3, 2)],
    }
    records.write_set(
        tmp_path / "set", PersonRecord, sets, metadata={"seed": 3, "list": [1, "é"]}
    )
    for split, people in sets.items():
        assert list(Records(tmp_path / "set", split, PersonRecord)) == people
    assert records.splits(tmp_path / "set") == {"train": 5, "test": 2}
    assert records.metadata(tmp_path / "set") == {"seed": 3, "list": [1, "é"]}


def test_a_set_opens_with_plain_tfds_and_tensorflow_is_not_imported(folder, tmp_path):
    # A stand-in makes an import of TensorFlow visible where it is not installed.
    (tmp_path / "tensorflow.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close(); raise ImportError"
    )
    code = """
        import sys
        import tensorflow_datasets as tfds
        source = tfds.builder_from_directory(sys.argv[1]).as_data_source("train")
        row = source[5]
        print(row["image"].shape, row["captions"], row["image_id"].decode())
        assert not [m for m in sys.modules if m.split(".")[0] == "tensorflow"]
    """
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run(code, folder, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(16, 8, 3) [b'a man', b'a tall man'] 0005.jpg\n"
    assert not (tmp_path / "imported").exists()


def test_sixteen_threads_read_what_one_reads(folder):
    source = Records(folder, "train", PersonRecord)
    order = np.random.default_rng(0).integers(0, 6, 600).tolist()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(source.__getitem__, order)) == [person(i) for i in order]


@pytest.mark.parametrize("index", [6, 1000, -1])
def test_an_index_outside_the_split_is_an_index_error(folder, index):
    with pytest.raises(IndexError):
        Records(folder, "train", PersonRecord)[index]


def test_labels_count_from_zero_in_the_order_of_the_ids_and_unknown_stays():
    assert records.contiguous_labels([30, 7, UNKNOWN, 7, 100]) == [1, 0, -1, 0, 2]
    assert records.contiguous_labels([]) == []
    assert records.contiguous_labels([UNKNOWN, UNKNOWN]) == [-1, -1]


# --- mistakes ------------------------------------------------------------------------


def sentence(action):
    """The one sentence of the UserError that an action raises."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_folder_or_file_is_refused_and_left_as_it_is(folder, tmp_path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert str(folder) in sentence(lambda: write(folder, [person(9)]))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert "exists already" in sentence(lambda: write(tmp_path / "file", [person(9)]))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    for action in (
        lambda: Records(tmp_path / "none", "train", PersonRecord),
        lambda: records.metadata(tmp_path / "none"),
        lambda: records.splits(tmp_path / "none"),
    ):
        text = sentence(action)
        assert f"no record set at {tmp_path / 'none'}" in text
        assert "data_prep.build" in text


def test_an_unknown_split_is_named_with_those_there_are(folder):
    text = sentence(lambda: Records(folder, "dev", PersonRecord))
    assert "'dev'" in text and text.endswith("it has train")


def test_a_set_of_the_other_kind_is_refused(folder, tmp_path):
    assert "CaptionRecord" in sentence(lambda: Records(folder, "train", CaptionRecord))
    write(tmp_path / "set", [CaptionRecord("a", ())], CaptionRecord)
    text = sentence(lambda: Records(tmp_path / "set", "train", PersonRecord))
    assert "PersonRecord" in text


# --- damaged files -------------------------------------------------------------------


def record_file(folder):
    return next(folder.glob("*.array_record*"))


def read_all(folder, people):
    """Reads every record; returns how many were refused, never with a wrong one."""
    refused = 0
    source = Records(folder, "train", PersonRecord)
    for index, right in enumerate(people):
        try:
            assert source[index] == right
        except UserError as error:
            refused += 1
            assert f"record {index} of split 'train' in {folder}" in str(error)
            assert "\n" not in str(error)
    return refused


def test_a_flipped_byte_is_refused_never_read_as_another_record(tmp_path):
    """ArrayRecord hashes every chunk: also a flip inside an image is found."""
    people = [person(i) for i in range(6)]
    write(tmp_path / "set", people)
    file = record_file(tmp_path / "set")
    good = file.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # the rest is padding
    assert read_all(tmp_path / "set", people) == 0
    end = 64 + sum(len(p.image) for p in people)  # they lie behind the signature
    found = {}
    for place in used[used >= 64][::71].tolist():
        bad = bytearray(good)
        bad[place] ^= 0x5A
        file.write_bytes(bad)
        found[place] = read_all(tmp_path / "set", people)
    inside = [refused for place, refused in found.items() if place < end]
    assert inside == [1] * len(inside) and len(inside) > 50


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.51, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    people = [person(i) for i in range(6)]
    write(tmp_path / "set", people)
    file = record_file(tmp_path / "set")
    good = file.read_bytes()
    file.write_bytes(good[: int(len(good) * kept)])
    assert read_all(tmp_path / "set", people) == 6


def test_a_record_file_that_is_gone_or_another_is_refused(tmp_path):
    people = [person(i) for i in range(3)]
    write(tmp_path / "set", people)
    file = record_file(tmp_path / "set")
    file.write_bytes(bytes(file.stat().st_size))
    assert read_all(tmp_path / "set", people) == 3
    file.unlink()
    assert read_all(tmp_path / "set", people) == 3


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_damaged_description_is_one_sentence(tmp_path, name, kept):
    write(tmp_path / "set", [person(0)])
    good = (tmp_path / "set" / name).read_bytes()
    (tmp_path / "set" / name).write_bytes(good[: int(len(good) * kept)])
    text = sentence(lambda: Records(tmp_path / "set", "train", PersonRecord))
    assert str(tmp_path / "set") in text


# --- writers that stop ---------------------------------------------------------------


def test_a_generator_that_raises_leaves_nothing(tmp_path):
    def broken():
        yield person(0)
        raise UserError("picture 2 is no picture")

    with pytest.raises(Exception, match="picture 2 is no picture"):
        write(tmp_path / "set", broken())
    assert list(tmp_path.iterdir()) == []


def test_extras_that_raise_leave_nothing_and_extras_stand_in_the_set(tmp_path):
    def broken(partial):
        (partial / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "set", [person(0)], extras=broken)
    assert list(tmp_path.iterdir()) == []
    write(
        tmp_path / "set",
        [person(0)],
        extras=lambda partial: (partial / "note").write_text("whole"),
    )
    assert (tmp_path / "set" / "note").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


# Forks a writer and kills it before the n-th thing that it does to the file system,
# for n = 0, 1, ... until it gets through; then the killed folder is written again.
KILLER = """
import json, os, pathlib, signal, sys
from unipt_jax.data.records import PersonRecord, Records, write_set

root = pathlib.Path(sys.argv[1])
people = [PersonRecord(bytes([i]) * 50, str(i)) for i in range(20)]
EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
count = 0

def moment(nth):
    global count
    if count == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1

def write(folder, nth):
    def hook(event, arguments):
        writes = event == "open" and arguments[1] and set("wax") & set(arguments[1])
        if writes or event in EVENTS:
            moment(nth)
    def generate():
        for record in people:
            if int(record.image_id) % 7 == 3:
                moment(nth)
            yield record
    def extras(partial):
        (partial / "extra").write_text("whole")
        moment(nth)
    sys.addaudithook(hook)
    write_set(folder, PersonRecord, {"train": generate()}, metadata={}, extras=extras)

def child(action):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def whole(folder):
    assert list(Records(folder, "train", PersonRecord)) == people
    assert (folder / "extra").read_text() == "whole"
    assert not list(folder.parent.glob("*.partial"))

results = []
for nth in range(200):
    folder = root / str(nth) / "set"
    code = child(lambda: write(folder, nth))
    left = folder.exists()
    again = child(lambda: left or write(folder, 10**9))
    results.append([code, left, again, child(lambda: whole(folder))])
    if code == 0:
        break
print(json.dumps(results))
"""


def test_a_writer_killed_at_any_moment_leaves_no_set_and_the_next_one_succeeds(
    tmp_path,
):
    done = run(KILLER, tmp_path)
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert len(killed) >= 12  # records, files, renames, extras
    assert all((tmp_path / str(i)).exists() for i in range(1, len(killed)))
    # exit status of the writer, a set stands, exit status of the next one and its check
    assert killed == [[-9, False, 0, 0]] * len(killed)
    assert last == [0, True, 0, 0]
