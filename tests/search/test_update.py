"""An update embeds what is new, keeps what is not, and says what it left out."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import shutil

import captioning
import helpers
import jax
import numpy as np
import pytest
import searching
from captioning import files_of
from PIL import Image
from searching import bring, labels, skipped

from unipt_jax import encoder as encoders
from unipt_jax.data import folders, images, shards
from unipt_jax.errors import UserError
from unipt_jax.search import index, scan


@pytest.fixture(scope="module")
def made(one, crops, tmp_path_factory):
    """An index of the crops; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "index"
    bring(one, folder, crops)
    return folder


@pytest.fixture
def place(crops, made, tmp_path):
    """Copies, to be changed, of the crops and of their index."""
    shutil.copytree(crops, tmp_path / "crops")  # keeps the files' times
    shutil.copytree(made, tmp_path / "index")
    copy = index.read(tmp_path / "index")
    index.restate(copy, folders=[str(tmp_path / "crops")], model=copy.model)
    return tmp_path


def vectors_of(encoder, made):
    """What the encoder itself makes of the files of an index, whole."""
    pictures = [Image.open(made.file(i)) for i in range(len(made))]
    return searching.vectors_of(encoder, pictures)


def again(one, place, **options):
    """The update of the copies, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = bring(one, place / "index", place / "crops", **options)
    return found, said.getvalue()


# --- what is in it -------------------------------------------------------------------


@pytest.mark.parametrize("dtype, loss", [("float32", 2e-6), ("float16", 5e-4)])
def test_the_vectors_are_those_that_the_encoder_gives(
    one, crops, tmp_path, dtype, loss
):
    found = bring(one, tmp_path / "index", crops, dtype=dtype)
    assert len(found) == 20 and found.embeddings.dtype == dtype
    wanted = vectors_of(one, found)
    np.testing.assert_allclose(found.embeddings, wanted, atol=loss)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01  # else all would pass


def test_8_devices_give_the_vectors_of_one_but_for_rounding(one, clip, crops, tmp_path):
    eight = encoders.load(clip, mesh=helpers.mesh_of(8))
    assert eight.fingerprint == one.fingerprint
    options = dict(dtype="float32", batch_size=3)  # made whole for the devices
    a = bring(one, tmp_path / "a", crops, **options)
    b = bring(eight, tmp_path / "b", crops, **options)
    assert a.entries.equals(b.entries)
    np.testing.assert_allclose(a.embeddings, b.embeddings, atol=2e-6)


def test_an_entry_says_what_is_known_of_its_file(made, crops):
    found = index.read(made)
    paths = sorted(os.fsencode(f.relative_to(crops)) for f in crops.rglob("*.jpg"))
    assert labels(found) == [os.fsdecode(path) for path in paths]
    assert found.folders == (str(crops),) and found.skipped == 0
    for i in (0, 7, 19):
        file, crop = crops / found[i].path, found[i]
        state = file.stat()
        assert (crop.bytes, crop.mtime_ns) == (state.st_size, state.st_mtime_ns)
        assert (crop.height, crop.width) == (searching.HEIGHT, searching.WIDTH)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert (crop.digest, crop.box) == (digest, None)


def test_pictures_that_are_not_upright_rgb_have_the_vector_of_what_is_seen(
    one, tmp_path
):
    upright = Image.fromarray(captioning.pixels(3, 60, 24))
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    files = {"a.png": captioning.encode(upright, "PNG")}
    files["b.png"] = captioning.encode(lying, "PNG", exif=exif)
    files["c.bmp"] = captioning.encode(upright, "BMP")
    (tmp_path / "odd").mkdir()
    for name, content in files.items():
        (tmp_path / "odd" / name).write_bytes(content)
    found = bring(one, tmp_path / "index", tmp_path / "odd")
    np.testing.assert_allclose(found.embeddings - found.embeddings[:1], 0, atol=1e-3)
    assert {(found[i].height, found[i].width) for i in range(3)} == {(60, 24)}


def test_an_index_keeps_its_dtype_unless_one_is_given(one, place):
    assert again(one, place)[0].embeddings.dtype == "float16"
    options = dict(overwrite=True, dtype="float32")
    assert again(one, place, **options)[0].embeddings.dtype == "float32"
    found, said = again(one, place)
    assert found.embeddings.dtype == "float32" and "kept 20, embedded 0" in said


# --- again ---------------------------------------------------------------------------


def test_what_is_as_it_was_is_not_opened_and_nothing_is_written(
    one, place, monkeypatch
):
    before = files_of(place / "index")
    stamps = {f.name: f.stat().st_ino for f in (place / "index").glob("e*-*")}
    monkeypatch.setattr(scan, "read", None)
    found, said = again(one, place)
    assert "20 entries: kept 20, embedded 0, taken over 0, dropped 0, skipped 0" in said
    assert files_of(place / "index") == before and len(found) == 20
    assert {f.name: f.stat().st_ino for f in (place / "index").glob("e*-*")} == stamps


def test_only_what_is_new_or_changed_is_embedded(one, place, embedded):
    before = index.read(place / "index")
    (place / "crops" / "anna" / "new.jpg").write_bytes(searching.jpeg(50))
    (place / "crops" / "000.jpg").write_bytes(searching.jpeg(51))
    found, said = again(one, place)
    assert embedded == [2]
    assert "21 entries: kept 19, embedded 2, taken over 0, dropped 0, skipped 0" in said
    np.testing.assert_allclose(found.embeddings, vectors_of(one, found), atol=5e-4)
    np.testing.assert_array_equal(found.embeddings[1:7], before.embeddings[1:7])


def test_what_is_moved_copied_or_touched_keeps_its_vector(one, place, embedded):
    crops = place / "crops"
    before = index.read(place / "index")
    old = dict(zip(labels(before), before.embeddings, strict=True))
    (crops / "anna").rename(crops / "berta")
    shutil.copyfile(crops / "000.jpg", crops / "copy.jpg")
    os.utime(crops / "003.jpg", ns=(0, 1))
    found, said = again(one, place)
    assert embedded == []
    assert (
        "21 entries: kept 6, embedded 0, taken over 15, dropped 13, skipped 0" in said
    )
    new = dict(zip(labels(found), found.embeddings, strict=True))
    np.testing.assert_array_equal(new["copy.jpg"], old["000.jpg"])
    moved = [path for path in new if path.startswith("berta/")]
    assert len(moved) == 13
    for path in moved:
        np.testing.assert_array_equal(new[path], old[path.replace("berta", "anna")])
    assert again(one, place)[1].count("kept 21, embedded 0, taken over 0") == 1


def test_twins_in_one_update_have_one_vector(one, tmp_path, embedded):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(searching.jpeg(number))
    found = bring(one, tmp_path / "index", *(tmp_path / name for name in "abc"))
    rows = found.embeddings.reshape(3, 3, -1)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:1], rows.shape))
    assert sum(embedded) == 4  # the first twin is read with those of its batch


def test_what_vanished_drops_out_and_so_do_folders_that_are_not_given(one, place):
    shutil.rmtree(place / "crops" / "anna")
    searching.write_crops(place / "more", 2)
    both = [place / "crops", place / "more"]
    found = bring(one, place / "index", *both)
    assert len(found) == 9 and found.folders == tuple(map(str, both))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = bring(one, place / "index", place / "more")
    assert "2 entries: kept 2, embedded 0, taken over 0, dropped 7" in said.getvalue()
    assert f"note: {place / 'crops'} is not among --config.images" in said.getvalue()
    np.testing.assert_allclose(found.embeddings, vectors_of(one, found), atol=5e-4)
    assert found.folders == (str(place / "more"),)


def test_a_folder_that_was_moved_as_it_is_is_found_there(one, place, embedded):
    before = index.read(place / "index")
    (place / "crops").rename(place / "moved")
    found = bring(one, place / "index", place / "moved")
    assert embedded == [] and found.folders == (str(place / "moved"),)
    np.testing.assert_array_equal(found.embeddings, before.embeddings)


def test_a_change_that_keeps_size_and_time_is_found_where_all_is_read(one, place):
    file = place / "crops" / "000.jpg"
    state, content = file.stat(), file.read_bytes()
    other = searching.jpeg(50)[: len(content)].ljust(len(content), b"\0")
    file.write_bytes(other)
    os.utime(file, ns=(0, state.st_mtime_ns))
    before = index.read(place / "index")
    assert (
        again(one, place)[0].embeddings[0].tobytes() == before.embeddings[0].tobytes()
    )
    found, said = again(one, place, content=True)
    assert "20 entries: kept 19, embedded 1, taken over 0, dropped 0, skipped 0" in said
    np.testing.assert_allclose(found.embeddings, vectors_of(one, found), atol=5e-4)
    assert np.abs(found.embeddings[0] - before.embeddings[0]).max() > 0.01


# --- while it runs -------------------------------------------------------------------


def after_scan(monkeypatch, change):
    """Has files change between being found and being read."""
    real = scan.scan

    def scanned(names):
        found = real(names)
        change()
        return found

    monkeypatch.setattr(scan, "scan", scanned)


def test_a_file_that_changes_before_it_is_read_is_indexed_as_it_is_then(
    one, place, monkeypatch, embedded
):
    file = place / "crops" / "new.jpg"
    file.write_bytes(searching.jpeg(50))
    with monkeypatch.context() as patched:
        after_scan(patched, lambda: file.write_bytes(searching.jpeg(51, 80, 30)))
        found, _ = again(one, place)
    assert found[20].path == "new.jpg" and found[20].height == 80
    np.testing.assert_allclose(found.embeddings, vectors_of(one, found), atol=5e-4)
    again(one, place)
    assert embedded == [1]


def test_a_file_that_vanishes_before_it_is_read_is_skipped(one, place, monkeypatch):
    file = place / "crops" / "new.jpg"
    file.write_bytes(searching.jpeg(50))
    after_scan(monkeypatch, file.unlink)
    found, said = again(one, place)
    assert len(found) == 20 and "skipped 1 (see " in said
    assert skipped(place / "index") == {str(file): "No such file or directory"}


def test_a_folder_that_vanishes_ends_the_update_and_the_index_stays(
    one, place, monkeypatch
):
    (place / "crops" / "new.jpg").write_bytes(searching.jpeg(50))
    before = files_of(place / "index")
    after_scan(monkeypatch, lambda: (place / "crops").rename(place / "away"))
    with pytest.raises(UserError, match="crops is gone; bring it back, then run"):
        again(one, place)
    assert files_of(place / "index") == before


def test_a_store_that_fails_ends_the_update_and_what_was_done_is_kept(
    one, crops, tmp_path, monkeypatch, embedded
):
    monkeypatch.setattr(folders, "PAUSE", 0.0)
    real = scan.read

    def failing(folder, path):
        if path == b"anna/b \xc3\xa4/002.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return real(folder, path)

    with monkeypatch.context() as patched:
        patched.setattr(scan, "read", failing)
        with pytest.raises(
            UserError, match="Input/output error.; run the same command"
        ):
            bring(one, tmp_path / "index", crops)
    assert embedded == [4, 4, 4]
    assert len(bring(one, tmp_path / "index", crops)) == 20
    assert embedded == [4] * 5


def test_two_updates_at_once_the_second_is_refused_even_with_overwrite(one, place):
    with open(place / "index" / shards.LOCK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is bringing the ind"):
                again(one, place, overwrite=overwrite)
    again(one, place)


# --- what cannot be indexed ----------------------------------------------------------


def bad_files(folder):
    """Files that are no picture, and a part of the reason for each."""
    good = searching.jpeg(90)
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "bomb.png").write_bytes(captioning.bomb())
    (folder / "out.jpg").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.jpg")
    none = "cannot identify it as a picture ("
    return {
        "cut.jpg": "",  # PIL's words for it depend on where
        "empty.jpg": none,
        "text.png": none,
        "bomb.png": "bomb",
        "out.jpg": scan.OUTSIDE,
        "pipe.jpg": scan.NO_FILE,
    }


def test_what_cannot_be_read_is_skipped_with_the_reason_and_counted(one, place):
    reasons = bad_files(place / "crops")
    for _ in range(2):  # they are tried again, each time
        found, said = again(one, place)
        assert len(found) == 20 and found.skipped == 6
        assert f"skipped 6 (see {place}/index/skipped.jsonl)" in said
        told = skipped(place / "index")
        assert told.keys() == {f"{place}/crops/{name}" for name in reasons}
        for name, reason in reasons.items():
            assert reason in told[f"{place}/crops/{name}"]


def test_where_nothing_can_be_read_the_index_stays(one, place):
    before = files_of(place / "index")
    (place / "bad").mkdir()
    bad_files(place / "bad")
    with pytest.raises(
        UserError, match=r"none of 6 pictures can be read \(.*/bad/bomb"
    ):
        bring(one, place / "index", place / "bad")
    assert files_of(place / "index") == before
    with pytest.raises(UserError, match="no picture in"):
        bring(one, place / "new", place / "index")
    assert not (place / "new").exists()


def test_a_file_in_the_place_of_the_index_is_refused(one, crops, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file; give a folder for the index"):
        bring(one, tmp_path / "file", crops)


def test_a_picture_shaped_as_a_scene_is_noted_once(one, place):
    assert "note: " not in again(one, place)[1]
    for name in ("wide.jpg", "wider.jpg"):
        file = place / "crops" / name
        file.write_bytes(searching.jpeg(len(name), 60, 10 * len(name)))
    [note] = [n for n in again(one, place)[1].splitlines() if n.startswith("note: ")]
    assert note.startswith("note: 2 of 22 entries not shaped like a crop of one")
    assert "such as wide.jpg of 80x60" in note and "--config.boxes=FILE" in note


def test_names_do_not_write_to_the_terminal(one, place):
    odd = place / "a\x1b[2J\nb"
    odd.mkdir()
    (odd / "wide\n\x1b[1m.jpg").write_bytes(searching.jpeg(1, 60, 80))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        bring(one, odd / "index", odd)
    for line in said.getvalue().splitlines():
        assert line.isprintable() and line.startswith(("index /", "note: 1 of 1"))
    assert "such as wide\\n\\x1b[1m.jpg of 80x60" in said.getvalue()
    (odd / "wide\n\x1b[1m.jpg").write_text("none")
    with pytest.raises(UserError, match="none of 1 pictures") as raised:
        bring(one, odd / "index", odd)
    assert str(raised.value).isprintable()


# --- models --------------------------------------------------------------------------


def test_an_index_of_another_model_is_refused_with_what_differs(one, place):
    before = files_of(place / "index")
    params = jax.tree.map(lambda x: x, one.params)
    kernel = params["image_projection"]["kernel"]
    params["image_projection"]["kernel"] = kernel * 1.01
    others = {
        "they differ in weights, and": dict(params=params),
        "they differ in fit (squeeze and pad), and": dict(fit="pad"),
    }
    for said, changes in others.items():
        other = dataclasses.replace(one, name="/models/b", **changes)
        with pytest.raises(UserError) as raised:
            again(other, place)
        assert f"was made by {one.name}, and this is /models/b: {said}" in str(
            raised.value
        )
        assert "--config.overwrite=True" in str(raised.value)
    with pytest.raises(
        UserError, match="holds float16, not float32; give --config.dtype"
    ):
        again(one, place, dtype="float32")
    assert files_of(place / "index") == before


def test_with_overwrite_another_model_or_a_damaged_index_is_replaced(
    one, place, embedded
):
    other = dataclasses.replace(one, fit="pad")
    found, said = again(other, place, overwrite=True, dtype="float32")
    assert "kept 0, embedded 20" in said and sum(embedded) == 20
    np.testing.assert_allclose(found.embeddings, vectors_of(other, found), atol=2e-6)
    (place / "index" / "index.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        again(one, place)
    assert len(again(one, place, overwrite=True)[0]) == 20


def test_a_model_that_gives_no_unit_vectors_is_told(one, crops, tmp_path):
    nothing = jax.tree.map(lambda x: jax.device_put(x * np.nan, x.sharding), one.params)
    with pytest.raises(UserError, match="vectors of length nan where 1 is expected"):
        bring(dataclasses.replace(one, params=nothing), tmp_path / "index", crops)
