"""Mistakes that users make with captions: one sentence, exit code 1, nothing lost."""

import errno
import json
import shutil
import subprocess

import captioning
import pytest

from unipt_jax.captions import generate, pictures
from unipt_jax.data import folders, records
from unipt_jax.data.records import PersonRecord


def the_sentence(job, workdir, *, devices=1):
    """The one line of an error; fails on a traceback or another exit code."""
    code, output = job.here(workdir, devices=devices)
    assert code == 1, output
    assert "Traceback" not in output, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


SOURCES = {
    "nothing": ({}, "no images: give a folder or a list with --config.data.images"),
    "both": (dict(images="{images}", records="{set}"), "leave one of them empty"),
    "nowhere": (dict(images="{here}/nowhere"), "nowhere is not there; give a folder"),
    "no picture": (dict(images="{here}/empty"), "no image in"),
    "a set": (
        dict(images="{set}"),
        "is a record set; give it as --config.data.records=",
    ),
    "twice": (dict(images="{here}/twice.txt"), "twice.txt:4: 'b.jpg' is in line 2"),
    "no lines": (dict(images="{here}/blank.txt"), "names no image"),
    "one picture": (dict(images="{here}/one.jpg"), "one.jpg is no text"),
    "no set": (dict(records="{here}/empty"), "no record set at"),
    "no such set": (dict(records="{here}/nowhere"), "no record set at"),
    "no split": (dict(records="{set}", split="dev"), "has no split 'dev'; it has"),
    "captions": (dict(records="{set}/captions"), "not a set of PersonRecords"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_images_that_are_not_there_or_not_what_they_should_be(
    captioner, persons, photos, tmp_path, kind
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    (tmp_path / "twice.txt").write_text("a.jpg\nb.jpg\n\n b.jpg\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "one.jpg").write_bytes(captioning.jpeg(0))
    fields, expected = SOURCES[kind]
    places = dict(here=tmp_path, set=persons, images=photos)
    given = {"images": "", **fields}
    given = {f"data__{k}": v.format(**places) for k, v in given.items()}
    assert expected in the_sentence(captioner.of(**given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


NUMBERS = {
    "fit": ("cropp", "fit 'cropp' is not one of squeeze, crop, pad"),
    "batch_size": (-1, "batch_size=-1 must be 0 or more"),
    "shard": (0, "shard=0 must be 1 or more"),
    "captions_per_image": (0, "captions_per_image=0 must be 1 or more"),
    "data.threads": (-1, "data.threads=-1 must be 1 or more"),
    "examples": (-1, "examples=-1 must be 0 or more"),
    "calibrate.images": (-4, "calibrate.images=-4 must be 0 or more"),
    "threshold": (1.5, "threshold=1.5 must be a probability"),
    "calibrate.targets.hat": (1.2, "calibrate.targets.hat=1.2 must be the share"),
    "prompts": ("some", "prompts 'some' is not one of first, all"),
    "size": ((48, 0), "size=(48, 0) must be"),
    "dtype": ("float23", "dtype 'float23' is not one of float32, bfloat16"),
    "data.split": ("a b", "data.split 'a b' must be"),
    "seeds": (3, "seeds"),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_values_with_which_no_job_can_be_done(captioner, tmp_path, field):
    value, expected = NUMBERS[field]
    job = captioner.of(**{field.replace(".", "__"): value})
    assert expected in the_sentence(job, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threshold", ["nan", "1.0", "-0.1"])
def test_a_threshold_is_a_number_from_0_to_below_1(captioner, tmp_path, threshold):
    said = the_sentence(captioner.of(threshold=threshold), tmp_path / "out")
    assert "threshold=" in said


def test_a_target_of_what_is_never_lacking():
    from configs import caption

    config = caption.get_config().unlock()
    config.calibrate.targets.hair = 0.5
    with pytest.raises(ValueError, match="targets.hair=0.5 must be the share.*bag"):
        generate._check(config, "out")


def test_a_model_or_a_file_of_phrases_that_is_not_there(captioner, tmp_path):
    job = captioner.of(model=tmp_path / "nowhere")
    assert "nowhere" in the_sentence(job, tmp_path / "out")
    job = captioner.of(phrases=tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in the_sentence(job, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    job = captioner.of(model=tmp_path / "empty")
    assert "no run directory" in the_sentence(job, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_workdir_that_is_a_file_or_below_one(captioner, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file; give a folder" in the_sentence(captioner, file)
    assert "a part of this path is a file" in the_sentence(captioner, file / "out")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("place", ["", "captions"])
def test_a_workdir_that_is_a_set_of_somebody_elses(captioner, persons, tmp_path, place):
    before = captioning.files_of(persons)
    job = captioner.of(data__images="", data__records=persons)
    assert "that no caption job made" in the_sentence(job, persons / place)
    assert captioning.files_of(persons) == before


def test_a_workdir_that_is_read_only(captioner, small_disk):
    assert "read-only" in the_sentence(captioner, small_disk("ro") / "out")


def test_a_disk_that_is_full_goes_on_when_there_is_room(captioner, whole, small_disk):
    # A shard is 64 KB at the least, so that these are 12 of them.
    folder = small_disk("size=600k")
    said = the_sentence(captioner, folder / "out")
    assert "No space left" in said or "the disk is full" in said
    assert not (folder / "out" / "dataset_info.json").exists()
    done = [n for n in captioning.files_of(folder / "out") if n[-5:].isdigit()]
    assert done
    command = ["mount", "-o", "remount,size=20m", str(folder)]
    subprocess.run(command, check=True)
    captioner.make(folder / "out")
    assert captioning.files_of(folder / "out") == captioning.files_of(whole)


def test_nothing_but_unreadable_images(captioner, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        (images / f"{number}.jpg").write_bytes(b"no picture")
    job = captioner.of(data__images=images)
    said = the_sentence(job, tmp_path / "calibrated")
    assert "none of the 9 images to calibrate with can be read" in said
    job = job.of(calibrate__images=0)
    for _ in range(2):  # and again
        said = the_sentence(job, tmp_path / "out")
        assert "none of the 9 images can be read" in said and "skipped.jsonl" in said
    assert list(captioning.skipped_of(tmp_path / "out")) == [
        f"{number}.jpg" for number in range(9)
    ]
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_a_damaged_first_record_is_skipped_as_any_other(captioner, tmp_path):
    people = [PersonRecord(captioning.jpeg(i), str(i)) for i in range(3)]
    bad = tmp_path / "set"
    records.write_set(bad, PersonRecord, {"pretrain": people}, metadata={})
    [file] = bad.glob("*.array_record*")
    content = bytearray(file.read_bytes())
    content[64 + 300] ^= 0x5A  # in the image of the first, behind the signature
    file.write_bytes(content)
    job = captioner.of(data__images="", data__records=bad)
    out = job.make(tmp_path / "out")
    [line] = (out / "skipped.jsonl").read_text().splitlines()
    assert "record 0 of split 'pretrain'" in json.loads(line)["reason"]
    assert len(captioning.rows_of(out)) == 2


def test_a_store_that_fails_stops_the_job_and_skips_no_image(
    captioner, whole, tmp_path, monkeypatch
):
    """An outage is no fault of the images that come in it."""
    monkeypatch.setattr(folders, "PAUSE", 0.0)
    real, calls = pictures.FilePictures.__getitem__, []

    def failing(self, index):
        calls.append(index)
        if len(calls) > 12:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self, index)

    job = captioner.of(calibrate__images=0)
    monkeypatch.setattr(pictures.FilePictures, "__getitem__", failing)
    said = the_sentence(job, tmp_path / "out")
    assert "Stale file handle" in said and "run the same command again" in said
    monkeypatch.setattr(pictures.FilePictures, "__getitem__", real)
    again, plain = job.make(tmp_path / "out"), job.make(tmp_path / "plain")
    assert captioning.files_of(again) == captioning.files_of(plain)


def test_a_folder_that_goes_away_stops_the_job(captioner, photos, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    source = pictures.open_pictures(str(images), "", "pretrain")
    shutil.rmtree(images)
    with pytest.raises(ValueError, match="is gone; bring it back"):
        source[0]
