"""The evaluate job: what it opens, in which order, and what it leaves in its folder."""

import dataclasses
import html.parser
import io
import json
import re
import types

import helpers
import jax
import numpy as np
import pytest
import rundirs
from PIL import Image

from configs import evaluate as evaluate_config
from unipt_jax import encoder as encoders
from unipt_jax import evaluate, retrieval, systems
from unipt_jax.data import tokenizers
from unipt_jax.data.records import PersonRecord, Records
from unipt_jax.errors import UserError
from unipt_jax.scoring import Protocol

NAMES = ("rank1", "rank5", "rank10", "map", "minp")


BATCH = 24  # of 8 devices; neither 32 images nor 64 captions are full batches of it


@pytest.fixture(scope="module")
def opened(persons, tmp_path_factory):
    """An encoder of random weights, by the number of devices it is on."""
    folder = tmp_path_factory.mktemp("made") / "run"
    small = dict(image=dict(layers=1), text=dict(layers=1))
    section = rundirs.section("vit_b16", **small)
    rundirs.make_run(folder, section, tokenizers.load(persons / "tokenizer"))
    return {n: encoders.load(folder, mesh=helpers.mesh_of(n)) for n in (1, 8)}


def config(**fields):
    out = evaluate_config.get_config().unlock()
    out.update(examples=2, bootstrap=20, batch_size=16)
    out.update(fields)
    return out


class Links(html.parser.HTMLParser):
    """All that a page points to."""

    def __init__(self, text):
        super().__init__()
        self.found, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.found.append(value)
            elif name in ("src", "href", "xlink:href", "srcset", "data"):
                self.loads.append(value)


# --- embedding -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(opened, persons):
    """The set, and its embeddings as they come from the encoder's own two methods."""
    data = retrieval.read_set(persons, "test")
    images = [Image.open(io.BytesIO(record.image)) for record in data.records]
    queries = opened[1].encode_text(data.queries, batch_size=BATCH)
    return data, queries, opened[1].encode_image(images, batch_size=BATCH)


@pytest.mark.parametrize("devices", [1, 8])
def test_embeddings_are_those_of_the_encoder_on_any_number_of_devices(
    opened, embedded, devices
):
    data, queries, gallery = embedded
    found = retrieval.embed_set(opened[devices], data, batch_size=BATCH, threads=2)
    np.testing.assert_allclose(found[0], queries, atol=1e-6)
    np.testing.assert_allclose(found[1], gallery, atol=1e-6)


def test_a_set_of_some_labels_has_those_persons_alone(persons):
    records = Records(persons, "train", PersonRecord)
    labels = np.array([records[i].label for i in range(len(records))])
    wanted = np.unique(labels)[1::2]
    data = retrieval.read_set(persons, "train", labels=wanted)
    kept = np.flatnonzero(np.isin(labels, wanted))
    assert 0 < len(kept) < len(records)
    assert [r.image_id for r in data.records] == [records[i].image_id for i in kept]
    assert data.person_ids.tolist() == [records[i].person_id for i in kept]
    own = [c for i in kept for c in records[i].captions]
    assert list(data.queries) == own
    of_image = [data.records[i].captions for i in data.query_image]
    assert all(q in c for q, c in zip(data.queries, of_image, strict=True))


def test_a_split_without_captions_is_one_sentence(persons):
    with pytest.raises(UserError, match="'pretrain' of .* has no captions"):
        retrieval.read_set(persons, "pretrain")


# --- the job with models that are quick to open --------------------------------------


class Stage:
    """Stands for the models: what is opened and embedded, in order."""

    def __init__(self, monkeypatch, selected_on="val"):
        self.log, self.selected_on = [], selected_on
        monkeypatch.setattr(systems, "check", self.check)
        monkeypatch.setattr(encoders, "load", self.load)
        monkeypatch.setattr(evaluate, "embed_set", self.embed)

    def check(self, model, checkpoint):
        self.log.append(f"check {model}")
        if "broken" in model:
            raise UserError(f"{model} is broken")
        return "clip" if "clip" in model else "run"

    def load(self, name, *, checkpoint, mesh, **way):
        self.log.append(f"load {name}")
        self.way = way
        chosen = dict(selected_on=self.selected_on, mesh=mesh)
        return types.SimpleNamespace(name=f"{name} step 3", seed=len(name), **chosen)

    def embed(self, encoder, data, *, batch_size, threads):
        self.log.append(f"embed {encoder.name} {data.name}")
        rng = np.random.default_rng(encoder.seed)
        centre = rng.standard_normal((99, 6))
        both = []
        for ids in (data.query_ids, data.person_ids):
            x = centre[ids] + 0.7 * rng.standard_normal((len(ids), 6))
            both.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4"))
        return both


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


@pytest.fixture
def seeds(tmp_path):
    """Two run directories, by a pattern."""
    for name in ("seed1", "seed22"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"job": "x", "model": {}}')
    return f"{tmp_path}/seed*"


def read(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_systems_on_sets_are_a_matrix_with_a_page_on_each_pair(
    stage, seeds, persons, tmp_path, capsys
):
    out = tmp_path / "out"
    job = config(model=f"{seeds},two=second", rows="markdown,latex", examples=1)
    job.data.records = f"{persons},{persons}:val"
    evaluate.run(job, str(out))

    found = read(out)
    pairs = [(a, b) for a in ("seed*", "two") for b in ("set/test", "set/val")]
    assert list(found) == [f"{a} on {b}" for a, b in pairs]
    assert [(e["system"], e["set"]) for e in found.values()] == pairs
    for entry in found.values():
        assert {*NAMES, "queries", "gallery", "image_to_text", "slices"} <= set(entry)
    assert len(found["seed* on set/test"]["runs"]) == 2
    assert "runs" not in found["two on set/test"]

    printed = capsys.readouterr().out
    assert f"{found['two on set/val']['map']:.2f}" in printed.split("mAP, text to")[1]
    page = Links((out / "report.html").read_text())
    assert len(page.found) == 4 and all(load[0] == "#" for load in page.loads)
    for (system, data), link in zip(pairs, page.found, strict=True):
        detail = (out / link).read_text()
        assert data in detail and system in detail
        loads = Links(detail).loads
        assert loads and all(re.match("data:image/|#", load) for load in loads)
    assert "two" in (out / "rows.md").read_text()
    assert "two" in (out / "rows.tex").read_text()
    assert not [file for file in out.iterdir() if file.name.endswith(".partial")]


def test_each_model_is_opened_once_and_all_are_looked_at_before(
    stage, seeds, persons, tmp_path
):
    job = config(model=f"{seeds},second", examples=0, bootstrap=0)
    job.data.records = f"{persons},{persons}:val"
    evaluate.run(job, str(tmp_path / "out"))
    folder = seeds.removesuffix("/seed*")
    models = [f"{folder}/seed1", f"{folder}/seed22", "second"]
    expected = [f"check {model}" for model in models]
    for model in models:
        sets = [f"embed {model} step 3 set/{split}" for split in ("test", "val")]
        expected += [f"load {model}", *sets]
    assert stage.log == expected


def test_runs_of_another_config_or_the_same_seed_are_told_in_every_output(
    stage, seeds, persons, tmp_path, capsys
):
    for name, rate in (("seed1", 0.1), ("seed22", 0.2)):
        config_of_run = {"job": "x", "model": {}, "seed": 3, "lr": rate}
        (tmp_path / name / "config.json").write_text(json.dumps(config_of_run))
    job = config(model=seeds, examples=0, bootstrap=0)
    job.data.records = str(persons)
    evaluate.run(job, str(tmp_path / "out"))
    [entry] = read(tmp_path / "out").values()
    differ, same = entry["notes"]
    assert "lr 0.1 (seed1) and 0.2 (seed22)" in differ and "same seed, 3" in same
    page = (tmp_path / "out" / "report.html").read_text()
    assert differ in page and same in page
    printed = capsys.readouterr().out
    assert printed.count(differ) == printed.count(same) == 2  # before and after


@pytest.mark.parametrize("last", ["first step 3 set/val", "second step 3 set/test"])
def test_a_failure_late_in_the_matrix_costs_no_figure_before_it(
    stage, persons, tmp_path, monkeypatch, last
):
    def fail_last(encoder, data, **reading):
        if f"{encoder.name} {data.name}" == last:
            raise UserError("a damaged image")
        return stage.embed(encoder, data, **reading)

    monkeypatch.setattr(evaluate, "embed_set", fail_last)
    job = config(model="first,second", examples=0, bootstrap=0)
    job.data.records = f"{persons},{persons}:val"
    with pytest.raises(UserError, match="a damaged image"):
        evaluate.run(job, str(tmp_path / "out"))
    known = ["first on set/test", "first on set/val"]
    assert list(read(tmp_path / "out")) == known[: 1 if "first" in last else 2]


@pytest.mark.parametrize(
    ("model", "records", "words"),
    [
        ("first,broken", "{0}", "broken is broken"),
        ("first", "{0},{0}:none", "has no split 'none'"),
        ("first", "{0},{0}:pretrain", "'pretrain' of .* has no captions"),
        ("first,none*", "{0}", "'none\\*' matches nothing"),
    ],
)
def test_a_slip_in_the_last_name_costs_nothing(
    stage, persons, tmp_path, model, records, words
):
    job = config(model=model)
    job.data.records = records.format(persons)
    with pytest.raises(UserError, match=words):
        evaluate.run(job, str(tmp_path / "out"))
    assert not [line for line in stage.log if not line.startswith("check")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(rows="markdown,html"), "rows 'html' is not one of markdown, latex"),
        (dict(examples=-1), "examples=-1 must be 0 or more"),
        (dict(seed=-1), "seed=-1 must be 0 or more"),
        (dict(fit="stretch"), "fit 'stretch' is not one of"),
        (dict(batch_size=12), "batch_size=12 must be a positive multiple of the 8"),
        (dict(without_match="no"), "without_match 'no' is not one of"),
    ],
)
def test_a_field_that_means_nothing_is_one_sentence(
    stage, persons, tmp_path, fields, words
):
    job = config(model="first", **fields)
    job.data.records = str(persons)
    with pytest.raises(UserError) as caught:
        evaluate.run(job, str(tmp_path / "out"))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not [line for line in stage.log if not line.startswith("check")]


def test_a_workdir_that_is_a_file_is_one_sentence(stage, persons, tmp_path):
    (tmp_path / "out").write_text("")
    job = config(model="first")
    job.data.records = str(persons)
    with pytest.raises(UserError, match="out is a file; give a folder"):
        evaluate.run(job, str(tmp_path / "out"))
    assert stage.log == ["check first"]


def test_a_single_pair_is_one_page_and_an_entry_by_the_set_s_name(
    stage, persons, tmp_path
):
    job = config(model="first")
    job.data.records = str(persons)
    evaluate.run(job, str(tmp_path / "out"))
    assert list(read(tmp_path / "out")) == ["set/test"]
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"evaluation.json", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<q>") == 6 and "first step 3" in page


def test_size_and_fit_are_for_clip_alone_where_there_is_one(stage, persons, tmp_path):
    def way(model):
        job = config(model=model, fit="crop", examples=0, bootstrap=0)
        job.data.records = str(persons)
        evaluate.run(job, str(tmp_path / "out"))
        return stage.way

    assert way("a_clip,a_run") == {}
    assert way("a_run,a_clip") == {"size": None, "fit": "crop"}
    assert way("a_run") == {"size": None, "fit": "crop"}  # refused by the run itself


@pytest.mark.parametrize(
    ("chosen", "trained", "split", "warned"),
    [
        ("test", "{0}", "test", True),
        ("test", "{0}/", "test", True),
        ("test", "elsewhere", "test", False),
        ("val", "{0}", "test", False),
        ("val", "{0}", "val", True),
        ("last step", "{0}", "test", False),
        ("", "{0}", "test", False),
    ],
)
def test_a_checkpoint_chosen_on_the_reported_set_is_warned_of(
    stage, persons, tmp_path, capsys, chosen, trained, split, warned
):
    run = tmp_path / "run"
    run.mkdir()
    records = {"records": trained.format(persons)}
    (run / "config.json").write_text(
        json.dumps({"job": "x", "model": {}, "data": records})
    )
    stage.selected_on = chosen
    job = config(model=str(run), examples=0, bootstrap=0)
    job.data.update(records=str(persons), split=split)
    evaluate.run(job, str(tmp_path / "out"))
    [entry] = read(tmp_path / "out").values()
    assert entry["selected_on"] == chosen and entry["selected_here"] is warned
    page = (tmp_path / "out" / "report.html").read_text()
    for text in (capsys.readouterr().out, page):
        assert ("by its figures on" in text) is warned
        assert (f"checkpoint chosen on: {chosen}" in text) is bool(chosen)


def test_other_processes_write_and_print_nothing(
    stage, persons, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    job = config(model="first", rows="latex")
    job.data.records = str(persons)
    evaluate.run(job, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


# --- a run at its end ----------------------------------------------------------------


def test_a_run_s_report_is_what_the_job_says_of_it(opened, embedded, tmp_path):
    data, queries, gallery = embedded
    encoder = dataclasses.replace(opened[8], selected_on="test")
    sizes = dict(batch_size=BATCH, threads=2)
    options = evaluate.Options(protocol=Protocol(bootstrap=20), examples=2, **sizes)
    returned = evaluate.report_run(tmp_path / "mine", encoder, [data], options)
    found = read(tmp_path / "mine")
    assert returned == found and list(found) == ["set/test"]
    entry = found["set/test"]
    assert entry["system"] == "mine" and entry["selected_here"] is True
    # Which image is nearest, without anything of ours.
    nearest = np.argmax(queries @ gallery.T, axis=1)
    hits = data.person_ids[nearest] == data.query_ids
    assert entry["rank1"] == pytest.approx(100 * hits.mean())
    assert entry["queries"] == len(queries) == 64 and entry["gallery"] == 32
    figures = evaluate.figures(encoder, data, **sizes)
    assert {name: figures[name] for name in NAMES} == {n: entry[n] for n in NAMES}
    page = (tmp_path / "mine" / "report.html").read_text()
    assert page.count("<q>") == 6 and "by its figures on set/test itself" in page
