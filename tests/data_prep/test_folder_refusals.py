"""A folder with a mistake: one sentence that names the line, and nothing is written."""

import building
import pytest
from building import HEADER, write

from data_prep import build

JSONL = '{"path": "a.png", "caption": "x", "person_id": 1}\n'


def refused(raw, rows=None, text=None, file="captions.csv", options=()):
    """What was printed, and the one sentence with which the build ends."""
    raw.mkdir(exist_ok=True)
    if rows is not None:
        text = "".join(f"{line}\n" for line in [",".join(HEADER), *rows])
    if text is not None:
        (raw / file).write_text(text, encoding="utf-8")
    before = building.tree(raw.parent)
    command = ["folder", "--raw", raw, "--out", raw.parent / "out", *options]
    code, out, err = building.here(*command)
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert building.tree(raw.parent) == before
    assert not list(raw.parent.glob("out*"))
    return out, err.removeprefix("error: ")


def test_a_folder_without_captions_and_pictures_is_told_what_is_missing(tmp_path):
    _, said = refused(tmp_path / "raw")
    assert said.startswith(f"no image in {tmp_path / 'raw'}")
    assert ".jpg" in said


def test_captions_in_two_files_are_refused(tmp_path):
    write(tmp_path / "raw", [["a.png", "x", "1", "train"]])
    _, said = refused(tmp_path / "raw", text=JSONL, file="captions.jsonl")
    assert "captions.csv and captions.jsonl are both there; keep one" in said


def test_captions_that_are_a_link_to_nothing_are_not_taken_for_none(tmp_path):
    building.picture(tmp_path / "raw" / "a.png")
    (tmp_path / "raw" / "captions.csv").symlink_to("gone.csv")
    assert "captions.csv is a dead link" in refused(tmp_path / "raw")[1]


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("path,person_id\na.png,1\n", "lacks caption"),
        ("file,text\na.png,x\n", "columns file, text; it lacks caption, path"),
        ("path;caption\na.png;x\n", "lacks caption, path"),
        ("", "columns none; it lacks caption, path"),
    ],
)
def test_missing_columns_are_named(tmp_path, text, lacks):
    assert lacks in refused(tmp_path / "raw", text=text)[1]


def test_a_header_alone_is_refused(tmp_path):
    assert "no rows" in refused(tmp_path / "raw", [])[1]


def test_a_jsonl_file_without_objects_is_refused(tmp_path):
    _, said = refused(tmp_path / "raw", text="\n \n", file="captions.jsonl")
    assert "captions.jsonl has no rows" in said


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("b.png,,1,train", "path and caption must not be empty"),
        ("b.png,   ,1,train", "path and caption must not be empty"),
        (",x,1,train", "path and caption must not be empty"),
        ("b.png", "path and caption must not be empty"),
        ("b.png,x,1,dev", "split 'dev' is not one of pretrain, train, val, test"),
        ("b.png,x,1,Train", "split 'Train' is not one of"),
        ("/etc/b.png,x,1,train", "path '/etc/b.png' leads out of its folder"),
        ("../b.png,x,1,train", "path '../b.png' leads out of its folder"),
        ("s/../../b.png,x,1,train", "leads out of its folder"),
        (r"C:\b.png,x,1,train", "leads out of its folder"),
        ("b.png,red, and tall,1,train", "more fields than columns; quote captions"),
        ("a.png,y,2,train", "a.png has person_id '2', but in RAW line 2 it has '1'"),
        ("a.png,y,zoe,train", "has person_id 'zoe', but in RAW line 2 it has '1'"),
        ("a.png,y,,train", "a.png has person_id '', but in RAW line 2 it has '1'"),
        ("a.png,y,1,test", "a.png has split 'test', but in RAW line 2 it has 'train'"),
    ],
)
def test_a_mistake_in_a_row_is_named_with_its_line(tmp_path, row, why):
    building.picture(tmp_path / "raw" / "a.png", 0)
    _, said = refused(tmp_path / "raw", ["a.png,x,1,train", row])
    assert why.replace("RAW", str(tmp_path / "raw" / "captions.csv")) in said
    assert "captions.csv line 3: " in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{'path': 'b.png'}", "is no JSON"),
        ('{"path": "b.png", "caption": "x"', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (
            '{"path": "b.png", "caption": "x", "person_id": ' + "9" * 5000 + "}",
            "no JSON",
        ),
        ('["b.png", "x"]', 'is ["b.png", "x"]; expected an object with path and'),
        ("3", "is 3; expected an object"),
        ('{"path": "b.png"}', 'is {"path": "b.png"}; expected an object with path and'),
        ('{"path": "b.png", "caption": ["x"]}', "expected an object with path and"),
        ('{"path": "b.png", "caption": 1.5}', "expected an object with path and"),
        ('{"path": "b.png", "caption": null}', "path and caption must not be empty"),
        ('{"path": "b.png", "caption": "x", "split": "dev"}', "split 'dev' is not one"),
        ('{"path": "../b.png", "caption": "x"}', "leads out of its folder"),
        ('{"path": "a.png", "caption": "x", "person_id": "2"}', "has person_id '2'"),
        (r'{"path": "b.png", "caption": "\ud83d"}', "half a character"),
        (r'{"path": "\ud83d.png", "caption": "x"}', "half a character"),
    ],
)
def test_a_mistake_in_a_line_of_jsonl_is_named_with_its_number(tmp_path, line, why):
    building.picture(tmp_path / "raw" / "a.png", 0)
    text = f"{JSONL}\n{line}\n"  # the second line is blank
    _, said = refused(tmp_path / "raw", text=text, file="captions.jsonl")
    assert f"{tmp_path / 'raw'}/captions.jsonl line 3" in said
    assert why in said and len(said) < 500


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, encoding):
    write(tmp_path / "raw", [["a.png", "Hütchen", "1", "train"]], encoding=encoding)
    _, said = refused(tmp_path / "raw")
    assert "captions.csv is not UTF-8" in said and "save it as UTF-8" in said


def test_a_quote_that_is_not_closed_is_refused_with_its_line(tmp_path):
    for name in ("a.png", "b.png"):
        building.picture(tmp_path / "raw" / name, 0)
    rows = ['a.png,"a man,1,train', "b.png,a woman,2,train"]
    assert "captions.csv line" in refused(tmp_path / "raw", rows)[1]


def test_a_field_longer_than_csv_allows_is_refused(tmp_path):
    building.picture(tmp_path / "raw" / "a.png", 0)
    _, said = refused(tmp_path / "raw", [f"a.png,{'x' * 200_000},1,"])
    assert "captions.csv line" in said


@pytest.mark.parametrize("options", [(), ("--allow-missing",)])
def test_a_person_in_two_splits_is_refused_whatever_one_allows(tmp_path, options):
    rows = [["a.png", "a x", "zoe", "train"], ["b.png", "a x", "zoe", "test"]]
    write(tmp_path / "raw", rows)
    out, said = refused(tmp_path / "raw", options=options)
    assert "1 identity is in more than one split: 0 (test and train)" in said
    assert "correct the splits" in said and said.rstrip() in out.replace(
        "PROBLEM: ", f"{tmp_path / 'raw'}: "
    )


# --- pictures ------------------------------------------------------------------------


def allowed(raw):
    """What is left out, and how many images there are, with --allow-missing."""
    out = raw.parent / "out"
    command = ["folder", "--raw", raw, "--out", out, "--allow-missing"]
    code, _, err = building.here(*command)
    assert (code, err) == (0, "")
    lines = map(build.prepare.json.loads, (out / "left_out.jsonl").open())
    made = build.records.metadata(out)
    left = {line["image_id"]: line["why"] for line in lines}
    assert made["left_out"] == len(left) and made["allow_missing"] is True
    assert made["counts"]["train"]["images"] == build.records.splits(out)["train"]
    return left, build.records.splits(out)


def test_missing_pictures_are_counted_and_the_first_named(tmp_path):
    rows = [f"{i}.png,a man x,{i},train" for i in range(8)]
    building.picture(tmp_path / "raw" / "3.png", 0)
    out, said = refused(tmp_path / "raw", rows)
    wanted = "7 of 8 images of . are missing: 0.png, 1.png, 2.png and 4 more"
    assert f"PROBLEM: {wanted}" in out
    assert "1 problem, see above" in said and "--allow-missing" in said
    left, splits = allowed(tmp_path / "raw")
    assert left == {f"{i}.png": "missing" for i in range(8) if i != 3}
    assert splits == {"train": 1}


@pytest.mark.parametrize("kept", [0, 4, 50])
def test_pictures_that_cannot_be_read_are_named(tmp_path, kept):
    for value, name in enumerate(("good.png", "bad.png")):
        building.picture(tmp_path / "raw" / name, value)
    whole = (tmp_path / "raw" / "bad.png").read_bytes()
    (tmp_path / "raw" / "bad.png").write_bytes(whole[:kept])
    rows = ["good.png,a man x,1,train", "bad.png,a man x,1,train"]
    out, said = refused(tmp_path / "raw", rows)
    assert "PROBLEM: 1 image cannot be read: bad.png (" in out
    assert "--allow-missing" in said
    left, splits = allowed(tmp_path / "raw")
    assert list(left) == ["bad.png"] and left["bad.png"] != "missing"
    assert splits == {"train": 1}


def test_a_split_is_not_left_out_as_a_whole(tmp_path):
    rows = ["good.png,a man x,1,train", "bad.png,a man x,2,test"]
    building.picture(tmp_path / "raw" / "good.png")
    _, said = refused(tmp_path / "raw", rows, options=["--allow-missing"])
    assert "all images of test would be left out" in said


def test_a_path_that_is_a_folder_is_missing(tmp_path):
    building.picture(tmp_path / "raw" / "b.png")
    (tmp_path / "raw" / "a").mkdir(parents=True)
    rows = ["a,a man x,1,train", "b.png,a man x,1,train"]
    out, _ = refused(tmp_path / "raw", rows)
    assert "PROBLEM: 1 of 2 images of . is missing: a\n" in out


def test_a_folder_of_none_of_the_pictures_is_no_matter_of_allowing(tmp_path):
    rows = ["a.png,a man x,1,train"]
    _, said = refused(tmp_path / "raw", rows, options=["--allow-missing"])
    assert "none of the images" in said


@pytest.mark.parametrize("captions", [True, False])
@pytest.mark.parametrize("options", [(), ("--allow-missing",)])
def test_a_link_that_leads_out_of_the_folder_is_refused_by_name(
    tmp_path, captions, options
):
    building.picture(tmp_path / "elsewhere.png", 9)
    building.picture(tmp_path / "raw" / "a.png", 8)
    (tmp_path / "raw" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    if captions:
        write(tmp_path / "raw", [["link.png", "x", "", ""]])
    _, said = refused(tmp_path / "raw", options=options)
    where = f"{tmp_path / 'raw'}/link.png is a link to {tmp_path / 'elsewhere.png'}"
    assert where in said and "only what lies below it is read" in said
