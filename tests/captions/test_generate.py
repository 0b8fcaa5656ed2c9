"""The caption job: what it writes, that training takes it, and who writes it."""

import dataclasses
import json
import shutil

import captioning
import numpy as np
import pytest

from unipt_jax.captions import compose
from unipt_jax.captions.conquer import STEPS
from unipt_jax.captions.lexicon import OPTIONAL
from unipt_jax.data import records, tokenizers
from unipt_jax.data.pipeline import TrainBatches
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records


@pytest.fixture(scope="module")
def aligned(captioner, persons, tmp_path_factory):
    """Captions of a record set."""
    job = captioner.of(data__images="", data__records=persons, shard=64)
    return job.make(tmp_path_factory.mktemp("aligned") / "captions")


def read(folder, kind):
    return list(Records(folder, "pretrain", kind))


def train_two_steps(launcher, workdir, people, captions):
    """Pre-training as a process; the losses of two steps."""
    code, output = launcher.run(
        workdir,
        *(f"--config.data.records={people}", f"--config.data.captions={captions}"),
        *("--config.steps=2", "--config.every.save=0"),
    )
    assert code == 0, output
    losses = captioning.jobs.losses(workdir)
    assert list(losses) == [1, 2] and np.isfinite(list(losses.values())).all()


# --- what is written -----------------------------------------------------------------


def test_captions_of_a_record_set_stand_where_its_images_do(aligned, persons):
    people, made = read(persons, PersonRecord), read(aligned, CaptionRecord)
    assert [row.image_id for row in made] == [person.image_id for person in people]
    assert all(len(row.captions) == 3 for row in made)
    assert records.splits(aligned) == {"pretrain": len(people)} == {"pretrain": 160}
    assert not (aligned / "records").exists()
    assert list(captioning.rows_of(aligned)) == [row.image_id for row in made]
    assert records.metadata(aligned)["captioned"] == 160


def test_batches_pair_each_image_with_a_caption_made_for_it(aligned, persons):
    tokenizer = tokenizers.load(persons / "tokenizer")
    batches = TrainBatches(
        Records(persons, "pretrain", PersonRecord),
        Records(aligned, "pretrain", CaptionRecord),
        tokenizer,
        batch_size=16,
        rows=np.arange(16),
        size=(48, 16),
        lengths=(64, 128),
        seed=0,
    )
    assert len(batches) == 160 and batches.without_caption == 0
    batch = next(batches.from_step(0, threads=1, buffer=1))
    made = captioning.rows_of(aligned)
    for image_id, row in zip(batches.image_ids(0), batch["tokens"], strict=True):
        ids, _ = tokenizer.encode(made[image_id]["captions"], 128)
        assert row[row != tokenizer.pad].tolist() in [x.tolist() for x in ids]


@pytest.mark.slow
def test_pretraining_takes_a_set_with_its_new_captions(
    launcher, aligned, persons, tmp_path
):
    train_two_steps(launcher, tmp_path / "run", persons, aligned)


def test_pretraining_takes_a_folder_of_images_that_was_no_set_before(
    launcher, whole, tmp_path
):
    train_two_steps(launcher, tmp_path / "run", whole / "records", whole)


def test_a_folder_becomes_records_and_captions_that_belong_together(whole, photos):
    people, made = read(whole / "records", PersonRecord), read(whole, CaptionRecord)
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    assert len(names) == 43
    assert [p.image_id for p in people] == [c.image_id for c in made] == names
    for person in people:  # plain JPEGs pass as they are
        assert person.image == (photos / person.image_id).read_bytes()
        assert person.file_path == person.image_id
        assert person.person_id == person.label == records.UNKNOWN


def test_the_lines_and_the_luperson_t_file_say_what_the_records_say(whole):
    made = read(whole, CaptionRecord)
    text = (whole / "captions.jsonl").read_text()
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert [row["index"] for row in rows] == list(range(43))
    for row, record in zip(rows, made, strict=True):
        assert row["image_id"] == row["file_path"] == record.image_id
        assert tuple(row["captions"]) == record.captions
        assert row["evidence"] == record.evidence
        assert len(row["templates"]) == 3
    assert (whole / "skipped.jsonl").read_text() == ""
    table = json.loads((whole / "luperson_t.json").read_text())
    assert table == [
        {"file_path": row["file_path"], "captions": row["captions"]} for row in rows
    ]


def test_three_captions_of_an_image_differ_and_one_is_the_first_of_the_three(
    captioner, whole, tmp_path
):
    rows = captioning.rows_of(whole)
    assert all(len(set(row["captions"])) == 3 for row in rows.values())
    one = captioner.of(captions_per_image=1, luperson_t=False, keep_records=False)
    one = one.make(tmp_path / "one")
    assert not (one / "luperson_t.json").exists() and not (one / "records").exists()
    for image_id, row in captioning.rows_of(one).items():
        assert row["captions"] == rows[image_id]["captions"][:1]


def test_evidence_has_the_phrases_that_the_captions_are_made_of(whole, words):
    thresholds = json.loads((whole / "calibration.json").read_text())["thresholds"]
    told = 0
    for image_id, row in captioning.rows_of(whole).items():
        assert list(row["evidence"]) == list(words.attributes)
        chosen = {}
        for name, found in row["evidence"].items():
            steps = found["probability"] * STEPS
            assert abs(steps - round(steps)) < 1e-6 and 0 <= steps <= STEPS
            if name in OPTIONAL and round(steps) <= thresholds[name]:
                assert found["phrase"] == found["value"] == ""
                continue
            told += name in OPTIONAL
            [phrase] = [
                p
                for p in words.attributes[name].phrases
                if (p.value, p.text) == (found["value"], found["phrase"])
            ]
            chosen[name] = phrase
        again = compose.captions(words, chosen, seed=0, image_id=image_id, count=3)
        assert [caption.text for caption in again] == row["captions"]
        assert [caption.template for caption in again] == row["templates"]
    assert 10 < told < 43 * len(OPTIONAL) // 2


# --- a list of paths -----------------------------------------------------------------


def test_a_list_takes_paths_from_its_own_folder_and_absolute_ones(
    captioner, whole, photos, tmp_path
):
    """In the order of the list; blank lines, CR and a byte order mark do not count."""
    names = ["000.jpg", "cam1/b/006.jpg", "cam1/001.jpg", "line\u2028apart.jpg"]
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / names[3]).write_bytes(captioning.jpeg(3))
    absolute = str(photos / "cam1" / "005.jpg")
    lines = [*names[:2], "", absolute, *names[2:]]
    listed = tmp_path / "photos" / "list.txt"
    listed.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    job = captioner.of(data__images=listed, calibrate__images=0)
    rows = captioning.rows_of(job.make(tmp_path / "out"))
    assert list(rows) == [*names[:2], absolute, *names[2:]]
    assert not captioning.skipped_of(tmp_path / "out")
    before = captioning.rows_of(whole)
    for name in names[:3]:
        assert_same_findings(rows[name], before[name])
    assert_same_findings(rows[absolute], before["cam1/005.jpg"])


def assert_same_findings(row, other):
    """Of the same picture at another place in its batch: to the last digit or two."""
    for name, found in row["evidence"].items():
        there = other["evidence"][name]["probability"]
        assert found["probability"] == pytest.approx(there, abs=2.1 / STEPS), name


# --- calibration ---------------------------------------------------------------------


def test_thresholds_reach_their_targets_on_the_sample_and_are_the_ones_used(
    whole, photos
):
    said = json.loads((whole / "calibration.json").read_text())
    assert said["images"] == 20
    assert said["targets"]["bag"] == 0.5 and said["targets"]["hat"] == 0.3
    rows = list(captioning.rows_of(whole).values())
    sample = [rows[i * 43 // 20] for i in range(20)]
    for name, threshold in said["thresholds"].items():
        steps = [round(r["evidence"][name]["probability"] * STEPS) for r in sample]
        share = np.mean([s > threshold for s in steps])
        assert said["reached"][name] == pytest.approx(share, abs=1e-12)
        assert share == np.mean([bool(r["evidence"][name]["value"]) for r in sample])
        # of 20 different probabilities some threshold is within half an image
        slack = 0.5 if len(set(steps)) == 20 else 20
        assert abs(share - said["targets"][name]) <= slack / 20 + 1e-12
    summary = json.loads((whole / "captions.json").read_text())
    assert 0.3 < summary["found"]["bag"] / 43 < 0.7


def test_a_job_that_goes_on_takes_the_thresholds_that_were_written(captioner, tmp_path):
    job = captioner.of(calibrate__images=4)
    folder = job.make(tmp_path / "out")
    file = folder / "calibration.json"
    said = json.loads(file.read_text())
    said["thresholds"] = dict.fromkeys(said["thresholds"], STEPS)  # nothing is sure
    file.write_text(json.dumps(said))
    for done in folder.glob("*"):
        if done.name not in ("calibration.json", "config.json", "inputs.json"):
            shutil.rmtree(done) if done.is_dir() else done.unlink()
    code, output = job.here(folder)
    assert code == 0 and "bag 1," in output, output
    for row in captioning.rows_of(folder).values():
        assert not any(row["evidence"][name]["value"] for name in OPTIONAL)


# --- who writes it -------------------------------------------------------------------


def assert_equal(folder, expected):
    """All files, to the byte."""
    found, wanted = captioning.files_of(folder), captioning.files_of(expected)
    assert list(found) == list(wanted)
    assert [name for name in found if found[name] != wanted[name]] == []


def test_1_device_writes_what_8_write_to_the_byte(captioner, whole, tmp_path):
    assert_equal(captioner.make(tmp_path / "one"), whole)
    assert "skipped.jsonl" in captioning.files_of(whole)


@pytest.mark.slow
def test_2_processes_write_what_1_writes_to_the_byte(captioner, whole, tmp_path):
    processes = captioner.start_two(tmp_path / "two", devices=2)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_equal(tmp_path / "two", whole)


def test_a_damaged_record_keeps_its_place_without_captions(
    captioner, persons, tmp_path
):
    people = read(persons, PersonRecord)[:9]
    people[4] = dataclasses.replace(people[4], image=people[4].image[:300])
    bad = tmp_path / "set"
    records.write_set(bad, PersonRecord, {"pretrain": people}, metadata={})
    job = captioner.of(data__images="", data__records=bad, calibrate__images=0)
    out = job.make(tmp_path / "out")
    made = read(out, CaptionRecord)
    assert [row.image_id for row in made] == [person.image_id for person in people]
    assert [len(row.captions) for row in made] == [3, 3, 3, 3, 0, 3, 3, 3, 3]
    assert list(captioning.skipped_of(out)) == [people[4].image_id]
    assert json.loads((out / "luperson_t.json").read_text())[4]["file_path"] == (
        people[5].file_path
    )
    assert records.metadata(out)["skipped"] == 1
