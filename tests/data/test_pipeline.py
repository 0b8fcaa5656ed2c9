"""The batches of a run: a function of seed and step, whoever reads them, from any step.

Image i is a flat square of value i and its captions name i, so that a batch tells what
it holds.
"""

import collections
import io
import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import pipeline, records, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

SIZE = (6, 3)
LENGTHS = (8, 12, 16)
PAD, CLS, SEP = 0, 2, 3
WORDS = 5  # the id of the word "w0"; "w1" has the next one


def flat(value):
    out = io.BytesIO()
    Image.new("RGB", (4, 8), (value,) * 3).save(out, "PNG")
    return out.getvalue()


def caption(image, number, fill=0):
    """Names the image, the number and then says nothing for a while."""
    return " ".join([f"w{image}", f"w{number}", *["w99"] * fill])


def ids(image, number, fill=0):
    words = [image, number, *[99] * fill]
    return [CLS, *(WORDS + word for word in words), SEP]


def people(counts, fill=lambda image, number: 0):
    return [
        PersonRecord(
            flat(image),
            f"im{image}",
            captions=tuple(caption(image, k, fill(image, k)) for k in range(count)),
        )
        for image, count in enumerate(counts)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [*tokenizers.SPECIAL, *(f"w{i}" for i in range(100))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return tokenizers.load(folder)


@pytest.fixture
def make(tokenizer, tmp_path):
    """Writes a set and opens its batches."""
    number = itertools.count()

    def batches(persons, captions=None, *, batch=4, rows=None, **options):
        folder = tmp_path / str(next(number))
        records.write_set(folder, PersonRecord, {"train": persons}, metadata={})
        made = None
        if captions is not None:
            records.write_set(
                folder / "captions", CaptionRecord, {"train": captions}, metadata={}
            )
            made = Records(folder / "captions", "train", CaptionRecord)
        return again(
            Records(folder, "train", PersonRecord), made, batch, rows, **options
        )

    def again(source, made, batch, rows=None, **options):
        options = {"size": SIZE, "lengths": LENGTHS, "seed": 1} | options
        return pipeline.TrainBatches(
            source,
            made,
            tokenizer,
            batch_size=batch,
            rows=np.arange(batch) if rows is None else rows,
            progress=False,
            **options,
        )

    batches.again = again
    return batches


def take(batches, count, step=0, threads=2, buffer=4):
    stream = batches.from_step(step, threads=threads, buffer=buffer)
    return list(itertools.islice(stream, count))


def numbers(batch):
    """(image number by its pixels, caption's image, caption's number) of each row."""
    pixels = batch["image"]
    assert (pixels == pixels[:, :1, :1, :1]).all()
    words = batch["tokens"][:, 1:3] - WORDS
    return [
        (int(value), int(image), int(number))
        for value, (image, number) in zip(pixels[:, 0, 0, 0], words, strict=True)
    ]


ROWS = ("image", "tokens")


def assert_same(left, right):
    assert left.keys() == right.keys() == {"image", "tokens", "lengths"}
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


# --- one global batch, whoever reads it ----------------------------------------------


@pytest.mark.parametrize("sample", ["image", "pair"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_pieces_of_all_processes_joined_are_the_global_batch(
    make, processes, sample
):
    counts = [3, 1, 2, 2, 1, 1, 4, 2, 1, 2]
    whole = make(people(counts, lambda i, k: (3 * i + k) % 13), batch=8, sample=sample)
    rows = np.arange(8).reshape(processes, -1)
    parts = [make.again(whole._records, None, 8, own, sample=sample) for own in rows]
    for step in (0, 1, 5, 1000):
        wanted = take(whole, 2, step)
        pieces = [take(part, 2, step, threads=1) for part in parts]
        for want, *own in zip(wanted, *pieces, strict=True):
            joined = {k: np.concatenate([p[k] for p in own]) for k in ROWS}
            # Every process knows the lengths of all texts.
            assert_same(joined | {"lengths": own[-1]["lengths"]}, want)


def test_rows_that_lie_apart_are_those_rows_of_the_global_batch(make):
    whole = make(people([2] * 10), batch=6)
    rows = np.array([1, 2, 5])
    part = make.again(whole._records, None, 6, rows)
    for want, own in zip(take(whole, 5), take(part, 5), strict=True):
        assert_same(own, want | {k: want[k][rows] for k in ROWS})


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_entered_at_step_k_the_stream_goes_on_as_if_never_left(make, threads):
    batches = make(people([2] * 10, lambda i, k: i), batch=4, lengths=(8, 32))
    stream = take(batches, 8, threads=2)
    for step in (0, 1, 5, 7):
        for want, have in zip(
            stream[step:], take(batches, 8 - step, step, threads), strict=True
        ):
            assert_same(have, want)


def test_two_runs_of_a_seed_agree_and_another_seed_orders_and_draws_otherwise(make):
    first = make(people([3] * 12), batch=12, seed=4)
    same = make.again(first._records, None, 12, seed=4)
    other = make.again(first._records, None, 12, seed=5)
    orders = [numbers(take(b, 1)[0]) for b in (first, same, other)]
    assert orders[0] == orders[1]
    assert [row[0] for row in orders[0]] != [row[0] for row in orders[2]]
    assert sorted(orders[0]) != sorted(orders[2])  # the captions drawn differ too


def test_a_million_steps_on_the_batch_is_still_a_fair_one(make):
    batches = make(people([2] * 8), batch=8)
    rows = numbers(take(batches, 1, 10**6)[0])
    assert sorted(row[0] for row in rows) == list(range(8))


# --- epochs --------------------------------------------------------------------------


def test_each_image_comes_once_an_epoch_with_one_of_its_own_captions(make):
    counts = [3, 1, 2, 5, 1, 4, 2]  # 7 images in batches of 3: epochs join in mid-batch
    batches = make(people(counts), batch=3)
    assert len(batches) == 7
    rows = [row for batch in take(batches, 7 * 40) for row in numbers(batch)]
    epochs = [rows[i : i + 7] for i in range(0, len(rows), 7)]
    assert len(epochs) == 120
    for epoch in epochs:
        assert sorted(image for image, *_ in epoch) == list(range(7))
    assert all(image == named for image, named, _ in rows)
    orders = {tuple(image for image, *_ in epoch) for epoch in epochs}
    assert len(orders) > 110  # of 5,040 orders, 120 drawn: 1.4 pairs alike expected
    drawn = collections.Counter((image, number) for image, _, number in rows)
    assert set(drawn) == {(i, k) for i, n in enumerate(counts) for k in range(n)}
    for image, count in enumerate(counts):
        share = np.array([drawn[image, k] for k in range(count)])
        expected = 120 / count
        # 5 standard deviations of a binomial: the seed is fixed, so this is no chance.
        assert (abs(share - expected) <= 5 * np.sqrt(expected)).all()


def test_each_pair_comes_once_an_epoch(make):
    counts = [3, 0, 2, 1]
    batches = make(people(counts), batch=4, sample="pair")
    assert len(batches) == 6
    rows = [row for batch in take(batches, 30) for row in numbers(batch)]
    pairs = [(i, i, k) for i, n in enumerate(counts) for k in range(n)]
    epochs = [rows[i : i + 6] for i in range(0, len(rows), 6)]
    assert all(sorted(epoch) == sorted(pairs) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15


def test_image_ids_names_the_images_of_the_global_batch(make):
    whole = make(people([2] * 9), batch=6)
    part = make.again(whole._records, None, 6, np.array([4, 5]))
    for step, batch in enumerate(take(whole, 4)):
        wanted = [f"im{image}" for image, *_ in numbers(batch)]
        assert whole.image_ids(step) == part.image_ids(step) == wanted


# --- what a batch looks like ---------------------------------------------------------


def test_a_batch_holds_uint8_pictures_and_int32_tokens_padded_behind_the_end(make):
    batches = make(people([1] * 5, lambda i, k: i), batch=5, lengths=(8, 32))
    (batch,) = take(batches, 1)
    assert batch["image"].shape == (5, *SIZE, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (5, 8)
    assert batch["tokens"].dtype == np.int32
    for (image, _, number), row in zip(numbers(batch), batch["tokens"], strict=True):
        own = ids(image, number, fill=image)
        assert row.tolist() == own + [PAD] * (8 - len(own))


def test_the_length_is_the_smallest_that_holds_the_longest_of_the_global_batch(make):
    # Image 0 has 12 tokens, image 1 has 13, the others 4 to 8.
    lengths = {0: 12, 1: 13} | {i: 4 + i % 5 for i in range(2, 12)}
    persons = people([1] * 12, lambda i, k: lengths[i] - 4)
    whole = make(persons, batch=3)
    parts = [make.again(whole._records, None, 3, np.array([row])) for row in range(3)]
    seen = set()
    streams = zip(*(take(b, 40) for b in (whole, *parts)), strict=True)
    for batch, *own in streams:
        longest = max(lengths[image] for image, *_ in numbers(batch))
        wanted = next(n for n in LENGTHS if n >= longest)
        assert batch["tokens"].shape[1] == wanted
        assert [piece["tokens"].shape for piece in own] == [(1, wanted)] * 3
        short = [lengths[numbers(piece)[0][0]] < 9 for piece in own]
        seen.add((wanted, any(short)))
    assert {(8, True), (12, True), (16, True)} <= seen


def test_lengths_may_be_given_in_any_order_and_texts_beyond_the_last_are_cut(make):
    persons = people([1, 1], lambda i, k: 20 if i else 0)
    batches = make(persons, batch=2, lengths=(16, 8))
    (batch,) = take(batches, 1)
    assert batches.table.cut == 1
    row = {n[0]: t for n, t in zip(numbers(batch), batch["tokens"], strict=True)}[1]
    assert row.tolist() == [*ids(1, 0, 20)[:15], SEP]


@pytest.mark.parametrize(
    ("longest", "length"), [(1, 8), (8, 8), (9, 12), (12, 12), (13, 16), (16, 16)]
)
def test_bucket_is_the_smallest_length_that_holds_the_longest(longest, length):
    assert pipeline.bucket(longest, LENGTHS) == length


def test_a_cache_changes_no_batch_and_reads_no_picture_twice(make, monkeypatch):
    plain = make(people([2] * 5), batch=4)
    cached = make.again(plain._records, None, 4, cache=True)
    wanted = take(plain, 10, threads=0)  # no thread reads ahead while we count
    count = collections.Counter()
    decode = pipeline.decode_image

    def counting(record, *args, **kwargs):
        count[record.image_id] += 1
        return decode(record, *args, **kwargs)

    monkeypatch.setattr(pipeline, "decode_image", counting)
    for have, want in zip(take(cached, 10, threads=0), wanted, strict=True):
        assert_same(have, want)
    assert count == {f"im{i}": 1 for i in range(5)}
    for have, want in zip(take(cached, 10, threads=4), wanted, strict=True):
        assert_same(have, want)


def test_images_without_a_caption_are_left_out_and_counted(make):
    batches = make(people([2, 0, 1, 0, 1, 0]), batch=3)
    assert (len(batches), batches.without_caption) == (3, 3)
    for batch in take(batches, 20):
        assert sorted(image for image, *_ in numbers(batch)) == [0, 2, 4]
        assert all(image == named for image, named, _ in numbers(batch))


def test_captions_of_a_set_of_their_own_are_used_in_place_of_the_records(make):
    persons = people([1] * 4)
    captions = [CaptionRecord(f"im{i}", (caption(i, 50), "w1")) for i in range(3)]
    captions.append(CaptionRecord("im3", ()))
    batches = make(persons, captions, batch=3, sample="pair")
    assert (len(batches), batches.without_caption) == (6, 1)
    rows = [row for batch in take(batches, 2) for row in batch["tokens"].tolist()]
    wanted = [[*ids(i, 50), *[PAD] * 4] for i in range(3)]
    wanted += [[CLS, WORDS + 1, SEP, *[PAD] * 5]] * 3
    assert sorted(rows) == sorted(wanted)


# --- mistakes and damage -------------------------------------------------------------


def test_captions_of_another_number_of_images_are_refused(make):
    captions = [CaptionRecord(f"im{i}", ("w1",)) for i in range(4)]
    with pytest.raises(UserError, match="captions for 4 images, .* has 5 in split"):
        make(people([1] * 5), captions)


@pytest.mark.parametrize("threads", [0, 2])
def test_captions_made_for_other_images_are_refused(make, threads):
    captions = [CaptionRecord(f"im{i}", ("w1",)) for i in (0, 1, 3, 2)]
    batches = make(people([1] * 4), captions)
    with pytest.raises(UserError) as caught:
        take(batches, 1, threads=threads)
    assert "is 'im" in str(caught.value)
    assert "make the captions again from these records" in str(caught.value)


def test_fewer_samples_than_a_batch_are_refused(make):
    with pytest.raises(UserError, match=r"batch_size=4 .* gives only 3 samples"):
        make(people([2, 0, 1, 1]))
    assert len(make(people([2, 0, 1, 1]), sample="pair")) == 4


def test_records_without_any_caption_are_refused(make):
    with pytest.raises(UserError, match=r"no captions in split 'train' of .*captions"):
        make(people([0] * 5))
    with pytest.raises(UserError, match="no captions in split"):
        make(people([1] * 5), [CaptionRecord(f"im{i}", ()) for i in range(5)])


def test_an_unknown_way_to_sample_is_refused(make):
    with pytest.raises(UserError, match="data.sample 'each' is not one of image, pair"):
        make(people([1] * 5), sample="each")


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("damage", ["cut short", "no picture", "empty"])
def test_a_damaged_image_is_named_from_whatever_thread_reads_it(make, threads, damage):
    persons = people([1] * 6)
    file = persons[3].image
    file = {"cut short": file[: len(file) // 2], "no picture": b"text", "empty": b""}[
        damage
    ]
    persons[3] = PersonRecord(file, "im3", captions=("w3 w0",))
    batches = make(persons, batch=3)
    with pytest.raises(UserError) as caught:
        take(batches, 2, threads=threads)
    assert type(caught.value) is UserError
    assert str(caught.value).startswith("image 'im3' cannot be decoded")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, 4])
def test_a_damaged_record_file_is_named_from_whatever_thread_reads_it(make, threads):
    batches = make(people([1] * 6), batch=6)
    (file,) = pathlib.Path(batches._records.folder).glob("*.array_record*")
    file.write_bytes(file.read_bytes()[:-70_000])
    source = Records(batches._records.folder, "train", PersonRecord)
    batches._records = source
    with pytest.raises(UserError) as caught:
        take(batches, 1, threads=threads)
    assert f"of split 'train' in {source.folder} cannot be read" in str(caught.value)


def test_an_image_beyond_pils_limit_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 8 // 2 - 1)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    with pytest.raises(UserError, match="image 'big' cannot be decoded"):
        pipeline.decode_image(PersonRecord(out.getvalue(), "big"), SIZE)


# --- every item once -----------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "batch"), [(1, 6), (5, 6), (6, 6), (7, 6), (13, 6), (24, 12), (25, 12)]
)
def test_in_order_visits_every_item_once_and_pads_with_the_last(
    count, batch, parts, threads
):
    rows = np.arange(batch).reshape(parts, -1)
    streams = [
        list(pipeline.in_order(count, batch, own, lambda i: i * 10, threads=threads))
        for own in rows
    ]
    assert {len(stream) for stream in streams} == {int(np.ceil(count / batch))}
    assert {b.shape for s in streams for b in s} == {(batch // parts,)}
    joined = np.concatenate([np.concatenate(s) for s in zip(*streams, strict=True)])
    assert joined[:count].tolist() == [i * 10 for i in range(count)]
    assert (joined[count:] == (count - 1) * 10).all()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_order_comes_out_as_it_was_raised(threads):
    def load(indices):
        if 7 in indices:
            raise UserError("image 'im7' cannot be decoded")
        return indices

    stream = pipeline.in_order(20, 4, np.arange(4), load, threads=threads)
    with pytest.raises(UserError) as caught:
        list(stream)
    assert str(caught.value) == "image 'im7' cannot be decoded"
