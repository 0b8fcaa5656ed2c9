"""Which files are there to index, and that no link leads anywhere else."""

import os
import shutil
import socket

import numpy as np
import pytest
import searching

from unipt_jax.errors import UserError
from unipt_jax.search import scan
from unipt_jax.search.scan import NO_FILE, OUTSIDE


@pytest.fixture
def root(tmp_path):
    """A folder of 6 crops; beside it one that is not to be read."""
    searching.write_crops(tmp_path / "secret", 2)
    return searching.write_crops(tmp_path / "root", 6)


def found(*folders):
    """Paths that are to be indexed, and reasons of those that are not."""
    files, skipped = scan.scan(scan.folders([str(f) for f in folders]))
    reasons = {os.fsdecode(path): reason for (_, path), reason in skipped.items()}
    return [(f.folder, os.fsdecode(f.path)) for f in files], reasons


CROPS = ["000.jpg", "003.jpg", "anna/001.jpg", "anna/004.jpg"]
CROPS += ["anna/b ä/002.jpg", "anna/b ä/005.jpg"]


def test_pictures_are_found_at_any_depth_in_order_with_what_is_known_of_them(root):
    (root / "notes.txt").write_text("no picture")
    (root / "anna" / "B.JPEG").write_bytes(b"any")
    files, skipped = scan.scan([str(root)])
    paths = [os.fsdecode(file.path) for file in files]
    assert paths == sorted([*CROPS, "anna/B.JPEG"], key=os.fsencode)
    assert not skipped
    for file, path in zip(files, paths, strict=True):
        state = (root / path).stat()
        assert (file.bytes, file.mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_names_that_are_no_utf8_are_kept_to_the_byte(root):
    name = b"caf\xe9\n.jpg"
    (root / os.fsdecode(name)).write_bytes(b"any")
    assert name in {file.path for file in scan.scan([str(root)]).files}
    assert scan.shown(name) == "caf\\xe9\n.jpg"


def test_several_folders_are_numbered_as_they_are_given(root, tmp_path):
    files, _ = found(tmp_path / "secret", root)
    assert files == [(0, "000.jpg"), (0, "anna/001.jpg"), *((1, p) for p in CROPS)]


def test_links_that_stay_inside_are_followed_to_files_alone(root):
    (root / "again.jpg").symlink_to("anna/001.jpg")
    (root / "anna2").symlink_to("anna")  # its pictures are found in anna
    (root / "anna" / "round").symlink_to("..")
    files, skipped = found(root)
    assert [path for _, path in files] == sorted([*CROPS, "again.jpg"], key=os.fsencode)
    assert not skipped


def test_what_leads_out_or_is_no_file_is_skipped_with_the_reason(root, tmp_path):
    (root / "out.jpg").symlink_to(tmp_path / "secret" / "000.jpg")
    (root / "through.jpg").symlink_to("../secret/000.jpg")
    (root / "folder out").symlink_to(tmp_path / "secret")
    (root / "nowhere.jpg").symlink_to("gone.jpg")
    (root / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # the name of a socket must be short
        server.bind("socket.png")
        os.chdir(here)
        files, skipped = found(root)
    assert [path for _, path in files] == CROPS
    out = dict.fromkeys(["out.jpg", "through.jpg", "folder out"], OUTSIDE)
    none = dict.fromkeys(["pipe.jpg", "socket.png"], NO_FILE)
    assert skipped == out | none | {"nowhere.jpg": "No such file or directory"} | {
        "circle.jpg": "Too many levels of symbolic links"
    }


def test_a_folder_that_is_named_as_a_picture_is_a_folder(root):
    searching.write_crops(root / "x.jpg", 1)
    assert (0, "x.jpg/000.jpg") in found(root)[0]


def test_the_folder_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to("root")
    assert found(tmp_path / "link") == found(root)


def failing(monkeypatch, code):
    """Has the folder anna answer with that error."""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("anna"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_may_not_be_read_is_skipped(root, monkeypatch):
    failing(monkeypatch, 13)
    files, skipped = found(root)
    assert [path for _, path in files] == CROPS[:2]
    assert skipped == {"anna": "cannot be listed: Permission denied"}


def test_a_folder_whose_store_fails_stops_the_update(root, monkeypatch):
    """Its pictures would drop out of the index, for an outage."""
    failing(monkeypatch, 116)
    with pytest.raises(UserError, match="anna cannot be listed .Stale file handle"):
        found(root)


class Lost:
    """What a listing gives of a file whose store has dropped off since."""

    path = "/share/anna\n1.jpg"

    def __init__(self, code):
        self.code = code

    def is_symlink(self):
        return False

    def stat(self):
        raise OSError(self.code, os.strerror(self.code), self.path)


def test_a_file_whose_store_fails_stops_the_update_too(root, monkeypatch):
    def listed(code):
        entries = [("000.jpg", next(os.scandir(root))), ("1.jpg", Lost(code))]
        monkeypatch.setattr(scan.trees, "pictures", lambda *_, **__: iter(entries))
        return scan.scan([str(root)])

    said = r"/share/anna\\n1.jpg cannot be looked at .Stale file handle.; run the same"
    with pytest.raises(UserError, match=said):
        listed(116)
    assert list(listed(2).skipped.values()) == ["No such file or directory"]


def test_an_empty_name_is_not_taken_for_the_folder_one_is_in(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="an empty name is no folder of pictures; is a"):
        scan.folders([""])
    assert scan.folders(["."]) == (str(root),)


@pytest.mark.parametrize(
    "names, said",
    [
        (["root", "root"], "one lies in the other"),
        (["root", "root/anna"], "one lies in the other"),
        (["root/anna", "root"], "one lies in the other"),
        (["root", "link"], "one lies in the other"),
        (["root/000.jpg"], "root/000.jpg is a file; give a folder of pictures"),
        (["none"], "none is not there; give a folder of pictures"),
    ],
)
def test_what_is_no_folder_or_given_twice_is_refused(root, tmp_path, names, said):
    (tmp_path / "link").symlink_to("root/anna")
    with pytest.raises(UserError, match=said):
        scan.folders([f"{tmp_path}/{name}" for name in names])


def test_folders_of_names_that_begin_alike_are_two(root, tmp_path):
    shutil.copytree(root, tmp_path / "root2")
    assert len(found(root, tmp_path / "root2")[0]) == 12


def test_a_store_in_the_cloud_is_refused():
    with pytest.raises(UserError, match="gs://b/p is no local folder"):
        scan.folders(["gs://b/p"])


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"no picture in .*\.jpeg.* at any depth; give"):
        scan.scan([str(tmp_path)])


# --- reading -------------------------------------------------------------------------


def test_a_file_is_read_with_what_is_known_of_it(root):
    encoded, known = scan.read(str(root), b"anna/001.jpg")
    assert encoded == searching.jpeg(1)
    assert known.st_size == len(encoded)


def test_what_has_become_a_link_out_since_it_was_found_is_not_read(root, tmp_path):
    (root / "000.jpg").unlink()
    (root / "000.jpg").symlink_to(tmp_path / "secret" / "000.jpg")
    shutil.rmtree(root / "anna")
    (root / "anna").symlink_to(tmp_path / "secret" / "anna")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.jpg").write_bytes(b"any")
    paths = [b"000.jpg", b"anna/001.jpg", b"../secret/000.jpg", b"../root2/a.jpg"]
    for path in [*paths, os.fsencode(tmp_path / "secret" / "000.jpg")]:
        with pytest.raises(OSError, match=OUTSIDE):
            scan.read(str(root), path)


def test_what_is_no_file_is_not_waited_for(root, monkeypatch):
    os.mkfifo(root / "pipe.jpg")
    for path in (b"pipe.jpg", b"anna"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=NO_FILE):
            scan.read(str(root), path)
        assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        scan.read(str(root), b"gone.jpg")
    monkeypatch.setattr(scan, "LARGEST", 100)
    with pytest.raises(OSError, match="a file of 0 MB is no picture"):
        scan.read(str(root), b"000.jpg")


# --- shapes --------------------------------------------------------------------------

SHAPES = [
    ((384, 128), False),
    ((128, 64), False),
    ((160, 100), False),
    ((159, 100), True),
    ((64, 64), True),
    ((1080, 1920), True),
    ((4000, 3000), True),
    ((1700, 1000), False),  # 1.7 million pixels
    ((1999, 1001), True),  # 2.001 million, and less than twice as high as wide
    ((2002, 1001), False),
]


def test_pictures_of_other_shapes_than_a_person_are_doubted():
    for (height, width), doubted in SHAPES:
        assert scan.looks_like_a_photograph(height, width) is doubted, (height, width)
    heights, widths = np.array([shape for shape, _ in SHAPES], np.int32).T
    found = scan.looks_like_a_photograph(heights, widths)
    np.testing.assert_array_equal(found, [doubted for _, doubted in SHAPES])
