"""Our reader of records beside TFDS's own: the same values, or the same refusal."""

import concurrent.futures
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from unipt_jax.data import records, shards
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError


def write(folder, people, kind):
    records.write_set(folder, kind, {"train": people}, metadata={})


def plain(row, name):
    """A value as TFDS gives it, in the type that a record has."""
    value = row[name]
    if name == "captions":
        return tuple(caption.decode() for caption in value)
    if name in ("attributes", "evidence"):
        return json.loads(value)
    return value if name == "image" or isinstance(value, int) else value.decode()


def assert_as_tfds_reads(folder, split, kind):
    skip = {"image": tfds.decode.SkipDecoding()} if kind is PersonRecord else None
    builder = tfds.builder_from_directory(str(folder))
    rows = list(builder.as_data_source(split, decoders=skip))
    ours = list(Records(folder, split, kind))
    assert len(ours) == len(rows) > 0
    for row, record in zip(rows, ours, strict=True):
        for name, value in vars(record).items():
            wanted = plain(row, name)
            assert value == wanted and type(value) is type(wanted)


def odd_people(count):
    """Every second field empty, long, negative or beyond ASCII."""
    for i in range(count):
        yield PersonRecord(
            bytes(range(256)) * i,
            f"{i}/ä" * (i % 3),
            file_path="x" * (i % 5 * 100),
            person_id=(-1) ** i * 2 ** (i % 63),
            label=i - 1,
            captions=tuple("一个 man\n" * k for k in range(i % 4)),
            attributes={"hat": "🧢"} if i % 2 else {},
        )


def test_persons_are_read_as_tfds_reads_them(tmp_path):
    write(tmp_path / "set", odd_people(70), PersonRecord)
    assert_as_tfds_reads(tmp_path / "set", "train", PersonRecord)
    assert list(Records(tmp_path / "set", "train", PersonRecord)) == [*odd_people(70)]


@pytest.mark.parametrize("lengths", [(3, 0, 4), (1,) * 12])
def test_shards_are_read_as_tfds_reads_them(tmp_path, lengths):
    made = [
        CaptionRecord(f"ä{i}", ("中文",) * (i % 3), {"deep": {"x": [i, None, 0.5]}})
        for i in range(sum(lengths))
    ]
    for kind, rows in (
        (CaptionRecord, made),
        (PersonRecord, [*odd_people(sum(lengths))]),
    ):
        out = shards.ShardedSet(tmp_path / kind.__name__, kind, "a", len(lengths))
        first = 0
        for shard, length in enumerate(lengths):
            out.write(shard, rows[first : first + length])
            first += length
        out.finish({})
        assert_as_tfds_reads(out.folder, "a", kind)
        assert list(Records(out.folder, "a", kind)) == rows


def test_two_splits_of_several_shards_by_sixteen_threads(tmp_path):
    sets = {"train": [*odd_people(40)], "test": [*odd_people(9)][::-1]}
    records.write_set(tmp_path / "set", PersonRecord, sets, metadata={})
    for split, people in sets.items():
        source = Records(tmp_path / "set", split, PersonRecord)
        order = np.random.default_rng(0).integers(0, len(people), 800).tolist()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # none has read before
            read = list(pool.map(source.__getitem__, order))
        assert read == [people[i] for i in order]


def example(**changes):
    """A caption record's bytes with some of its fields changed, or taken out."""
    fields = {"image_id": [b"a"], "captions": [b"x", b"y"], "evidence": [b"{}"]}
    out = tf_example_pb2.Example()
    for name, values in (fields | changes).items():
        if values is None:
            continue
        feature = out.features.feature[name]
        kind = feature.int64_list if values[:1] == [1] else feature.bytes_list
        kind.SetInParent()
        kind.value.extend(values)
    return out.SerializeToString(deterministic=True)


def test_parse_takes_a_whole_record():
    wanted = CaptionRecord("a", ("x", "y"))
    assert records.parse(example(), CaptionRecord) == wanted
    assert records.parse(example(more=[b"1"]), CaptionRecord) == wanted


@pytest.mark.parametrize(
    "damaged",
    [
        example(image_id=None),
        example(captions=None),
        example(evidence=None),
        example(image_id=[]),
        example(image_id=[b"a", b"b"]),
        example(image_id=[1]),
        example(image_id=[b"\xff"]),
        example(captions=[1, 2]),
        example(captions=[b"\xff"]),
        example(evidence=[b"{"]),
        example()[:-1],
        b"\xff" * 20,
        b"",
    ],
)
def test_a_record_with_a_field_amiss_is_refused(tmp_path, damaged):
    folder = tmp_path / "set"
    write(folder, [CaptionRecord("a", ())], CaptionRecord)
    source = Records(folder, "train", CaptionRecord)
    source._source = [damaged]
    with pytest.raises(UserError) as caught:
        source[0]
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(
        f"record 0 of split 'train' in {folder} cannot be read"
    )
