"""An update that is killed goes on, and ends with the bytes of one that never was."""

import gc
import shutil
import signal

import kills
import numpy as np
import pytest
import searching
from captioning import files_of
from PIL import Image
from searching import bring, skipped

from unipt_jax.errors import Stopped
from unipt_jax.search import index, scan, work


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 9 crops, two of them twins, and of one file that is no picture."""
    folder = tmp_path_factory.mktemp("place")
    searching.write_crops(folder / "crops", 8)
    (folder / "crops" / "005.jpg").write_bytes(searching.jpeg(0))
    (folder / "crops" / "004.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def whole(one, place):
    """What an update writes of them, never disturbed; three batches."""
    bring(one, place / "whole", place / "crops")
    assert index.read(place / "whole").skipped == 1
    return files_of(place / "whole")


@pytest.fixture(autouse=True)
def each_batch(monkeypatch, embedded):
    """Each batch is a part; how many pictures it embeds."""
    monkeypatch.setattr(work, "SECONDS", -1.0)
    return embedded


def assert_equal(folder, expected):
    found = files_of(folder)
    assert list(found) == list(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_killed_before_any_write_it_ends_as_if_undisturbed(one, place, whole, tmp_path):
    for nth in range(100):
        folder = tmp_path / str(nth)
        try:
            with kills.before_moment(nth):
                bring(one, folder, place / "crops")
        except kills.Killed:
            bring(one, folder, place / "crops")
            assert_equal(folder, whole)
        else:
            break
    assert_equal(folder, whole)
    assert nth > 15  # folders, parts, the index's four files, and what is removed


def test_an_update_of_an_index_killed_before_any_write_ends_so_too(
    one, place, whole, tmp_path
):
    crops = shutil.copytree(place / "crops", tmp_path / "crops")
    bring(one, tmp_path / "old", crops)
    (crops / "000.jpg").unlink()
    (crops / "new.jpg").write_bytes(searching.jpeg(50))
    (crops / "anna").rename(crops / "berta")
    bring(one, shutil.copytree(tmp_path / "old", tmp_path / "wanted"), crops)
    wanted, seen = files_of(tmp_path / "wanted"), set()
    for nth in range(100):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(nth))
        try:
            with kills.before_moment(nth):
                bring(one, folder, crops)
        except kills.Killed:
            seen.add(index.read(folder).generation)  # the old one, until the new one
            bring(one, folder, crops)
            assert_equal(folder, wanted)
        else:
            break
    assert_equal(folder, wanted)
    assert nth > 12 and seen == {1, 2}


def after_batch(monkeypatch, number, do):
    """Has something happen when so many batches are embedded."""
    real, batches = work.Work._finish, []

    def finish(self, *args):
        real(self, *args)
        batches.append(1)
        if len(batches) == number:
            do()

    monkeypatch.setattr(work.Work, "_finish", finish)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stop, raised", [(terminate, Stopped), (interrupt, KeyboardInterrupt)]
)
def test_what_is_embedded_when_it_is_stopped_is_not_embedded_again(
    one, place, whole, tmp_path, monkeypatch, each_batch, capsys, stop, raised
):
    monkeypatch.setattr(
        work, "SECONDS", 1e9
    )  # the part in hand is written all the same
    with monkeypatch.context() as patched:
        after_batch(patched, 2, stop)
        with pytest.raises(raised):
            bring(one, tmp_path / "index", place / "crops")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not index.exists(tmp_path / "index")
    assert each_batch == [3, 4]
    bring(one, tmp_path / "index", place / "crops")
    assert each_batch == [3, 4, 2]
    said = capsys.readouterr().out
    done = "9 entries: done before it was stopped 7, kept 0, embedded 2, taken over 0"
    assert done in said
    assert_equal(tmp_path / "index", whole)


@pytest.fixture
def stopped(one, place, tmp_path, monkeypatch, each_batch):
    """The index of an update that was stopped after two batches."""
    with monkeypatch.context() as patched:
        after_batch(patched, 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            bring(one, tmp_path / "index", place / "crops")
    each_batch.clear()
    return tmp_path / "index"


def test_a_damaged_part_is_done_again(one, place, whole, stopped, each_batch):
    parts = sorted(stopped.glob("parts/*/*.arrow"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-9])
    bring(one, stopped, place / "crops")
    found = index.read(stopped)
    assert sum(each_batch) == 5
    wanted = index.read(place / "whole")
    assert found.entries.equals(wanted.entries)
    np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=2e-3)
    assert set(files_of(stopped)) == set(whole)


def test_parts_of_another_model_or_dtype_are_not_taken(one, place, stopped, each_batch):
    bring(one, stopped, place / "crops", dtype="float32")
    assert sum(each_batch) == 9
    assert index.read(stopped).embeddings.dtype == "float32"
    assert not (stopped / "parts").exists()


def test_other_folders_take_what_parts_know_of_the_same_files(
    one, place, stopped, each_batch
):
    found = bring(one, stopped, place / "crops" / "anna")
    assert sum(each_batch) == 2  # the last batch's
    pictures = [Image.open(found.file(i)) for i in range(len(found))]
    wanted = searching.vectors_of(one, pictures)
    np.testing.assert_allclose(found.embeddings, wanted, atol=5e-4)


def test_where_all_is_read_what_was_embedded_is_not_embedded_again(
    one, place, whole, stopped, each_batch
):
    bring(one, stopped, place / "crops", content=True)
    assert sum(each_batch) == 2
    assert_equal(stopped, whole)


def test_a_file_that_can_be_read_by_now_is(
    one, place, tmp_path, monkeypatch, each_batch
):
    """Permission to read it, say, changes neither its size nor its time."""
    real = scan.read

    def closed(folder, path):
        if path == b"003.jpg":
            raise PermissionError(13, "Permission denied")
        return real(folder, path)

    with monkeypatch.context() as patched:
        patched.setattr(scan, "read", closed)
        after_batch(patched, 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            bring(one, tmp_path / "index", place / "crops")
    assert each_batch == [2, 4]
    found = bring(one, tmp_path / "index", place / "crops")
    assert "003.jpg" in searching.labels(found)
    assert skipped(tmp_path / "index").keys() == {f"{place}/crops/004.jpg"}
    assert each_batch == [2, 4, 1, 2]  # that file's, and the rest


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    one, place, whole, tmp_path, small_disk
):
    disk = small_disk("size=32k,nr_inodes=100")
    (disk / "filler").write_bytes(bytes(24 << 10))
    with pytest.raises(OSError, match="No space left") as raised:
        bring(one, disk / "index", place / "crops")
    assert raised.value.filename.startswith(f"{disk}/index/")
    (disk / "filler").unlink()
    bring(one, disk / "index", place / "crops")
    assert_equal(disk / "index", whole)
    del raised
    gc.collect()  # what is mapped cannot be unmounted


def test_what_a_killed_overwrite_has_done_is_kept(one, place, stopped, each_batch):
    bring(one, stopped, place / "crops", overwrite=True)
    assert sum(each_batch) == 2


def test_stale_files_are_cleared_and_a_users_own_are_not(one, place, whole, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("embeddings-7.npy", "entries-1.arrow.other-1.partial", "mine.npy"):
        (folder / name).write_bytes(b"x")
    bring(one, folder, place / "crops")
    assert (folder / "mine.npy").read_bytes() == b"x"
    (folder / "mine.npy").unlink()
    assert_equal(folder, whole)
