"""The index as FAISS reads it."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import searching

from unipt_jax.errors import UserError
from unipt_jax.search import faiss_export
from unipt_jax.search.gallery import Gallery


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_faiss_finds_what_ours_finds(tmp_path, monkeypatch, dtype):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_export, "BLOCK", 64)
    rows = searching.unit_rows(300)
    index = searching.write_index(
        tmp_path / "index", count=300, rows=[rows], dtype=dtype
    )
    faiss_export.write(index, tmp_path / "new" / "gallery.faiss")
    read = faiss.read_index(str(tmp_path / "new" / "gallery.faiss"))
    assert read.metric_type == faiss.METRIC_INNER_PRODUCT and read.ntotal == 300
    queries = searching.unit_rows(20, seed=1)
    scores, numbers = read.search(queries, 5)
    ours = Gallery(index.embeddings).top_k(queries, 5)
    np.testing.assert_array_equal(numbers, ours[1])
    np.testing.assert_allclose(scores, ours[0], atol=3e-7)
    np.testing.assert_array_equal(
        read.reconstruct_n(0, 300), rows.astype(dtype).astype(np.float32)
    )


def test_a_line_says_what_each_number_means(tmp_path):
    pytest.importorskip("faiss")
    index = searching.write_index(tmp_path / "index", count=3)
    faiss_export.write(index, tmp_path / "gallery.faiss")
    text = (tmp_path / "gallery.faiss.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["path"] for line in lines] == [f"anna/{i}.jpg" for i in range(3)]
    assert [line["digest"] for line in lines] == [index[i].digest for i in range(3)]
    assert lines[0]["folder"] == "/pictures" and lines[0]["box"] is None


def test_a_folder_whose_name_is_no_utf8_has_its_line(tmp_path):
    pytest.importorskip("faiss")
    folder = os.fsdecode(b"/pictures/\xe9")
    index = searching.write_index(tmp_path / "index", folders=[folder])
    faiss_export.write(index, tmp_path / "gallery.faiss")
    lines = (tmp_path / "gallery.faiss.jsonl").read_text().splitlines()
    assert {json.loads(line)["folder"] for line in lines} == {folder}


def test_without_faiss_it_is_said_what_to_install(tmp_path, monkeypatch):
    index = searching.write_index(tmp_path / "index")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install '.\[faiss\]'"):
        faiss_export.write(index, tmp_path / "gallery.faiss")
    assert not (tmp_path / "gallery.faiss.jsonl").exists()


def test_a_folder_is_no_file_to_write(tmp_path):
    pytest.importorskip("faiss")
    index = searching.write_index(tmp_path / "index")
    with pytest.raises(UserError, match="is a folder; give the file"):
        faiss_export.write(index, tmp_path)


def test_no_other_file_is_written_over(tmp_path):
    pytest.importorskip("faiss")
    index = searching.write_index(tmp_path / "index")
    (tmp_path / "photo.jpg").write_bytes(b"a picture")
    with pytest.raises(UserError, match="is there, and no FAISS index"):
        faiss_export.write(index, tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == b"a picture"
    with pytest.raises(UserError, match="is in the index"):
        faiss_export.write(index, tmp_path / "index" / "gallery.faiss")


@pytest.mark.parametrize("room", ["64k", "500k"])  # too small for either file
def test_a_full_disk_leaves_the_old_files(tmp_path, small_disk, room):
    pytest.importorskip("faiss")
    disk = small_disk(f"size={room}")
    index = searching.write_index(tmp_path / "small", count=5)
    faiss_export.write(index, disk / "gallery.faiss")
    before = {file: file.read_bytes() for file in disk.iterdir()}
    rows = [searching.unit_rows(2500, width=64)]
    wide = dataclasses.replace(searching.MODEL, width=64)
    many = searching.write_index(tmp_path / "large", count=2500, rows=rows, model=wide)
    with pytest.raises(OSError, match="No space left"):
        faiss_export.write(many, disk / "gallery.faiss")
    assert {file: file.read_bytes() for file in disk.iterdir()} == before
