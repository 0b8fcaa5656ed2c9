"""Person records and caption records: one schema, written and read as TFDS folders.

In: records from a builder or a caption job. Out: a folder in ArrayRecord that
`tfds.builder_from_directory` opens without TensorFlow, and random access to it.
"""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from unipt_jax.errors import UserError

NAME = "records"  # what the files of a set begin with
UNKNOWN = -1  # the person id and label of an image whose identity is not known


@dataclasses.dataclass(frozen=True)
class PersonRecord:
    """One image of one person.

    image: an encoded JPEG or PNG file. image_id: stable and unique in its set.
    person_id: the source's own number; label: contiguous from 0 within a training
    split; both `UNKNOWN` where identities are not known. attributes: whatever is known
    to be true of the person, by name.
    """

    image: bytes
    image_id: str
    file_path: str = ""
    person_id: int = UNKNOWN
    label: int = UNKNOWN
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CaptionRecord:
    """Captions of the image that has the same index in the set they were made for."""

    image_id: str
    captions: tuple[str, ...]
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def features(kind: type) -> tfds.features.FeaturesDict:
    """How TFDS stores records of that kind."""
    text = tfds.features.Text
    captions = tfds.features.Sequence(text())
    if kind is CaptionRecord:
        return tfds.features.FeaturesDict(
            {"image_id": text(), "captions": captions, "evidence": text()}
        )
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": text(),
            "file_path": text(),
            "person_id": np.int64,
            "label": np.int64,
            "captions": captions,
            "attributes": text(),
        }
    )


_JSON_FIELDS = ("attributes", "evidence")


def encode(record: PersonRecord | CaptionRecord) -> dict[str, Any]:
    """A record as TFDS takes it, by the names of `features`."""
    row = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    row["captions"] = list(row["captions"])
    for name in _JSON_FIELDS:
        if name in row:
            row[name] = json.dumps(dict(row[name]), sort_keys=True)
    return row


def serialise(record: PersonRecord | CaptionRecord) -> bytes:
    """A record as a `tf.train.Example`, the same bytes in any process.

    They say what TFDS's own serialiser would, which takes ten times as long.
    """
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name, value in encode(record).items():
        if isinstance(value, list):
            texts = feature[name].bytes_list
            texts.SetInParent()  # an empty list is there, too
            texts.value.extend(text.encode() for text in value)
        elif isinstance(value, bytes | str):
            value = value if isinstance(value, bytes) else value.encode()
            feature[name].bytes_list.value.append(value)
        else:
            feature[name].int64_list.value.append(int(value))
    # Else every process has a record's fields in an order of its own.
    return example.SerializeToString(deterministic=True)


def _bytes(feature: Any) -> bytes:
    (value,) = feature.bytes_list.value
    return value


def _text(feature: Any) -> str:
    return _bytes(feature).decode()


def _texts(feature: Any) -> tuple[str, ...]:
    # Without this a field that is not there at all would be read as an empty list.
    if not feature.HasField("bytes_list"):
        raise ValueError("no list of texts")
    return tuple(value.decode() for value in feature.bytes_list.value)


def _number(feature: Any) -> int:
    (value,) = feature.int64_list.value
    return value


def _json(feature: Any) -> Any:
    return json.loads(_bytes(feature))


_PARSERS = {
    "image": _bytes,
    "person_id": _number,
    "label": _number,
    "captions": _texts,
    "attributes": _json,
    "evidence": _json,
}  # the rest is text


def parse(example: bytes, kind: type) -> PersonRecord | CaptionRecord:
    """A record from a serialised `tf.train.Example`, as TFDS stores it.

    TFDS's own decoding gives the same values and takes several times as long, with the
    interpreter's lock held. Raises whatever protobuf, json and Python raise where the
    bytes are no such record.
    """
    features = tf_example_pb2.Example.FromString(example).features.feature
    return kind(
        *(
            _PARSERS.get(field.name, _text)(features[field.name])
            for field in dataclasses.fields(kind)
        )
    )


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Hands ready records to TFDS; the order written is the order read."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def __init__(self, *, kind: type, splits: Mapping, metadata: Mapping, **kwargs):
        self._kind, self._records, self._extra = kind, splits, dict(metadata)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=features(self._kind),
            metadata=tfds.core.MetadataDict(self._extra),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        return {k: self._generate_examples(k) for k in self._records}

    def _generate_examples(self, split: str) -> Iterable:
        progress = tqdm(self._records[split], desc=f"writing {split}", unit=" records")
        for index, record in enumerate(progress):
            yield index, encode(record)


def write_set(
    folder: str | os.PathLike,
    kind: type,
    splits: Mapping[str, Iterable],
    *,
    metadata: Mapping[str, Any],
    extras: Callable[[epath.Path], None] = lambda partial: None,
) -> None:
    """Writes a whole set, or nothing: `folder` appears when all of it is on disk.

    kind: `PersonRecord` or `CaptionRecord`. splits: split name -> records, none of
    them empty. metadata: JSON values, read back by `metadata`. extras: writes further
    files into the folder it is given, before the set appears.
    Raises `UserError` where `folder` exists already.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise UserError(
            f"{folder} exists already; remove it, or give another output folder"
        )
    partial = folder.with_name(folder.name + ".partial")
    partial.rmtree(missing_ok=True)  # what a killed run left behind
    partial.mkdir(parents=True)
    try:
        builder = _Builder(
            kind=kind,
            splits=splits,
            metadata=metadata,
            data_dir=str(partial / "tfds"),
            file_format="array_record",
        )
        tfds.disable_progress_bar()  # ours says what is written, in terms of records
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        for file in epath.Path(builder.data_dir).iterdir():
            file.rename(partial / file.name)
        (partial / "tfds").rmtree()
        extras(partial)
        partial.rename(folder)
    finally:
        partial.rmtree(missing_ok=True)


def describe(
    folder: str | os.PathLike,
    kind: type,
    splits: Mapping[str, tuple[Sequence[int], int]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes what makes a folder of shards a set, of which it says how long they are.

    splits: split name -> the number of records in each of its shards, and its bytes.
    """
    builder = _Builder(
        kind=kind,
        splits={},
        metadata=metadata,
        data_dir=str(folder),
        file_format="array_record",
    )
    described = tfds.core.SplitDict(
        [
            tfds.core.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=size)
            for name, (lengths, size) in splits.items()
        ]
    )
    builder.info.set_splits(described)
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    builder.info.write_to_directory(folder)


def metadata(folder: str | os.PathLike) -> dict[str, Any]:
    """What `write_set` was told about the set."""
    return dict(_open(folder).info.metadata or {})


def fields(folder: str | os.PathLike) -> set[str]:
    """The names of what each record has."""
    return set(_open(folder).info.features)


def splits(folder: str | os.PathLike) -> dict[str, int]:
    """Split name -> number of records."""
    return {name: s.num_examples for name, s in _open(folder).info.splits.items()}


def _open(folder: str | os.PathLike) -> tfds.core.DatasetBuilder:
    if not (epath.Path(folder) / "dataset_info.json").is_file():
        raise UserError(
            f"no record set at {folder} (no dataset_info.json there); make one with "
            "`python -m data_prep.build SET --raw DIR --out "
            f"{folder}`, or point config.data.records at one"
        )
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # json and protobuf raise kinds of their own
        raise UserError(
            f"the record set at {folder} cannot be opened "
            f"({str(error).splitlines()[0][:120]}); its description is damaged: prepare "
            "the set again"
        ) from error


class Records(Sequence):
    """Random access to one split: `records[i]` is a `PersonRecord` or `CaptionRecord`.

    Safe to read from many threads. Raises `UserError` for a folder without a record
    set, an unknown split, and a record that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, split: str, kind: type):
        self.folder, self.split, self.kind = str(folder), split, kind
        builder = _open(folder)
        if split not in builder.info.splits:
            raise UserError(
                f"{folder} has no split '{split}'; it has "
                f"{', '.join(sorted(builder.info.splits))}"
            )
        wanted = {field.name for field in dataclasses.fields(kind)}
        if not wanted <= set(builder.info.features):
            raise UserError(
                f"{folder} holds {', '.join(sorted(builder.info.features))}, which is "
                f"not a set of {kind.__name__}s (it needs {', '.join(sorted(wanted))})"
            )
        self._source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> PersonRecord | CaptionRecord:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return parse(self._source[index], self.kind)
        except Exception as error:  # array_record and protobuf raise kinds of their own
            raise UserError(
                f"record {index} of split '{self.split}' in {self.folder} cannot be "
                f"read ({str(error).splitlines()[0][:120]}); the file is damaged: "
                "prepare the set again"
            ) from error


def contiguous_labels(person_ids: Sequence[int]) -> list[int]:
    """Person ids -> labels 0, 1, ... in the order of the ids; unknown stays unknown."""
    known = sorted({p for p in person_ids if p != UNKNOWN})
    label = {p: i for i, p in enumerate(known)} | {UNKNOWN: UNKNOWN}
    return [label[p] for p in person_ids]
