"""Mistakes that users of search make: one sentence, exit code 1, nothing lost."""

import importlib.util
import os
from unittest import mock

import answering
import captioning
import helpers
import jax
import pytest
import rundirs
import searching

import unipt_jax
from unipt_jax.data import tokenizers


@pytest.fixture(scope="module")
def index(clip, crops, tmp_path_factory):
    """An index of the 20 crops."""
    folder = tmp_path_factory.mktemp("refusals") / "index"
    encoder = unipt_jax.load(clip, mesh=helpers.mesh_of(1))
    rows = [searching.unit_rows(20)]
    answering.write_index(folder, encoder, clip, crops, rows=rows)
    return folder


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["query="], "a query is empty"),
        (["query=  "], "a query is empty"),
        (["query=a man", "query=nowhere.txt"], "'nowhere.txt' names a file, but there"),
        (["query=my/old photos/anna.JPG"], "names a file, but there is none"),
        (["query=anna.png"], "names a file, but there is none"),
        (["query=my sentences.txt"], "names a file, but there is none"),
        (["query=/dev/null"], "names what is no such file"),
        (["query=a man", "k=0"], "k=0 must be 1 or more"),
        (["query=\u200b"], "has nothing that the model reads"),
        (["query=a man", "images="], "images is empty, as of a shell variable"),
        (["query=a man", "boxes="], "boxes is empty, as of a shell variable"),
        (["query=a man", "dtype=float32"], "dtype says how an index is made"),
        (["query=a man", "dtype=int8"], "dtype 'int8' is not one of float16, float32"),
        (["query=a man", "fit=stretch"], "fit 'stretch' is not one of squeeze"),
        (["query=a man", "size=(3,)"], "must be a height and a width"),
        (["query=a man", "threads=0"], "threads=0 must be 1 or more"),
        (["query=a man", "batch_size=-1"], "batch_size=-1 must be 0 or more"),
        (["query=a man", "boxes=x.csv"], "boxes says how an index is made"),
        (["query=a man", "content=True"], "content says how an index is made"),
        (["query=a man", "overwrite=True"], "overwrite says how an index is made"),
        (["query=a man", "size=(48,16)"], "size says how an index is made"),
        ([], "nothing is asked of it"),
    ],
)
def test_what_is_asked_amiss_is_refused_before_anything_is_written(index, fields, said):
    before = captioning.files_of(index)
    assert said in answering.refused(index, *fields)
    assert captioning.files_of(index) == before


def test_no_index_and_no_images(tmp_path):
    said = answering.refused(tmp_path / "index", "query=a man")
    assert "holds no index" in said and "--config.images=FOLDER" in said
    assert not (tmp_path / "index").exists()


def test_images_without_a_model(crops, tmp_path):
    said = answering.refused(tmp_path / "index", f"images={crops}")
    assert "no model to make an index with" in said
    assert not (tmp_path / "index").exists()


def test_images_that_are_not_there(clip, tmp_path):
    nowhere = tmp_path / "nowhere"
    fields = f"model={clip}", f"images={nowhere}"
    assert str(nowhere) in answering.refused(tmp_path / "index", *fields)


def test_a_model_that_is_not_there(crops, tmp_path):
    fields = f"model={tmp_path}/none", f"images={crops}"
    said = answering.refused(tmp_path / "index", *fields)
    assert f"no file or folder {tmp_path}/none" in said


def test_a_picture_that_cannot_be_read(index, tmp_path):
    (tmp_path / "odd.jpg").write_bytes(b"no picture")
    (tmp_path / "bomb.png").write_bytes(captioning.bomb())
    (tmp_path / "half.jpg").write_bytes(searching.jpeg(3)[:300])
    for name in ("odd.jpg", "bomb.png", "half.jpg"):
        said = answering.refused(index, f"query={tmp_path / name}")
        assert f"{tmp_path / name} cannot be read (" in said


def test_a_text_file_without_a_sentence_and_one_that_is_no_text(index, tmp_path):
    (tmp_path / "empty.txt").write_text("\ufeff\r\n \n")
    (tmp_path / "latin.txt").write_bytes("ein Mädchen".encode("latin-1"))
    said = answering.refused(index, f"query={tmp_path / 'empty.txt'}")
    assert "holds no sentence" in said
    said = answering.refused(index, f"query={tmp_path / 'latin.txt'}")
    assert "is no UTF-8 text" in said


def test_a_file_of_another_kind(index, tmp_path):
    (tmp_path / "asked.csv").write_text("a man\n")
    said = answering.refused(index, f"query={tmp_path / 'asked.csv'}")
    assert "names what is no such file" in said


def test_a_folder_where_a_file_is_named(index, tmp_path):
    (tmp_path / "anna.jpg").mkdir()
    said = answering.refused(index, f"query={tmp_path / 'anna.jpg'}")
    assert "names what is no such file" in said
    assert "names what is no such file" in answering.refused(index, f"query={tmp_path}")


def test_workdir_or_out_is_a_file(index, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    assert "--workdir" in answering.refused(file, "query=a man")
    said = answering.refused(index, "query=a man", f"out={file}")
    assert f"--config.out={file} is a file" in said


def test_a_folder_that_answers_cannot_be_written_to(index, tmp_path, monkeypatch):
    access, refused = os.access, [tmp_path]
    monkeypatch.setattr(
        os, "access", lambda at, *mode: at not in refused and access(at, *mode)
    )
    said = answering.refused(index, "query=a man", f"out={tmp_path / 'a' / 'b'}")
    assert f"{tmp_path} cannot be written" in said and "--config.out=DIR" in said
    refused[:] = [index]
    assert f"{index} cannot be written" in answering.refused(index, "query=a man")


@pytest.mark.parametrize("limit", ["0", "inf", "nan"])
def test_a_limit_of_uploads_that_is_none(index, limit):
    pytest.importorskip("gradio")
    said = answering.refused(index, "serve=True", f"demo.upload_mb={limit}")
    assert "demo.upload_mb is" in said and "such as 8" in said


def test_an_index_in_a_store_or_among_a_models_files_is_refused(clip, crops, tmp_path):
    fields = f"model={clip}", f"images={crops}"
    assert "no local folder" in answering.refused("gs://bucket/index", *fields)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"job": "pretrain", "model": {}}')
    for model in (run, clip):
        assert "is a model's folder" in answering.refused(model, *fields)


@pytest.mark.parametrize(
    ("field", "package", "extra"),
    [("serve=True", "gradio", "demo"), ("faiss=x", "faiss", "faiss")],
)
def test_what_is_not_installed_is_named_before_anything_begins(
    field, package, extra, index
):
    found = importlib.util.find_spec

    def without(name: str, *more):
        return None if name == package else found(name, *more)

    with mock.patch.object(importlib.util, "find_spec", without):
        said = answering.refused(index, "query=a man", field)
    assert f"needs {package}" in said and f"pip install '.[{extra}]'" in said


def test_several_processes(index):
    with mock.patch.object(jax, "process_count", lambda: 2):
        said = answering.refused(index, "query=a man")
    assert "search needs one process" in said


def test_an_unknown_variant(tmp_path):
    code, output = answering.finetuning.here(
        "--config=configs/search.py:clip_b16", f"--workdir={tmp_path}"
    )
    assert code == 1 and "unknown variant 'clip_b16'" in output


# --- a model that is another one now -------------------------------------------------


def test_a_run_that_went_on_is_another_model_and_its_step_can_be_named(
    persons, crops, tmp_path
):
    run, folder = tmp_path / "run", tmp_path / "index"
    section = rundirs.section("vit_b16", image=dict(layers=1), text=dict(layers=1))
    with answering.finetuning.on(1):
        rundirs.make_run(run, section, tokenizers.load(persons / "tokenizer"))
    encoder = unipt_jax.load(run, mesh=helpers.mesh_of(1))
    parts = encoder.identity | {"weights": "those of step 2"}
    before = dict(said=f"{run} step 2", fingerprint="its own", parts=parts)
    fields = encoder, run, crops
    model, rows = answering.model_of(encoder, run, **before), [searching.unit_rows(20)]
    answering.write_index(folder, *fields, model=model, rows=rows)
    said = answering.refused(folder, "query=a man")
    assert f"made with {run} step 2" in said and f"{run} step 3 is another" in said
    assert "differ in weights," in said
    assert "--config.checkpoint=STEP" in said and "overwrite=True" in said
    said = answering.refused(folder, "query=a man", "checkpoint=2")
    assert "has no checkpoint '2'" in said
    model = answering.model_of(encoder, run, checkpoint="2")  # now gone from there
    answering.write_index(folder, *fields, model=model, rows=rows)
    assert "no checkpoint '2'" in answering.refused(folder, "query=a man")
    answering.done(folder, "query=a man", "words=False", "checkpoint=3")
    answering.done(folder, "query=a man", "words=False", f"model={run}")
