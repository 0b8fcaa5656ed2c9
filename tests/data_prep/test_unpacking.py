"""A record set's split as a folder of pictures, and back again."""

import os

import building
import pytest

from data_prep import pictures
from unipt_jax.data import records
from unipt_jax.data.records import PersonRecord, Records
from unipt_jax.errors import UserError

PERSON = PersonRecord(b"\xff\xd8\xff jpeg", "a")


def write(folder, *persons):
    records.write_set(folder, PersonRecord, {"test": persons}, metadata={})
    return folder


def test_every_picture_of_the_split_is_a_file_of_the_same_bytes(
    persons, tmp_path, capsys
):
    out = tmp_path / "pictures"
    arguments = ["--records", str(persons), "--split", "val", "--out", str(out)]
    assert pictures.main(arguments) == 0
    source = Records(persons, "val", PersonRecord)
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*.jpg")}
    assert {name: file.read_bytes() for name, file in files.items()} == {
        f"{record.image_id}.jpg": record.image for record in source
    }
    assert capsys.readouterr().out == f"{out}: {len(source)} pictures\n"


def test_a_folder_built_from_what_was_unpacked_has_the_same_captions_and_persons(
    persons, tmp_path
):
    pictures.unpack(persons, "val", tmp_path / "pictures")
    options = ["--out", tmp_path / "again", "--workers", 1]
    code, _, err = building.here("folder", "--raw", tmp_path / "pictures", *options)
    assert (code, err) == (0, "")
    before = Records(persons, "val", PersonRecord)
    after = Records(tmp_path / "again", "val", PersonRecord)

    def known(record):
        return record.image, record.person_id, record.captions

    assert sorted(map(known, before)) == sorted(map(known, after))


def test_files_are_named_for_what_they_are_below_the_folder(tmp_path):
    png = b"\x89PNG and more"
    some = [
        PERSON,
        PersonRecord(png, "b.jpg"),
        PersonRecord(PERSON.image, "./c//d.JPEG"),
    ]
    pictures.unpack(write(tmp_path / "set", *some), "test", tmp_path / "out")
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
            for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
        "a.jpg": PERSON.image, "b.jpg.png": png, "c/d.JPEG": PERSON.image,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("image_id", "image", "said"),
    [
        ("../a", PERSON.image, "leads out of its folder"),
        ("/etc/a", PERSON.image, "leads out of its folder"),
        ("b", b"GIF89a", "neither a JPEG nor a PNG"),
        ("./a", PERSON.image, "two pictures"),
    ],
)
def test_what_has_no_place_of_its_own_is_refused_and_nothing_is_left(
    tmp_path, image_id, image, said
):
    folder = write(tmp_path / "set", PERSON, PersonRecord(image, image_id))
    with pytest.raises(UserError, match=said):
        pictures.unpack(folder, "test", tmp_path / "out")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--records", "nothing", "no record set at"),
        ("--split", "dev", "has no split 'dev'"),
        ("--out", "set", "exists already"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    tmp_path, monkeypatch, capsys, option, value, said
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", PERSON)
    right = {"--records": "set", "--split": "test", "--out": "out"} | {option: value}
    assert pictures.main([word for pair in right.items() for word in pair]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_what_a_killed_run_left_is_replaced(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half.jpg").write_bytes(b"half")
    pictures.unpack(write(tmp_path / "set", PERSON), "test", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["a.jpg"]
