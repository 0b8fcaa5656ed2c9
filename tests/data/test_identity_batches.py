"""Batches for fine-tuning: classes, identities held out, and P identities x K samples.

Image i is a flat square of value i, so that a batch tells what it holds.
"""

import collections
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import pipeline, records, tokenizers
from unipt_jax.data.records import UNKNOWN, CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

# The label of each image: with gaps, in no order, of 1 to 6 images a person.
LABELS = [31, 4, 4, 9, 31, 15, 2, 9, 4, 22, 31, 9, 40, 2, 31, 15, 9, 31, 50, 22, 31, 9]
PEOPLE = sorted(set(LABELS))
SIZES = collections.Counter(LABELS)


def flat(value):
    out = io.BytesIO()
    Image.new("RGB", (2, 4), (value,) * 3).save(out, "PNG")
    return out.getvalue()


def people(labels, captions=lambda image: 1):
    return [
        PersonRecord(
            flat(i), f"im{i}", label=label, captions=(f"w{i} w0",) * captions(i)
        )
        for i, label in enumerate(labels)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [*tokenizers.SPECIAL, *(f"w{i}" for i in range(100))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return tokenizers.load(folder)


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    """Writes a set, once for the same persons, and opens its labelled batches."""
    written = {}

    def write(kind, rows):
        if repr((kind, rows)) not in written:
            folder = tmp_path_factory.mktemp("set") / "set"
            records.write_set(folder, kind, {"train": rows}, metadata={})
            written[repr((kind, rows))] = Records(folder, "train", kind)
        return written[repr((kind, rows))]

    def batches(persons, captions=None, *, batch=4, rows=None, **options):
        fixed = dict(size=(4, 2), lengths=(8,), cache=True)
        options = fixed | dict(seed=1, labelled=True) | options
        return pipeline.TrainBatches(
            write(PersonRecord, persons),
            None if captions is None else write(CaptionRecord, captions),
            tokenizer,
            batch_size=batch,
            rows=np.arange(batch) if rows is None else rows,
            progress=False,
            **options,
        )

    return batches


def take(batches, count, step=0):
    return list(itertools.islice(batches.from_step(step, threads=2, buffer=4), count))


def pictures(batch):
    """The image number of each row."""
    return batch["image"][:, 0, 0, 0].tolist()


def persons(batch, labels=LABELS):
    """The label of the image of each row, in the records' own numbers."""
    return [labels[image] for image in pictures(batch)]


# --- classes, and who is held out ----------------------------------------------------


@pytest.mark.parametrize("identities", [0, 2])
@pytest.mark.parametrize("sample", ["image", "pair"])
def test_classes_number_the_labels_in_order_without_a_gap(make, sample, identities):
    batches = make(people(LABELS), sample=sample, identities=identities)
    assert batches.classes == len(PEOPLE) == 8 and len(batches) == 22
    seen = set()
    for batch in take(batches, 20):
        assert batch["label"].dtype == np.int32 and batch["label"].shape == (4,)
        assert [PEOPLE[k] for k in batch["label"]] == persons(batch)
        seen |= set(batch["label"].tolist())
    assert seen == set(range(8))


def test_without_labels_asked_for_there_are_none(make):
    batches = make(people(LABELS), labelled=False)
    assert batches.classes == 0 and "label" not in take(batches, 1)[0]


@pytest.mark.parametrize("identities", [0, 2])
@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4), (0.1, 1)])
def test_held_out_identities_are_that_share_and_never_trained_on(
    make, share, count, identities
):
    batches = make(people(LABELS), hold_out=share, identities=identities)
    held = batches.held_out.tolist()
    assert len(set(held)) == count and set(held) < set(PEOPLE)
    stays = [person for person in PEOPLE if person not in held]
    assert batches.classes == len(stays)
    assert len(batches) == sum(SIZES[person] for person in stays)
    seen = set()
    for batch in take(batches, 40):
        assert [stays[k] for k in batch["label"]] == persons(batch)
        seen |= set(persons(batch))
    assert seen == set(stays)


def test_whatever_the_run_the_same_identities_are_held_out(make):
    def held(**options):
        return make(people(LABELS), hold_out=0.5, **options).held_out.tolist()

    first = held()
    assert all(held(seed=seed) == first for seed in range(2, 8))
    assert held(batch=2, rows=np.array([1]), sample="pair", identities=1) == first
    # Drawn, not the first or the last ones.
    assert first not in (PEOPLE[:4], PEOPLE[4:])


def test_an_identity_whose_images_have_no_caption_is_no_class(make):
    silent = people(LABELS, captions=lambda i: int(LABELS[i] not in (9, 40)))
    batches = make(silent, identities=2)
    stays = [person for person in PEOPLE if person not in (9, 40)]
    assert batches.classes == 6 and batches.without_caption == SIZES[9] + SIZES[40]
    for batch in take(batches, 12):
        assert [stays[k] for k in batch["label"]] == persons(batch)


def test_with_captions_of_a_set_of_their_own_the_records_say_who_it_is(make):
    captions = [CaptionRecord(f"im{i}", (f"w{i}",)) for i in range(len(LABELS))]
    batches = make(people(LABELS, captions=lambda i: 0), captions, hold_out=0.25)
    assert batches.classes == 6 and len(batches.held_out) == 2
    stays = [person for person in PEOPLE if person not in batches.held_out]
    for batch in take(batches, 10):
        assert [stays[k] for k in batch["label"]] == persons(batch)


# --- P identities x K samples --------------------------------------------------------


def groups(batch, p):
    """(P, K) image numbers of each identity in a batch."""
    return np.array(pictures(batch)).reshape(p, -1)


@pytest.mark.parametrize("share", [2, 3, 5])
def test_a_batch_has_p_different_identities_with_k_samples_each(make, share):
    batches = make(people(LABELS), batch=4 * share, identities=4)
    for batch in take(batches, 2 * 20):  # 8 identities: two batches an epoch
        people_of = [{LABELS[i] for i in row} for row in groups(batch, 4)]
        assert [len(names) for names in people_of] == [1] * 4
        assert len(set().union(*people_of)) == 4
        for row in groups(batch, 4):
            size, times = SIZES[LABELS[row[0]]], collections.Counter(row.tolist())
            # Each as often as the others, or once more: none twice where all fit.
            assert len(times) == min(size, share)
            assert max(times.values()) - min(times.values()) <= 1


def test_every_identity_comes_once_an_epoch_in_another_order_each(make):
    batches = make(people(LABELS), batch=6, identities=3)
    # 8 identities in batches of 3: epochs join in mid-batch.
    drawn = [LABELS[row[0]] for batch in take(batches, 80) for row in groups(batch, 3)]
    epochs = [tuple(drawn[i : i + 8]) for i in range(0, 240, 8)]
    assert all(sorted(epoch) == PEOPLE for epoch in epochs)
    assert len(set(epochs)) == 30  # of 40,320 orders


def test_of_an_identity_with_many_samples_each_is_drawn_as_often(make):
    batches = make(people(LABELS), batch=16, identities=8)  # all, two samples each
    times = collections.Counter(
        image for batch in take(batches, 120) for image in pictures(batch)
    )
    for image, label in enumerate(LABELS):
        share = 2 / SIZES[label]  # an only one is drawn twice, one of two always
        sigma = np.sqrt(120 * share * max(1 - share, 0))
        assert abs(times[image] - 120 * share) <= 5 * sigma, (image, label)


def test_with_captions_to_choose_from_each_pair_is_a_sample_of_its_own(make):
    three = people(LABELS, captions=lambda i: 3)
    batches = make(three, batch=12, identities=2, sample="pair")
    assert len(batches) == 66
    for batch in take(batches, 20):
        plan = np.array(pictures(batch)).reshape(2, 6)
        for row in plan:
            pairs = 3 * SIZES[LABELS[row[0]]]
            most = max(collections.Counter(row.tolist()).values())
            assert most <= (3 if pairs >= 6 else 6)  # a picture has three captions


@pytest.mark.parametrize("processes", [2, 4])
def test_the_pieces_of_all_processes_joined_are_the_global_batch(make, processes):
    options = dict(batch=8, identities=4, hold_out=0.25)
    whole = make(people(LABELS), **options)
    rows = np.arange(8).reshape(processes, -1)
    parts = [make(people(LABELS), rows=own, **options) for own in rows]
    for step in (0, 1, 1000):
        pieces = [take(part, 3, step) for part in parts]
        for want, *own in zip(take(whole, 3, step), *pieces, strict=True):
            assert want.keys() == {"image", "tokens", "label", "lengths"}
            for name, value in want.items():
                if name == "lengths":  # every process knows them all
                    joined = own[0][name]
                else:
                    joined = np.concatenate([piece[name] for piece in own])
                np.testing.assert_array_equal(joined, value, strict=True)


def test_entered_at_any_step_the_batches_are_those_of_that_step_and_of_the_seed(make):
    batches = make(people(LABELS), batch=6, identities=3)
    stream = take(batches, 9)
    for step in (0, 1, 4, 8):
        for want, have in zip(
            stream[step:], take(batches, 9 - step, step), strict=True
        ):
            for name, value in want.items():
                np.testing.assert_array_equal(have[name], value, strict=True)
    other = take(make(people(LABELS), batch=6, identities=3, seed=2), 9)
    assert [pictures(x) for x in other] != [pictures(x) for x in stream]


# --- mistakes ------------------------------------------------------------------------


def test_samples_without_identity_are_counted_and_refused(make):
    labels = [*LABELS[:10], UNKNOWN, UNKNOWN]
    with pytest.raises(UserError, match=r"^2 of 12 samples in split 'train' of .* no"):
        make(people(labels))
    silent = people(labels, captions=lambda i: int(i < 10))
    assert make(silent).classes == len(set(LABELS[:10]))  # they are no samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(hold_out=0.01),
            "hold_out=0.01 of the 8 identities in split 'train' .* 0",
        ),
        (dict(hold_out=1.0), "hold_out=1.0 of the 8 .* are 8; .* one must stay"),
        (dict(hold_out=-0.5), "hold_out=-0.5 of the 8 "),
        (dict(hold_out=0.9), "one identity is left to train on .*, 7 held out"),
        (dict(identities=3), "data.identities=3 must divide batch_size=4"),
        (dict(identities=4), "data.identities=4 .* two samples of an identity or more"),
        (dict(identities=-2), "data.identities=-2 must divide batch_size=4"),
        (dict(identities=10, batch=20), "data.identities=10, but there are 8"),
        (dict(identities=6, batch=12, hold_out=0.5), "=6, but there are 4 identities"),
        (dict(batch=20, hold_out=0.5), "batch_size=20 but .* gives only"),
    ],
)
def test_shares_and_batches_that_cannot_be_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(people(LABELS), **options)


def test_records_without_any_caption_are_refused_as_such(make):
    with pytest.raises(UserError, match="no captions in split 'train'"):
        make(people(LABELS, captions=lambda i: 0), hold_out=0.25, identities=2)
