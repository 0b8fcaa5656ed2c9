"""Splits of the identity sets: from the annotation, from a file of the user's, or from
the published ranges of identities where all else is as published."""

import json

import pytest
import trees

from unipt_jax.data import records


@pytest.fixture
def cuhk(tmp_path, monkeypatch):
    """CUHK-PEDES with its pictures, but no annotation as yet."""
    tree = trees.cuhk_pedes(tmp_path / "raw")
    tree.publish(monkeypatch)
    tree.illustrate()
    return tree


@pytest.fixture
def unsplit(cuhk):
    """With an annotation that has no splits."""
    cuhk.annotate("caption_all.json", split=False)
    return cuhk


def save(tree, value, name="splits.json"):
    """A file beside `raw`."""
    file = tree.raw.parent / name
    file.write_text(json.dumps(value))
    return file


def by_path(entries):
    return {entry["file_path"]: entry["split"] for entry in entries}


def by_split(entries):
    out = {"train": [], "val": [], "test": []}
    for entry in entries:
        out[entry["split"]].append(entry["file_path"])
    return out


# --- from the published ranges -------------------------------------------------------


def test_splits_are_derived_where_identities_and_counts_are_the_published_ones(unsplit):
    assert unsplit.built() == unsplit.planted()
    done = unsplit.check()
    assert done.code == 0
    derived = (
        "caption_all.json has no splits: taken from the published ranges of "
        "identities, since identities and counts are exactly those"
    )
    assert derived in done.notes()
    assert records.metadata(unsplit.out)["notes"] == [derived]


@pytest.mark.parametrize("name", ["icfg_pedes", "rstp_reid"])
def test_other_sets_without_splits_are_derived_alike(tmp_path, monkeypatch, name):
    tree = trees.MAKERS[name](tmp_path / "raw").write(split=False)
    tree.publish(monkeypatch)
    assert tree.built() == tree.planted()


def asks_for_splits(tree, why):
    before = sorted(tree.raw.parent.rglob("*"))
    done = tree.prepare()
    assert done.code == 1
    assert done.error.startswith(
        f"{tree.raw}/caption_all.json does not say which split an image is in, and the "
        "published ranges of identities cannot be trusted with it ("
    )
    assert why in done.error
    assert "--splits FILE: the data set's reid_raw.json, or JSON" in done.error
    assert sorted(tree.raw.parent.rglob("*")) == before


def test_splits_are_not_derived_where_an_identity_is_missing(cuhk):
    cuhk.entries = [entry for entry in cuhk.entries if entry["id"] != 3]
    cuhk.annotate("caption_all.json", split=False)
    asks_for_splits(cuhk, "its 10 identities, 1 to 11, are not the published 1 to 11")


def test_splits_are_not_derived_where_identities_are_numbered_anew(cuhk):
    """From 0, as a program that numbers them again would."""
    for entry in cuhk.entries:
        entry["id"] -= 1
    cuhk.annotate("caption_all.json", split=False)
    asks_for_splits(cuhk, "its 11 identities, 0 to 10, are not the published 1 to 11")


def test_splits_are_not_derived_where_there_is_one_more_identity(cuhk):
    cuhk.entries[-1]["id"] = 12
    cuhk.annotate("caption_all.json", split=False)
    asks_for_splits(cuhk, "its 12 identities, 1 to 12, are not the published 1 to 11")


def test_splits_are_not_derived_where_an_image_is_missing(cuhk):
    del cuhk.entries[5]
    cuhk.annotate("caption_all.json", split=False)
    asks_for_splits(cuhk, "train would have 12 images where 13 are published")


def test_splits_are_not_derived_where_images_changed_places(cuhk):
    """An identity's number is not what it was: the total is right, the splits not."""
    next(entry for entry in cuhk.entries if entry["id"] == 8)["id"] = 7
    cuhk.annotate("caption_all.json", split=False)
    asks_for_splits(cuhk, "images where")


# --- from a file of the user's -------------------------------------------------------


@pytest.mark.parametrize("kind", ["reid_raw.json", "{path: split}", "{split: [paths]}"])
def test_splits_are_taken_from_a_file_in_any_of_three_forms(unsplit, kind):
    if kind == "reid_raw.json":
        file = unsplit.annotate(unsplit.raw.parent / "reid_raw.json")
    else:
        form = {"{path: split}": by_path, "{split: [paths]}": by_split}[kind]
        file = save(unsplit, form(unsplit.entries))
    assert unsplit.built("--splits", file) == unsplit.planted()
    meta = records.metadata(unsplit.out)
    assert set(meta["sources"]) == {"caption_all.json", file.name}
    assert meta["notes"] == []


def test_splits_given_win_over_derived_ones(cuhk):
    """Here an identity is missing, so that ranges would have been of no use."""
    cuhk.entries = [entry for entry in cuhk.entries if entry["id"] != 9]
    cuhk.annotate("caption_all.json", split=False)
    file = save(cuhk, by_path(cuhk.entries))
    done = cuhk.check("--splits", file)
    assert done.code == 1
    assert done.problems() == [
        "val is not as published: images 2 of 4, identities 1 of 2, captions 4 of 8"
    ]
    assert cuhk.built("--splits", file, "--allow-missing") == cuhk.planted()


def test_splits_by_paths_with_backslashes_and_dots_are_the_same(unsplit):
    given = {
        ".\\" + p.replace("/", "\\"): s for p, s in by_path(unsplit.entries).items()
    }
    assert unsplit.built("--splits", save(unsplit, given)) == unsplit.planted()


def test_splits_in_a_file_with_a_byte_order_mark_are_read(unsplit):
    file = unsplit.annotate(unsplit.raw.parent / "reid_raw.json", bom=True)
    assert unsplit.check("--splits", file).code == 0


def test_splits_of_more_images_than_there_are_do_no_harm(unsplit):
    given = by_path(unsplit.entries) | {"cam_a/other.bmp": "test"}
    assert unsplit.check("--splits", save(unsplit, given)).code == 0


def test_an_image_that_the_splits_leave_out_is_named(unsplit):
    given = by_path(unsplit.entries)
    path = unsplit.images[7]
    del given[path]
    file = save(unsplit, given)
    done = unsplit.check("--splits", file)
    assert done.code == 1
    assert done.error.startswith(f"{file} has no split for {path} (")
    assert "caption_all.json entry 8)" in done.error


def test_splits_that_contradict_the_annotation_are_refused(cuhk):
    cuhk.annotate()
    path = cuhk.of("test")[0]["file_path"]
    file = save(cuhk, by_path(cuhk.entries) | {path: "train"})
    done = cuhk.check("--splits", file)
    assert done.code == 1
    where = f"{cuhk.raw}/reid_raw.json entry {cuhk.images.index(path) + 1}"
    assert f"{path} is in train, {where} says test" in done.error


def test_splits_that_agree_with_the_annotation_do_no_harm(cuhk):
    cuhk.annotate()
    assert cuhk.built("--splits", save(cuhk, by_split(cuhk.entries))) == cuhk.planted()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (
            {"cam_a/a.bmp": "dev"},
            "'split' is \"dev\", expected one of train, val, test",
        ),
        ({"dev": ["cam_a/a.bmp"]}, "expected one of train, val, test"),
        ({"train": [7]}, "'file_path' is 7, expected the path of an image"),
        ({"../a.bmp": "train"}, "the path '../a.bmp' leads out of its folder"),
        ({"train": ["/etc/a.bmp"]}, "the path '/etc/a.bmp' leads out of its folder"),
        ([{"file_path": "cam_a/a.bmp"}], "there is no 'split', expected one of"),
        (["cam_a/a.bmp"], "there is no 'file_path', expected the path of an image"),
        ("train", "expected a list or an object of entries"),
    ],
)
def test_a_file_of_splits_in_no_known_form_is_refused_by_name(unsplit, value, why):
    file = save(unsplit, value)
    done = unsplit.check("--splits", file)
    assert done.code == 1
    assert str(file) in done.error
    assert why in done.error


@pytest.mark.parametrize("kind", ["list", "by path", "by split"])
def test_a_file_that_gives_an_image_two_splits_is_refused(unsplit, kind):
    path = unsplit.images[0]  # of train
    value = {"by path": by_path, "by split": by_split}.get(kind, list)(unsplit.entries)
    if kind == "by split":
        value["test"].append(path)
    elif kind == "list":
        value.append({"file_path": path, "split": "test"})
    else:
        value["./" + path] = "test"  # another name of the same image
    file = save(unsplit, value)
    done = unsplit.check("--splits", file)
    assert done.code == 1
    assert done.error.startswith(str(file))
    assert f"{path} is in test, but in train further up" in done.error


# --- from the annotation -------------------------------------------------------------


def test_of_both_annotations_the_one_with_splits_is_read(unsplit):
    unsplit.annotate()
    (unsplit.raw / "caption_all.json").write_text("[]")
    done = unsplit.check()
    assert done.code == 0
    assert f"by {unsplit.raw}/reid_raw.json\n" in done.out
    assert not any("has no splits" in note for note in done.notes())


def test_the_one_with_splits_is_read_though_it_lies_deeper(unsplit):
    file = unsplit.annotate("CUHK-PEDES/reid_raw.json")
    assert f"by {file}\n" in unsplit.check().out


def test_of_both_annotations_either_can_be_asked_for(unsplit):
    unsplit.annotate()
    done = unsplit.check("--annotations", unsplit.raw / "caption_all.json")
    assert done.code == 0
    assert f"by {unsplit.raw}/caption_all.json\n" in done.out
    assert any("has no splits" in note for note in done.notes())


@pytest.mark.parametrize("value", [None, "", "dev", "Train", 1])
def test_a_split_that_is_none_is_named_with_its_entry(cuhk, value):
    cuhk.entries[4]["split"] = value
    cuhk.annotate()
    done = cuhk.check()
    assert done.code == 1
    assert done.error.startswith(f"{cuhk.raw}/reid_raw.json entry 5: 'split' is ")
    assert "expected one of train, val, test" in done.error


def test_an_entry_without_a_split_among_others_is_named(cuhk):
    del cuhk.entries[4]["split"]
    cuhk.annotate()
    done = cuhk.check()
    assert done.code == 1
    assert done.error.startswith(f"{cuhk.raw}/reid_raw.json entry 5: there is no 'spli")


def test_splits_fill_in_what_some_entries_lack(cuhk):
    given, wanted = save(cuhk, by_path(cuhk.entries)), cuhk.planted()
    for entry in cuhk.entries[4:7]:
        del entry["split"]
    cuhk.annotate()
    assert cuhk.built("--splits", given) == wanted


def test_icfg_pedes_is_split_by_its_json_and_not_by_its_folders(tmp_path, monkeypatch):
    tree = trees.icfg_pedes(tmp_path / "raw").write()
    tree.publish(monkeypatch)
    found = tree.built()
    assert set(found) == {"train", "test"}  # no val, and that is as it should be
    for split, some in found.items():
        folders = {record.image_id.split("/")[0] for record in some}
        assert folders == {"train", "test"}, split
    assert tree.check().problems() == []


def test_a_val_split_of_icfg_pedes_is_one_that_is_not_published(tmp_path, monkeypatch):
    tree = trees.icfg_pedes(tmp_path / "raw")
    tree.publish(monkeypatch)
    for entry in tree.of("test")[:3]:
        entry["split"] = "val"
    done = tree.write().check()
    assert done.code == 1
    assert done.problems() == [
        "test is not as published: images 3 of 6, identities 1 of 2, captions 3 of 6",
        "val has 3 images; no such split is published",
    ]
