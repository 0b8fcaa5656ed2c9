"""A CSV says which persons stand where; what is amiss in it is told with the line."""

import pytest

from unipt_jax.errors import UserError
from unipt_jax.search import boxes
from unipt_jax.search.scan import File, Found

FOLDERS = ("/photos", "/more")
PATHS = [(0, b"a, b.jpg"), (0, b"caf\xe9.jpg"), (0, b"deep/c.jpg")]
PATHS += [(1, b"a, b.jpg"), (1, b"own.jpg")]
FOUND = Found([File(*key, 1, 1) for key in PATHS], {(0, b"bad.jpg"): "why"})
HEAD = "path,x,y,w,h\n"


@pytest.fixture
def read(tmp_path):
    """The boxes of a CSV with that content."""

    def of(content: str | bytes):
        file = tmp_path / "boxes.csv"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return boxes.read(file, FOLDERS, FOUND)

    return of


@pytest.fixture
def refused(read, tmp_path):
    """The one sentence that a content gives, without the file's name."""

    def of(content: str | bytes) -> str:
        with pytest.raises(UserError) as raised:
            read(content)
        assert "\n" not in str(raised.value)
        name, said = str(raised.value).split("boxes.csv", 1)
        assert name == f"{tmp_path}/"
        return said

    return of


def test_a_file_of_several_persons_has_their_boxes_in_order(read):
    rows = "deep/c.jpg,10,20,64,128\n/more/own.jpg,0,0,5,5\ndeep/c.jpg,-5,3,1,2\n"
    c = [(10, 20, 64, 128), (-5, 3, 1, 2)]
    assert read(HEAD + rows) == {PATHS[2]: c, PATHS[4]: [(0, 0, 5, 5)]}


def test_columns_stand_in_any_order_among_others(read):
    content = 'score, H ,w,note,PATH,y,x\n0.9,4,3,"said ""hi"", once",own.jpg,2,1\n'
    assert read(content) == {PATHS[4]: [(1, 2, 3, 4)]}


@pytest.mark.parametrize(
    "content",
    [
        HEAD + '"a, b.jpg",1,2,3,4\n',
        "\ufeff" + HEAD + '"a, b.jpg",1,2,3,4\n',
        HEAD.replace("\n", "\r\n") + '"a, b.jpg",1,2,3,4\r\n\r\n',
        HEAD + '\n"a, b.jpg",1,2,3,4',
        HEAD + '" a, b.jpg ", 1 ,2,3,4,,\n',
        HEAD + '"./deep/../a, b.jpg",1,2,3,4\n',
        HEAD + '"/photos/a, b.jpg",1,2,3,4\n',
    ],
)
def test_what_programs_write_is_read_alike(read, content):
    assert read(content) == {PATHS[0]: [(1, 2, 3, 4)]}


def test_numbers_are_rounded(read):
    [box] = read(HEAD + "own.jpg,10.0,10.6,1e2,3.5\n")[PATHS[4]]
    assert box == (10, 11, 100, 4) and {type(side) for side in box} == {int}


def test_a_name_that_is_no_utf8_is_found_by_its_bytes(read):
    assert read(HEAD.encode() + b"caf\xe9.jpg,1,2,3,4\n") == {PATHS[1]: [(1, 2, 3, 4)]}


def test_a_name_that_ends_with_a_space_is_found(tmp_path):
    files = [File(0, b" a ", 1, 1), File(0, b"a", 1, 1)]
    (tmp_path / "boxes.csv").write_text(HEAD + " a ,1,2,3,4\na ,1,2,3,4\n")
    found = boxes.read(tmp_path / "boxes.csv", FOLDERS, Found(files, {}))
    assert list(found) == [(0, b" a "), (0, b"a")]


def test_the_first_folder_that_has_a_path_is_meant(read):
    found = read(HEAD + '"a, b.jpg",1,2,3,4\n"/more/a, b.jpg",1,2,3,4\n')
    assert list(found) == [PATHS[0], PATHS[3]]


def test_a_file_that_cannot_be_read_may_have_boxes(read):
    assert list(read(HEAD + "bad.jpg,1,2,3,4\n")) == [(0, b"bad.jpg")]


def test_a_missing_column_is_told(refused):
    said = ":1: no column w, h; the first line must name the columns path,x,y,w,h"
    assert refused("path,x,y\na.jpg,1,2\n").startswith(said)
    assert "no column path, x, y, w, h" in refused("")
    assert ":1: two columns x" in refused("path,x,y,w,h,x\n")


@pytest.mark.parametrize("value", ["ten", "", "nan", "-inf", "1e9", "1 0", "0x10"])
def test_what_is_no_number_is_told_with_its_line(refused, value):
    said = refused(f"{HEAD}own.jpg,1,2,3,4\n\nown.jpg,1,{value},3,4\n")
    assert said == f":4: y '{value}' is no number of pixels"


def test_a_row_cut_short_is_told(refused):
    assert refused(HEAD + "own.jpg,1,2,3\n") == ":2: h '' is no number of pixels"


@pytest.mark.parametrize("size", ["0,5", "5,0", "-3,5", "5,-3", "0.4,5"])
def test_a_box_that_holds_nothing_is_told(refused, size):
    assert refused(f"{HEAD}own.jpg,1,2,{size}\n").startswith(":2: a box ")


def test_paths_that_are_not_there_are_told_by_number_and_the_first(
    read, refused, capsys
):
    rows = "none.jpg,1,2,3,4\ngone.jpg,1,2,3,4\nown.png,1,2,3,4\n"
    said = "'none.jpg' is no picture in /photos, /more, nor are those of 2 more lines"
    assert refused(HEAD + rows).startswith(f":2: {said}")
    assert "more line" not in refused(HEAD + "none.jpg,1,2,3,4\n")
    found = read(HEAD + "own.jpg,1,2,3,4\n" + rows)  # others of which are there
    assert list(found.values()) == [[(1, 2, 3, 4)]]
    noted = capsys.readouterr().out
    assert noted.startswith("note: left out: ") and f"boxes.csv:3: {said}" in noted


@pytest.mark.parametrize(
    "path", ["../x.jpg", "/etc/own.jpg", "deep/../../own.jpg", ".."]
)
def test_paths_out_of_the_folders_are_told(refused, path):
    said = f":2: '{path}' lies outside of /photos, /more; give that folder, too, with"
    assert refused(f"{HEAD}{path},1,2,3,4\n").startswith(said)


def test_the_same_box_twice_is_told_with_both_lines(refused):
    said = refused(HEAD + "own.jpg,1,2,3,4\nown.jpg,1,2,3,5\n./own.jpg,1,2.2,3,4\n")
    assert said.startswith(":4: './own.jpg' has the box 1,2,3,4 in line 2 already")


def test_names_do_not_write_to_the_terminal(refused):
    said = refused(HEAD + '"a\x1b[2J\nb.jpg",1,2,3,4\n')
    assert said.startswith(":2: 'a\\x1b[2J\\nb.jpg' is no picture in")
    assert refused(HEAD + "a\0/b.jpg,1,2,3,4\n").startswith(":2: 'a\\x00/b.jpg' is no")


@pytest.mark.parametrize("given, named", [("link", "real"), ("real", "link")])
def test_links_lead_to_the_same_files(tmp_path, given, named):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    keys = [(0, b"deep/1.jpg"), (0, b"again.jpg")]
    (tmp_path / "real" / "again.jpg").symlink_to("deep/1.jpg")  # an entry of its own
    found = Found([File(*key, 1, 1) for key in keys], {})
    rows = [f"{tmp_path}/{named}/{path.decode()},1,2,3,4\n" for _, path in keys]
    (tmp_path / "boxes.csv").write_text(HEAD + "".join(rows))
    boxes_of = boxes.read(tmp_path / "boxes.csv", [str(tmp_path / given)], found)
    assert boxes_of == {key: [(1, 2, 3, 4)] for key in keys}


def test_what_is_no_csv_is_told(refused, tmp_path):
    assert refused(HEAD + 'own.jpg,1,2,3,4\n"own.jpg,1,2,3,4\n').startswith(":3: ")
    assert refused(HEAD + "x" * 200_000 + ",1,2,3,4\n").startswith(":2: field larger")
    assert refused(HEAD) == " has no box; give a line with path,x,y,w,h to each"
    assert refused("path;x;y;w;h\nown.jpg;1;2;3;4\n").endswith("with commas")
    assert refused(b"PK\x03\x04\x00\xff" * 99).startswith(":1: no column path")
    for name in ("none.csv", ""):
        with pytest.raises(UserError, match="is no file; give a CSV with the columns"):
            boxes.read(tmp_path / name, FOLDERS, FOUND)
