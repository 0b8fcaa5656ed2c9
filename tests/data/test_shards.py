"""Sets written shard by shard: whole shards or none, and a set only at the end."""

import io
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import kills
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unipt_jax.data import records, shards
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.data.shards import ShardedSet
from unipt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def made(first, count):
    return [
        CaptionRecord(f"ä/{i}", (f"a man {i}", "中文"), {"hat": {"probability": 0.5}})
        for i in range(first, first + count)
    ]


def names(folder):
    return {
        file.relative_to(folder).as_posix() for file in pathlib.Path(folder).rglob("*")
    }


def write(folder, lengths, kind=CaptionRecord):
    """A set of so many records in each shard, without its end."""
    out = ShardedSet(folder, kind, "pretrain", len(lengths))
    first = np.cumsum([0, *lengths]).tolist()
    for shard in reversed(range(len(lengths))):  # in any order
        out.write(shard, made(first[shard], lengths[shard]))
    return out


@pytest.mark.parametrize("lengths", [(3,), (2, 0, 3), (0, 4), (4, 0, 0), (1,) * 12])
def test_records_come_back_in_the_order_of_the_shards_some_of_them_empty(
    tmp_path, lengths
):
    out = write(tmp_path / "set", lengths)
    assert out.lengths() == list(lengths)
    out.finish({"seed": 3, "name": "ä"})
    wanted = made(0, sum(lengths))
    assert list(Records(tmp_path / "set", "pretrain", CaptionRecord)) == wanted
    assert records.metadata(tmp_path / "set") == {"seed": 3, "name": "ä"}
    assert records.splits(tmp_path / "set") == {"pretrain": sum(lengths)}


def test_plain_tfds_opens_the_set_and_finds_shards_and_sizes(tmp_path):
    out = ShardedSet(tmp_path / "set", PersonRecord, "train", 2)
    encoded = io.BytesIO()
    Image.new("RGB", (8, 16), "red").save(encoded, "PNG")
    people = [PersonRecord(encoded.getvalue(), str(i)) for i in range(5)]
    out.write(0, people[:2])
    out.write(1, people[2:])
    out.finish({})
    builder = tfds.builder_from_directory(str(tmp_path / "set"))
    info = builder.info.splits["train"]
    assert info.shard_lengths == [2, 3] and info.num_examples == 5
    files = [
        file for file in (tmp_path / "set").iterdir() if "array_record" in file.name
    ]
    assert info.num_bytes == sum(file.stat().st_size for file in files)
    row = builder.as_data_source("train")[4]
    assert (
        row["image"].shape == (16, 8, 3) and (row["image"][0, 0] == [255, 0, 0]).all()
    )
    assert row["image_id"] == b"4"


def test_shards_alone_are_no_set_and_nothing_is_left_beside_one(tmp_path):
    folder = tmp_path / "set"
    out = write(folder, (2, 1))
    assert not out.complete and all(map(out.done, range(2)))
    assert len(names(folder)) == 2
    with pytest.raises(UserError, match="no record set"):
        Records(folder, "pretrain", CaptionRecord)
    out.finish({})
    assert out.complete
    described = {"dataset_info.json", "features.json", "metadata.json"}
    assert names(folder) - described == {out.file(0).name, out.file(1).name}


def test_an_end_that_is_killed_at_any_moment_is_a_set_last_of_all(tmp_path):
    whole = write(tmp_path / "whole", (2, 1))
    whole.finish({"seed": 1})
    expected = {n: (tmp_path / "whole" / n).read_bytes() for n in names(whole.folder)}
    for nth in range(100):
        out = write(tmp_path / str(nth), (2, 1))
        try:
            with kills.before_moment(nth):
                out.finish({"seed": 1})
        except kills.Killed:
            assert not out.complete
            out.finish({"seed": 1})
        else:
            break
        found = {n: (tmp_path / str(nth) / n).read_bytes() for n in names(out.folder)}
        assert found == expected
    assert 6 < nth < 100


KILLED = """
import os, signal, sys
from unipt_jax.data.records import CaptionRecord
from unipt_jax.data import shards
write = shards.array_record_module.ArrayRecordWriter.write
class Writer(shards.array_record_module.ArrayRecordWriter):
    count = 0
    def write(self, data):
        super().write(data)
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
shards.array_record_module.ArrayRecordWriter = Writer
out = shards.ShardedSet(sys.argv[1], CaptionRecord, "pretrain", 1)
out.write(0, [CaptionRecord(str(i), ("x" * 10000,)) for i in range(5)])
"""


def test_a_shard_that_is_killed_in_its_middle_is_not_done(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "set"], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    out = ShardedSet(tmp_path / "set", CaptionRecord, "pretrain", 1)
    assert not out.done(0) and not out.complete
    assert [file.suffix for file in (tmp_path / "set").iterdir()] == [".partial"]
    out.write(0, made(0, 4))
    out.finish({})
    assert list(Records(out.folder, "pretrain", CaptionRecord)) == made(0, 4)
    assert not list(out.folder.glob("*.partial"))


SAME = """
import sys
from unipt_jax.data import shards
from unipt_jax.data.records import CaptionRecord
out = shards.ShardedSet(sys.argv[1], CaptionRecord, "pretrain", 1)
out.write(0, [CaptionRecord(str(i), ("a man",), {"a": i, "b": 2}) for i in range(9)])
"""


def test_every_process_writes_the_same_bytes(tmp_path):
    """Protobuf's maps have another order in each process, unless asked."""
    for number in range(3):
        arguments = [sys.executable, "-c", SAME, tmp_path / str(number)]
        subprocess.run(arguments, cwd=ROOT, check=True)
    found = {file.read_bytes() for file in tmp_path.glob("*/*")}
    assert len(list(tmp_path.glob("*/*"))) == 3 and len(found) == 1


def test_a_full_disk_is_one_sentence_and_leaves_no_shard(tmp_path):
    out = ShardedSet(tmp_path / "set", CaptionRecord, "pretrain", 1)
    noise = np.random.default_rng(0).bytes(300_000).hex()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            out.write(0, [CaptionRecord("a", (noise,))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in str(caught.value) and "\n" not in str(caught.value)
    assert str(out.file(0)) in str(caught.value)
    assert not out.done(0)


def test_the_description_says_nothing_of_when_or_where(tmp_path):
    for place in ("one", "two"):
        write(tmp_path / place, (1, 2)).finish({"seed": 0})
    for name in names(tmp_path / "one"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert os.fsencode(tmp_path) not in content
    info = json.loads((tmp_path / "one" / shards.INFO).read_text())
    assert info["splits"][0]["shardLengths"] == ["1", "2"]


RECORDS = (
    PersonRecord(b"\xff\xd8 no picture", "a/b"),
    PersonRecord(b"x", "ä", "p", 2**62, 0, ("one", "", "中文"), {"b": "1", "a": "ü"}),
    PersonRecord(b"", "", "", -1, -1, (), {}),
    CaptionRecord("id", ()),
    CaptionRecord("id", ("a man",), {"hat": {"probability": 0.5}}),
)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_serialised_as_tfds_would(record):
    features = records.features(type(record))
    info = features.get_serialized_info()
    serialiser = tfds.core.example_serializer.ExampleSerializer(info)
    row = features.encode_example(records.encode(record))
    wanted = serialiser.get_tf_example(row).SerializeToString(deterministic=True)
    assert records.serialise(record) == wanted
