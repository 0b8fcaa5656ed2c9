"""An index is read as it was written, whole or not at all, whatever becomes of its files."""

import errno
import gc
import json
import shutil

import kills
import numpy as np
import pytest
import searching
from captioning import files_of

from unipt_jax.errors import UserError
from unipt_jax.search import index

BAD_BYTES = b"caf\xe9/1.jpg"


def test_what_is_written_is_read(tmp_path):
    table = searching.entries(
        ["anna/1.jpg", BAD_BYTES, "street.jpg"],
        folder=[0, 1, 1],
        asked=[b"", b"", b"-5,20,69,128"],
        x=[0, 0, 0],
        y=[0, 0, 20],
        w=[24, 24, 64],
        h=[60, 60, 128],
        height=[60, 60, 128],
        width=[24, 24, 64],
        bytes=[10, 20, 2**40],
        mtime_ns=[-1, 2**62, 5],
        digest=[bytes([i]) * 32 for i in (1, 2, 255)],
    )
    fields = dict(entries=table, rows=[searching.unit_rows(3)])
    fields |= dict(folders=["/a", "/b"], skipped=[("/a/bad.jpg", "why")] * 2)
    made = searching.write_index(tmp_path / "index", **fields)
    found = index.read(tmp_path / "index")
    assert len(found) == len(made) == 3
    assert found.folders == ("/a", "/b") and found.skipped == 2
    assert found.model == searching.MODEL
    box = dict(box=(0, 20, 64, 128), digest="ff" * 32, bytes=2**40, mtime_ns=5)
    assert found[2] == index.Crop(1, "street.jpg", height=128, width=64, **box)
    assert [found[i].box for i in range(2)] == [None, None]
    told = ["anna/1.jpg", "caf\\xe9/1.jpg", "street.jpg [0,20,64,128]"]
    assert searching.labels(found) == told
    assert bytes(found.file(1)) == b"/b/" + BAD_BYTES
    assert str(found.file(0)) == "/a/anna/1.jpg"
    for wrong in (-1, 3):
        with pytest.raises(IndexError):
            found[wrong]
        with pytest.raises(IndexError):
            found.file(wrong)
    why = {"path": "/a/bad.jpg", "reason": "why"}
    lines = (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [why, why]


@pytest.mark.parametrize("dtype", index.DTYPES)
def test_embeddings_are_mapped_in_order_and_cannot_be_written(tmp_path, dtype):
    rows = searching.unit_rows(5)
    found = searching.write_index(tmp_path, dtype=dtype, rows=[rows[:2], rows[2:]])
    np.testing.assert_array_equal(found.embeddings, rows.astype(dtype))
    assert found.embeddings.dtype == dtype
    assert found.embeddings.flags.c_contiguous and not found.embeddings.flags.owndata
    assert found.embeddings.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        found.embeddings[0] = 0


def test_float16_moves_a_cosine_by_less_than_is_said():
    a, b = searching.unit_rows(2000, 512), searching.unit_rows(500, 512, seed=1)
    b[:50] = a[:50]  # the largest cosines, too
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    found = a.astype(np.float16).astype(np.float64) @ b.T.astype(np.float64)
    assert 1e-6 < np.abs(found - exact).max() < 0.0005


def test_the_same_entries_are_the_same_bytes(tmp_path):
    searching.write_index(tmp_path / "a")
    searching.write_index(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


# --- several at once -----------------------------------------------------------------


def test_who_has_an_index_open_goes_on_while_it_is_written_anew(tmp_path):
    old = searching.write_index(tmp_path)
    for _ in range(2):
        searching.write_index(tmp_path, count=9)
    np.testing.assert_array_equal(old.embeddings, np.float16(searching.unit_rows(5)))
    assert searching.labels(old) == [f"anna/{i}.jpg" for i in range(5)]
    new = index.read(tmp_path)
    assert len(new) == 9 and new.generation == 3
    names = {"index.json", "skipped.jsonl", "embeddings-3.npy", "entries-3.arrow"}
    assert set(files_of(tmp_path)) == names


def test_who_comes_as_it_is_written_anew_reads_the_new_one(tmp_path, monkeypatch):
    searching.write_index(tmp_path)
    real, calls = index._open, []

    def late(folder, text):
        calls.append(text)
        if len(calls) == 1:  # between its index.json and the files that this names
            searching.write_index(tmp_path, count=9)
        return real(folder, text)

    monkeypatch.setattr(index, "_open", late)
    assert len(index.read(tmp_path)) == 9


def test_a_file_that_stays_away_is_told(tmp_path):
    searching.write_index(tmp_path)
    (tmp_path / "entries-1.arrow").unlink()
    with pytest.raises(UserError, match=r"is damaged .*entries-1.*overwrite=True"):
        index.read(tmp_path)


def test_killed_before_any_write_the_old_index_or_the_new_is_there(tmp_path):
    searching.write_index(tmp_path / "old")
    whole = shutil.copytree(tmp_path / "old", tmp_path / "whole")
    searching.write_index(whole, count=9)
    seen = []
    for nth in range(100):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(nth))
        try:
            with kills.before_moment(nth):
                searching.write_index(folder, count=9)
        except kills.Killed:
            seen.append(len(index.read(folder)))
            if seen[-1] == 9:  # all is written, and only what was is still about
                continue
            searching.write_index(folder, count=9)
            assert files_of(folder) == files_of(whole)
        else:
            break
    assert files_of(folder) == files_of(whole)
    assert seen == sorted(seen) and set(seen) == {5, 9} and len(seen) > 8


def test_a_full_disk_leaves_the_index_that_was_there(tmp_path, small_disk):
    disk = small_disk("size=64k,nr_inodes=100")
    searching.write_index(disk / "index")
    before = files_of(disk / "index")
    rows = np.zeros((9, 8192), np.float32)
    with pytest.raises(OSError, match="No space left") as raised:
        searching.write_index(disk / "index", count=9, rows=[rows])
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == f"{disk}/index/embeddings-2.npy"
    assert files_of(disk / "index") == before
    gc.collect()  # what is mapped cannot be unmounted


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_in_its_middle_leaves_nothing(tmp_path, error):
    with pytest.raises(error), index.written(tmp_path / "a.npy") as out:
        out.write(b"some")
        raise error
    assert not list(tmp_path.iterdir())


# --- no index, or a damaged one ------------------------------------------------------


def refusal(folder) -> str:
    with pytest.raises(UserError) as raised:
        index.read(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_where_no_index_is_the_remedy_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert not index.exists(folder)
        said = refusal(folder)
        assert f"{folder} holds no index" in said and "--config.images=FOLDER" in said


def test_a_folder_that_cannot_be_mapped_is_refused():
    assert "gs://b/i is no local folder" in refusal("gs://b/i")


def test_another_format_is_told(tmp_path):
    searching.write_index(tmp_path)
    file = tmp_path / "index.json"
    file.write_text(file.read_text().replace("index 1", "index 7"))
    assert "'unipt_jax index 7', and this version reads" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["index.json", "entries-1.arrow", "embeddings-1.npy"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    searching.write_index(tmp_path)
    content = (tmp_path / name).read_bytes()
    for kept in sorted({0, 1, 7, len(content) // 2, len(content) - 2}):
        (tmp_path / name).write_bytes(content[:kept])
        assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["entries-1.arrow", "embeddings-1.npy"])
def test_a_file_of_other_bytes_is_refused(tmp_path, name):
    searching.write_index(tmp_path)
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).write_bytes(bytes(size))
    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        dict(entries="5"),
        dict(files=[]),
        dict(model={}),
        dict(folders=[]),
        dict(dtype=1),
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_index_json_of_other_values_is_refused(tmp_path, change):
    searching.write_index(tmp_path)
    file = tmp_path / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["[]", "1", "\xff", "[" * 100_000], ids=repr)
def test_an_index_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    assert "is damaged" in refusal(tmp_path)


def test_paths_that_lead_out_of_the_file_are_refused(tmp_path):
    """Reading one would end the process."""
    table = searching.entries(["a.jpg", "bcd.jpg"])
    searching.write_index(tmp_path, entries=table, rows=[searching.unit_rows(2)])
    file = tmp_path / "entries-1.arrow"
    begins = np.array([0, 5, 12], np.int64).tobytes()
    assert file.read_bytes().count(begins) == 1
    wild = np.array([0, 5, 1 << 40], np.int64).tobytes()
    file.write_bytes(file.read_bytes().replace(begins, wild))
    assert "is damaged" in refusal(tmp_path)
