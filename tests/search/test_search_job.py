"""The search job as the command line has it: an index is made, kept up, and asked."""

import errno
import json
import shutil
import sys
import types
from unittest import mock

import answering
import captioning
import helpers
import numpy as np
import pytest
import searching
from PIL import Image

import unipt_jax
from configs import search as config_of_search
from unipt_jax.errors import UserError
from unipt_jax.search import job, searcher, words


@pytest.fixture(scope="module")
def made(clip, crops, tmp_path_factory):
    """An index of the 20 crops that the job made, and what it said."""
    folder = tmp_path_factory.mktemp("job") / "index"
    said = answering.done(
        folder, f"model={clip}", f"images={crops}", "query=a woman with a bag", "k=3"
    )
    return folder, said


@pytest.fixture
def index(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made[0], tmp_path / "index")


def paths(folder, query: int = 0) -> list[str]:
    """The paths that a query found, best first."""
    found = answering.results(folder)["queries"][query]["results"]
    return [row["path"] for row in found]


def test_one_command_makes_an_index_and_answers(made, crops):
    folder, said = made
    found = answering.results(folder)
    assert found["entries"] == 20 and found["index"] == str(folder)
    [one] = found["queries"]
    opened = unipt_jax.open_index(folder, mesh=helpers.mesh_of(1))
    hits = opened.by_text(["a woman with a bag"], 3)[0]
    assert [row["path"] for row in one["results"]] == [hit.crop.path for hit in hits]
    for row, hit in zip(one["results"], hits, strict=True):
        assert row["score"] == pytest.approx(hit.score, abs=2e-5)
        assert f"{hit.rank:>4}  {hit.score:6.3f}  {crops / hit.crop.path}" in said
    assert (folder / "results.html").read_text().count("data:image/jpeg") == 3
    assert f"see {folder}/results.html" in said and words.LEGEND in said
    assert not list(folder.glob("*.partial"))


def test_the_index_alone_answers_and_eight_devices_answer_alike(made, index):
    shutil.rmtree(index / "results.html", ignore_errors=True)
    before = answering.results(index)
    said = answering.done(index, "query=a woman with a bag", "k=3", devices=8)
    after = answering.results(index)
    assert "embedded" not in said
    [old], [new] = before["queries"], after["queries"]
    assert [row["path"] for row in old["results"]] == paths(index)
    for a, b in zip(old["results"], new["results"], strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=2e-5)
        np.testing.assert_allclose(a["words"], b["words"], atol=4e-5)


def test_sentences_come_as_they_are_typed(index):
    typed = ["a red coat, a bag", "3", "it's (red)", '"quoted", ["x"]', "None", " a "]
    answering.done(index, *(f"query={text}" for text in typed), "k=1", "words=False")
    said = [one["query"] for one in answering.results(index)["queries"]]
    assert said == [text.strip() for text in typed]


def test_files_of_sentences_and_pictures_are_asked_in_one_command(
    index, crops, tmp_path
):
    lines = tmp_path / "asked.txt"
    lines.write_text("\n".join(f"a man {i}" for i in range(120)))
    picture = answering.pictures(crops)[7]
    out = tmp_path / "out"
    said = answering.done(
        index, f"query={lines}", f"query={picture}", "k=2", f"out={out}"
    )
    found = answering.results(out)["queries"]
    assert len(found) == 121 and all(len(one["results"]) == 2 for one in found)
    assert paths(out, 120)[0] == str(picture.relative_to(crops))
    assert {len(one["words"]) for one in found[:120]} == {3}
    assert "and 71 more queries" in said
    assert "first 50 of 121 queries" in (out / "results.html").read_text()


def test_new_pictures_are_found_with_the_model_that_the_index_knows(clip, tmp_path):
    crops = searching.write_crops(tmp_path / "crops", 6)
    folder = tmp_path / "index"
    answering.done(folder, f"model={clip}", f"images={crops}")
    assert not (folder / "results.json").exists()
    Image.fromarray(np.full((50, 20, 3), 200, np.uint8)).save(crops / "new.png")
    (crops / "000.jpg").unlink()
    fields = f"images={crops}", f"query={crops / 'new.png'}", "k=9"
    answering.done(folder, *fields)
    assert paths(folder)[0] == "new.png"
    assert len(paths(folder)) == 6 and "000.jpg" not in paths(folder)


def test_several_folders_are_one_index(clip, tmp_path):
    first = searching.write_crops(tmp_path / "a", 3)
    second = tmp_path / "b"
    second.mkdir()
    (second / "000.jpg").write_bytes(searching.jpeg(77))
    folder = tmp_path / "index"
    fields = f"model={clip}", f"images={first}", f"images={second}"
    answering.done(folder, *fields, f"query={second / '000.jpg'}")
    rows = answering.results(folder)["queries"][0]["results"]
    assert [rows[0]["folder"], rows[0]["path"]] == [str(second), "000.jpg"]
    assert [row["folder"] for row in rows].count(str(first)) == 3


def test_boxes_are_what_is_found(clip, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    street = Image.new("RGB", (90, 60), "white")
    for left, seed in ((0, 3), (40, 4)):
        street.paste(Image.fromarray(captioning.pixels(seed, 60, 24)), (left, 0))
    street.save(folder / "street.png")
    csv = tmp_path / "boxes.csv"
    csv.write_text("path,x,y,w,h\nstreet.png,0,0,24,60\nstreet.png,40,0,24,60\n")
    Image.fromarray(captioning.pixels(4, 60, 24)).save(tmp_path / "asked.png")
    fields = f"model={clip}", f"images={folder}", f"boxes={csv}"
    answering.done(tmp_path / "index", *fields, f"query={tmp_path / 'asked.png'}")
    rows = answering.results(tmp_path / "index")["queries"][0]["results"]
    assert [row["box"] for row in rows] == [[40, 0, 24, 60], [0, 0, 24, 60]]
    assert rows[0]["score"] == pytest.approx(1, abs=1e-3)  # float16 rows


def test_overwrite_makes_an_index_of_another_model_anew(index, clip, crops, tmp_path):
    other = shutil.copytree(clip, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["pixels"]["fit"] = "pad"
    (other / "config.json").write_text(json.dumps(config))
    fields = f"model={other}", f"images={crops}"
    said = answering.refused(index, *fields)
    assert "fit" in said and "overwrite=True" in said
    answering.done(index, *fields, "overwrite=True", "query=a man")
    assert answering.results(index)["model"] == str(other)
    assert unipt_jax.open_index(index).encoder.fit == "pad"


def test_what_the_command_says_reaches_the_update_and_the_searcher(
    index, clip, crops, tmp_path
):
    said = dict(dtype="float32", threads=3, content=True, boxes="x.csv")
    flags = [f"{name}={value}" for name, value in said.items()]
    flags += [f"model={clip}", "checkpoint=7", "batch_size=5"]
    stop = UserError("far enough")
    with mock.patch.object(job, "update", side_effect=stop) as update:
        code, output = answering.job(tmp_path, f"images={crops}", *flags, devices=8)
    assert code == 1 and "far enough" in output
    encoder, model, folder = update.call_args.args
    assert folder == tmp_path and update.call_args.kwargs == said | dict(
        images=(str(crops),), batch_size=40, overwrite=False
    )
    assert model == answering.model_of(encoder, clip, checkpoint="7")
    with mock.patch.object(searcher, "make", wraps=searcher.make) as make:
        answering.done(index, "query=a man", "approximate=True")
        answering.done(index, "query=a man")
    assert [one.kwargs["approximate"] for one in make.call_args_list] == [True, False]


def test_serve_opens_the_page_on_the_index(index):
    page = types.SimpleNamespace(
        serve=mock.Mock(), check_limit=mock.Mock(), __spec__=mock.Mock()
    )
    modules = {"unipt_jax.search.demo": page, "gradio": page}
    with (
        mock.patch.dict(sys.modules, modules),
        mock.patch("unipt_jax.search.demo", page, create=True),
    ):
        fields = "demo.port=7999", "demo.upload_mb=0.5"
        answering.done(index, "serve=True", *fields)
    [call] = page.serve.call_args_list
    assert call.kwargs == dict(host="127.0.0.1", port=7999, upload_mb=0.5)
    assert len(call.args[0].by_text(["a man"], 2)[0]) == 2


def test_an_answer_is_printed_even_where_the_disk_is_full(index):
    full = OSError(errno.ENOSPC, "No space left on device", "results.json")
    before = answering.results(index)
    with mock.patch.object(job.rundir, "write_json", side_effect=full):
        code, said = answering.job(index, "query=an old man", "k=2", "words=False")
    assert code == 1 and "the disk is full" in said and "Traceback" not in said
    assert "  rank   score  path" in said.split("error: ")[0]
    assert answering.results(index) == before


def test_results_go_to_a_folder_of_the_home(index, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    answering.done(index, "query=a man", "k=1", "words=False", "out=~/found")
    assert len(paths(tmp_path / "found")) == 1


def test_the_dtype_of_the_index_stays_where_none_is_said(clip, tmp_path):
    crops, folder = searching.write_crops(tmp_path / "crops\x1b[2J", 3), tmp_path / "i"
    said = answering.done(folder, f"model={clip}", f"images={crops}", "dtype=float32")
    assert "\x1b" not in said and "crops\\x1b[2J" in said
    answering.done(folder, f"images={crops}")
    assert unipt_jax.open_index(folder).index.embeddings.dtype == np.float32


def test_faiss_gets_the_vectors_of_the_index(index, tmp_path):
    faiss = pytest.importorskip("faiss")
    answering.done(index, f"faiss={tmp_path / 'crops.faiss'}")
    flat = faiss.read_index(str(tmp_path / "crops.faiss"))
    rows = np.asarray(unipt_jax.open_index(index).index.embeddings, np.float32)
    np.testing.assert_array_equal(flat.reconstruct_n(0, flat.ntotal), rows)
    assert "queries" in answering.results(index)  # those of before, not touched


def test_the_quickstart_asks_the_quickstarts_model_and_pictures():
    config = config_of_search.get_config("quickstart")
    assert config.model == "runs/quickstart/finetune"
    assert tuple(config.images) == ("data/synthetic/pictures",)
    assert config.get_type("images") is config.get_type("query")  # both verbatim
