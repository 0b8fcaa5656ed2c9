"""A job that is killed goes on, and ends as if nothing had been; or says why it can't."""

import contextlib
import json
import random
import shutil
import signal
import time
from unittest import mock

import captioning
import kills
import pytest
from etils import epath

from unipt_jax import encoder
from unipt_jax.captions import conquer, generate, outputs, reading
from unipt_jax.captions import report as pages
from unipt_jax.errors import Stopped


def stamps(folder):
    """Relative path -> what changes when a file is written again."""
    return {
        file.relative_to(folder).as_posix(): (s.st_ino, s.st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
        for s in [file.stat()]
    }


def shards_of(folder):
    return {n: s for n, s in stamps(folder).items() if n[-5:].isdigit()}


def assert_equal(folder, expected):
    found, wanted = captioning.files_of(folder), captioning.files_of(expected)
    assert list(found) == list(wanted)
    assert [name for name in found if found[name] != wanted[name]] == []


# --- killed --------------------------------------------------------------------------


def wait_for(process, condition):
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process neither got there nor ended"
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_again_and_again_ends_as_if_undisturbed(captioner, whole, tmp_path):
    """At a random moment, after shards were written, and while it finishes."""
    folder, chance, killed = tmp_path / "out", random.Random(0), 0
    moments = [
        lambda: len(shards_of(folder)) > 2,
        lambda: len(shards_of(folder)) > 7,
        lambda: (folder / "captions.jsonl").exists(),
    ]
    before = {}
    for moment in moments:
        process = captioner.start(folder)
        wait_for(process, moment)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        after = shards_of(folder)
        done = {n for n in before if "records/" not in n}  # records alone are not done
        assert {n: after[n] for n in done} == {n: before[n] for n in done}
        before = after
    assert killed >= 2
    assert captioner.make(folder) == folder
    assert_equal(folder, whole)
    assert not (folder / "parts").exists()


@pytest.fixture(scope="module")
def short(captioner, photos, tmp_path_factory):
    """A job of 3 images in 2 shards, what it makes, and its encoder and lexicon."""
    place = tmp_path_factory.mktemp("short")
    names = ["000.jpg", "missing.jpg", "004.jpg"]
    (place / "list.txt").write_text("".join(f"{photos / n}\n" for n in names))
    job = captioner.of(data__images=place / "list.txt", shard=2, calibrate__images=2)
    whole = job.make(place / "whole")
    (whole / "report.html").write_text("a page")
    found, words = encoder.load(captioner.model), reading.read()
    return job, whole, found, words, generate.Judge(found, words, 4).prompts


@pytest.fixture
def quick(short):
    """The job and its folder; what is slow about it is not done again."""
    job, whole, found, words, prompts = short
    with (
        mock.patch.object(encoder, "load", return_value=found),
        mock.patch.object(reading, "read", return_value=words),
        mock.patch.object(conquer, "embed_prompts", return_value=prompts),
        mock.patch.object(pages, "render", return_value="a page"),
    ):
        yield job, whole


def test_killed_before_any_write_it_ends_as_if_undisturbed(quick, tmp_path):
    job, whole = quick
    moments = 0
    for nth in range(300):
        folder = tmp_path / str(nth)
        try:
            with kills.before_moment(nth):
                code, _ = job.here(folder, devices=8)
        except kills.Killed:
            moments += 1
        else:
            assert code == 0
            assert_equal(folder, whole)
            break
        code, output = job.here(folder, devices=8)
        assert code == 0, output
        assert_equal(folder, whole)
        shutil.rmtree(folder)
    assert moments > 30


def around_shards(before=lambda shard: None, after=lambda shard: None):
    """Patches the job so that these are called with the number of each shard."""
    real = outputs.Outputs.open

    @contextlib.contextmanager
    def opened(self, shard):
        before(shard)
        with real(self, shard) as add:
            yield add
        after(shard)

    return mock.patch.object(outputs.Outputs, "open", opened)


def killed_at(number, written):
    """Ends a job before the shard of that number; notes those before."""

    def before(shard):
        if shard == number:
            raise kills.Killed
        written.append(shard)

    return around_shards(before)


def test_shards_that_are_done_are_not_written_again(captioner, whole, tmp_path):
    folder, written = tmp_path / "out", []
    with killed_at(3, written), pytest.raises(kills.Killed):
        captioner.here(folder)
    before = shards_of(folder)
    assert written == [0, 1, 2] and len(before) == 6  # captions and records
    again = []

    with around_shards(again.append):
        captioner.make(folder)
    assert again == [3, 4, 5]
    after = shards_of(folder)
    assert {name: after[name] for name in before} == before
    assert_equal(folder, whole)


def test_sigterm_ends_with_its_own_code_and_the_same_command_goes_on(
    captioner, whole, tmp_path
):
    folder = tmp_path / "out"

    def terminated(shard):
        if shard == 2:
            signal.raise_signal(signal.SIGTERM)

    with around_shards(after=terminated):
        code, output = captioner.here(folder)
    assert code == Stopped.CODE == 75, output
    assert "the same command goes on from there" in output.splitlines()[-1]
    done = sorted(n for n in shards_of(folder) if "/" not in n)
    assert len(done) == 3 and not (folder / "dataset_info.json").exists()
    captioner.make(folder)
    assert_equal(folder, whole)


def test_a_job_that_is_done_says_so_and_changes_nothing(quick):
    job, whole = quick
    before, content = stamps(whole), captioning.files_of(whole)
    code, output = job.here(whole)
    assert code == 0
    assert "has all its captions already" in output
    assert captioning.files_of(whole) == content
    changed = {n for n, stamp in stamps(whole).items() if before[n] != stamp}
    assert changed <= {"config.json"}


# --- others than it began with -------------------------------------------------------


@pytest.fixture
def begun(captioner, photos, tmp_path):
    """A folder of images and a job on it that was killed after two shards."""
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    own = tmp_path / "own.yaml"
    own.write_text("templates:\n  - '{A person} with {hair} is {action}.'\n")
    job = captioner.of(data__images=images, phrases=own, calibrate__images=0)
    with killed_at(2, []), pytest.raises(kills.Killed):
        job.here(tmp_path / "out")
    return job, tmp_path / "out", images, own


def the_sentence(job, folder):
    """The one line of an error, which leaves every file as it was."""
    before = captioning.files_of(folder)
    code, output = job.here(folder)
    assert code == 1, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert output.rstrip().endswith(line)
    assert captioning.files_of(folder) == before
    return line


def test_what_does_not_fit_what_was_begun_is_refused_and_the_rest_goes_on(begun):
    job, folder, images, own = begun
    others = dict(seed=1, captions_per_image=2, threshold=0.6, shard=4)
    for field, value in others.items():
        said = the_sentence(job.of(**{field: value}), folder)
        assert "is of a run with another config" in said and f"({field}: " in said
    assert "use another --workdir" in said
    (images / "zzz.jpg").write_bytes(captioning.jpeg(99))
    said = the_sentence(job, folder)
    assert "begun with other images and image_ids than" in said
    (images / "zzz.jpg").unlink()
    (images / "000.jpg").rename(images / "0000.jpg")
    assert "begun with other image_ids than" in the_sentence(job, folder)
    (images / "0000.jpg").rename(images / "000.jpg")
    before = own.read_text()
    own.write_text(before + "  - '{A person} is {action}.'\n")
    assert "begun with other phrases than" in the_sentence(job, folder)
    own.write_text(before)
    harmless = job.of(data__threads=1, examples=2, luperson_t=False)
    assert harmless.make(folder) == folder
    assert json.loads((folder / "captions.json").read_text())["captioned"] == 43


def test_a_finished_jobs_shards_stay_done_for_processes_that_look_late(short):
    """Process 0 clears the shards' lines; another may not have looked since."""
    _, whole, *_ = short
    made = outputs.Outputs(
        epath.Path(whole), split="pretrain", shards=2, aligned=False, keep_records=True
    )
    assert not (whole / "parts").exists()
    assert made.done(0) and made.done(1)
