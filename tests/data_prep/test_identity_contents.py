"""Traps in the identity sets: images that are missing, persons in two splits, captions
that are empty, foreign or too long. What is said, and what is written."""

import pytest
import trees

from data_prep.entries import Counts, Published
from unipt_jax.data import records, tokenizers

# --- missing -------------------------------------------------------------------------


def test_whole_folders_that_are_missing_are_grouped_with_their_numbers(cuhk):
    cuhk.write(without=lambda path: path.startswith(("Market/", "cam_a/")))
    cuhk.refused(
        "3 of 3 images of cam_a are missing, the whole folder",
        "3 of 3 images of Market are missing, the whole folder",
    )
    rows = [line.split() for line in cuhk.check().out.splitlines()]
    gone = [e for e in cuhk.entries if e["file_path"].startswith(("Market", "cam_a"))]
    train = sum(e["split"] == "train" for e in gone)
    assert [*f"train {train} 13 of 13 7 of 7 28 of 28".split()] in rows
    assert [*["all", "6", "21", "of", "21", "11", "of", "11", "44", "of", "44"]] in rows


def test_single_images_that_are_missing_are_named(cuhk):
    gone = {cuhk.images[0], cuhk.images[4], cuhk.images[11]}
    cuhk.write(without=gone.__contains__)
    cuhk.refused(
        f"2 of 3 images of Market are missing: {cuhk.images[4]}, {cuhk.images[11]}",
        f"1 of 3 images of cam_a is missing: {cuhk.images[0]}",
    )


def test_of_many_missing_images_three_are_named(make):
    tree = make("rstp_reid")
    tree.write(without=set(tree.images[:9]).__contains__)
    names = ", ".join(tree.images[:3])
    tree.refused(f"9 of 25 images of . are missing: {names} and 6 more")


def test_of_many_folders_with_missing_images_twenty_are_listed(make):
    """ICFG-PEDES has a folder for each person."""
    published = Published({"train": Counts(80, 40, 80), "test": Counts(2, 1, 2)})
    tree = make("icfg_pedes", published=published)
    tree.write(without=lambda path: path.startswith("train/"))
    problems = tree.check().problems()
    assert len(problems) == 21
    folders = {p.rpartition("/")[0] for p in tree.images if p.startswith("train/")}
    images = sum(p.startswith("train/") for p in tree.images)
    assert problems[-1] == f"... {len(folders)} folders in all, {images} images"


def test_what_is_missing_is_left_out_if_one_says_so(cuhk):
    """The second person's images all: the labels close up."""
    gone = {entry["file_path"] for entry in cuhk.entries if entry["id"] == 2}
    cuhk.write(without=gone.__contains__)
    wanted = cuhk.entries
    cuhk.entries = [entry for entry in wanted if entry["id"] != 2]
    found = cuhk.built("--allow-missing")
    assert found == cuhk.planted()
    assert sorted({r.label for r in found["train"]}) == [0, 1, 2, 3, 4, 5]
    assert sorted({r.person_id for r in found["train"]}) == [1, 3, 4, 5, 6, 7]
    assert cuhk.left_out() == dict.fromkeys(gone, "missing")
    meta = records.metadata(cuhk.out)
    assert (meta["left_out"], meta["allow_missing"]) == (2, True)
    captions = sum(len(entry["captions"]) for entry in cuhk.of("train"))
    train = {"images": 11, "identities": 6, "captions": captions}
    assert meta["counts"]["train"] == train
    said = {"images": 13, "identities": 7, "captions": 28}
    assert meta["published"]["train"] == said
    assert "--allow-missing" in meta["command"]


def test_nothing_is_left_out_of_a_whole_set(cuhk):
    cuhk.write()
    assert cuhk.built("--allow-missing") == cuhk.planted()
    assert not (cuhk.out / "left_out.jsonl").exists()


def test_a_split_without_images_is_refused_even_then(cuhk):
    gone = {entry["file_path"] for entry in cuhk.of("val")}
    cuhk.write(without=gone.__contains__)
    done = cuhk.prepare("--allow-missing")
    assert done.code == 1
    assert done.error.startswith("all images of val would be left out; nothing was w")
    assert not cuhk.out.exists()


@pytest.mark.parametrize("more", [[], ["--allow-missing"]])
def test_a_folder_with_none_of_the_images_is_refused_even_then(cuhk, more):
    cuhk.annotate()
    done = cuhk.prepare(*more)
    assert done.code == 1
    assert done.error.startswith("none of the images of cuhk_pedes (21) is in ")


def test_dead_links_are_told_from_what_is_not_there(cuhk):
    cuhk.write(without=lambda path: path.startswith("Market/"))
    market = [path for path in cuhk.images if path.startswith("Market/")]
    (cuhk.raw / "imgs" / "Market").mkdir()
    for path in market[:2]:
        (cuhk.raw / "imgs" / path).symlink_to("/nowhere/" + path)
    cuhk.refused(
        "3 of 3 images of Market are missing, the whole folder (2 are dead links)",
    )


def test_a_folder_that_is_a_dead_link_is_told(cuhk):
    cuhk.write(without=lambda path: path.startswith("Market/"))
    (cuhk.raw / "imgs" / "Market").symlink_to("/nowhere/Market")
    cuhk.refused(
        "3 of 3 images of Market are missing, the whole folder (3 are dead links)",
    )


def test_a_folder_in_an_images_place_is_a_missing_image(cuhk):
    cuhk.write(without={cuhk.images[0]}.__contains__)
    (cuhk.raw / "imgs" / cuhk.images[0]).mkdir()
    cuhk.refused(f"1 of 3 images of cam_a is missing: {cuhk.images[0]}")


def test_pictures_that_no_annotation_names_are_counted(cuhk):
    cuhk.write()
    for name in ("cam_a/more.bmp", "Market/more.jpg"):
        (cuhk.raw / "imgs" / name).write_bytes(trees.cheap(1, 1, ""))
    (cuhk.raw / "imgs" / "Thumbs.db").write_bytes(b"")
    done = cuhk.check()
    assert done.code == 0
    assert (
        "2 pictures are in no annotation, and left out: imgs/Market/more.jpg, "
        "imgs/cam_a/more.bmp" in done.notes()
    )


# --- counts --------------------------------------------------------------------------


def test_the_other_total_of_captions_in_print_is_accepted(cuhk):
    """As 80,412 is for 80,440; here 42 for 44."""
    for entry in cuhk.entries:
        del entry["captions"][2:]
    assert cuhk.write().check().problems() == []


def test_any_other_total_of_captions_is_not(cuhk):
    del cuhk.entries[0]["captions"][0]
    for entry in cuhk.of("val")[:2]:
        del entry["captions"][0]
    cuhk.write().refused(
        "train is not as published: captions 27 of 28",
        "val is not as published: captions 6 of 8",
    )


def test_an_image_that_is_named_twice_is_one_with_the_captions_of_both(make):
    tree = make("rstp_reid").write()
    twice = [dict(entry) for entry in tree.entries for _ in range(2)]
    for n, entry in enumerate(twice):
        entry["captions"] = entry["captions"][n % 2 : n % 2 + 1]
    wanted, tree.entries = tree.planted(), twice
    tree.annotate()
    assert tree.built() == wanted
    (note,) = records.metadata(tree.out)["notes"]
    assert note.startswith("25 of the annotation's 50 entries name an image again")
    assert tree.check().problems() == []


@pytest.mark.parametrize("same", [False, True])
def test_icfg_pedes_may_name_one_image_twice(make, same):
    """As it is said to do: 34,673 paths in 34,674 entries of train."""
    tree = make("icfg_pedes")
    first, second = tree.of("train")[:2]
    second["file_path"] = first["file_path"]
    if same:
        second["captions"] = first["captions"]
    done = tree.write().check()
    assert (done.code, done.problems()) == (0, [])
    assert any(note.startswith("1 of the annotation's 18 ent") for note in done.notes())
    found = tree.built()["train"]
    assert len(found) == 11
    assert found[0].captions == tuple(
        dict.fromkeys(first["captions"] + second["captions"])
    )


@pytest.mark.parametrize(("field", "value"), [("id", 4), ("split", "test")])
def test_an_image_that_is_named_twice_differently_is_refused(make, field, value):
    tree = make("rstp_reid").write()
    tree.entries.append(tree.entries[2] | {field: value})
    tree.annotate()
    done = tree.check()
    assert done.code == 1
    assert f"entry 26: {tree.images[2]} has " in done.error
    assert f"'{value}', but in {tree.raw}/data_captions.json entry 3" in done.error


# --- persons -------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--allow-missing"]])
def test_identities_in_two_splits_are_refused_whatever_one_says(cuhk, more):
    entries = [e for e in cuhk.of("test") if e["id"] == 10]
    entries[0]["split"] = "train"
    cuhk.write()
    for done in (cuhk.check(*more), cuhk.prepare(*more)):
        assert done.code == 1
        assert done.error.startswith(
            f"{cuhk.raw}: 1 identity is in more than one split: 10 (test and train);"
        )
        assert "correct the splits" in done.error
    assert not cuhk.out.exists()


def test_identities_with_one_image_are_noted(make):
    """As 1369, 4116 and 6116 are in CUHK-PEDES."""
    tree = make("cuhk_pedes", singles=frozenset({1, 3, 6})).write()
    done = tree.check()
    assert done.code == 0
    assert "3 identities have one image: 1, 3, 6" in done.notes()
    assert tree.built() == tree.planted()


# --- captions ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "  \n"])
def test_empty_captions_are_counted_and_not_written(cuhk, value):
    cuhk.entries[2]["captions"][1] = value
    cuhk.write()
    path = cuhk.images[2]
    cuhk.refused(
        "train is not as published: captions 27 of 28",
        f"1 image has an empty caption: {path}",
    )
    del cuhk.entries[2]["captions"][1]
    assert cuhk.built("--allow-missing") == cuhk.planted()


@pytest.mark.parametrize("value", [[], ["", " "], ""])
def test_images_without_any_caption_are_counted(make, value):
    tree = make("icfg_pedes")
    tree.entries[2]["captions"] = value
    problems = tree.write().check().problems()
    assert f"1 image has no caption at all: {tree.images[2]}" in problems
    tree.entries[2]["captions"] = []
    assert tree.built("--allow-missing") == tree.planted()


@pytest.mark.parametrize("value", [None, 7, ["a man", 7], [["a man"]], {"a": "man"}])
def test_captions_that_are_no_sentences_are_refused_with_their_entry(cuhk, value):
    cuhk.entries[2]["captions"] = value
    done = cuhk.write().check()
    assert done.code == 1
    assert done.error.startswith(f"{cuhk.raw}/reid_raw.json entry 3: 'captions' is ")
    assert "expected a sentence or a list of sentences" in done.error


def test_captions_that_do_not_look_english_are_noted(cuhk):
    foreign = [
        "一个穿红色外套的男人",
        "Мужчина в красной куртке",
        "Ein Mann trägt eine rote Jacke",
        "1234 5678",
        "Un hombre lleva una chaqueta roja",
    ]
    english = ["Red coat, tall.", "He wears a café-coloured coat.", "woman"]
    for entry, text in zip(cuhk.entries, foreign + english, strict=False):
        entry["captions"][0] = text
    done = cuhk.write().check()
    assert done.code == 0
    (note,) = [note for note in done.notes() if "English" in note]
    shown = ", ".join(map(repr, foreign[:3]))
    assert note == f"5 captions do not look English: {shown} and 2 more"
    assert cuhk.built() == cuhk.planted()


def test_over_long_captions_are_noted_by_their_words(cuhk):
    cuhk.entries[0]["captions"][0] = " ".join(["the"] * 99)
    cuhk.entries[3]["captions"][0] = " ".join(["the"] * 98)  # and two special tokens
    done = cuhk.write().check()
    assert done.code == 0
    (note,) = [note for note in done.notes() if "longer" in note]
    assert note.startswith("1 caption is longer than 100 words and marks alone (--tok")
    assert note.endswith(f"; the rest is cut off in training: {cuhk.images[0]}")
    assert cuhk.built() == cuhk.planted()


def test_over_long_captions_are_noted_by_the_tokenizer_that_is_given(cuhk, tmp_path):
    tokenizer = tokenizers.train(["the red coat"], size=14)  # letters, mostly
    tokenizer.save(tmp_path / "words")
    cuhk.entries = cuhk.entries[:5]
    for entry in cuhk.entries:
        entry["captions"] = ["the red coat the red"]
    cuhk.entries[1]["captions"] = ["the red"]
    (row, short), _ = tokenizer.encode(["the red coat the red", "the red"], 99)
    assert len(row) > len(short)
    args = ["--tokenizer", tmp_path / "words", "--text-length"]
    notes = cuhk.write().check(*args, len(row) - 1).notes()
    (note,) = [note for note in notes if "longer" in note]
    assert note.startswith(
        f"4 captions are longer than {len(row) - 1} tokens; the rest"
    )
    assert not any("longer" in s for s in cuhk.check(*args, len(row)).notes())
    assert not any(
        "longer" in s for s in cuhk.check("--text-length", 7).notes()
    )  # words
