"""A folder as people have it: what lies in it, archives in place, what is refused."""

import errno
import gzip
import io
import os
import pathlib
import socket
import struct
import tarfile
import zipfile

import pretrain_trees as trees
import pytest
from PIL import Image

from data_prep.raw import Place, Raw, Reader, inside, readable
from unipt_jax.data import images
from unipt_jax.errors import UserError

FILES = {f"cam {k % 3}/{k:02d}.jpg": trees.picture(k) for k in range(12)}
KINDS = (*trees.PACKED, ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def read_all(root) -> dict[str, bytes]:
    """Path -> bytes of every picture."""
    raw = Raw(root)
    reader = Reader(raw.root)
    return {path: reader.read(place) for path, place in raw.images()}


def refused(root, *said: str) -> str:
    """The one sentence with which listing the pictures ends."""
    with pytest.raises(UserError) as caught:
        list(Raw(root).images())
    text = str(caught.value)
    assert "\n" not in text
    for word in said:
        assert word in text
    return text


def packed(file: pathlib.Path, files=FILES) -> pathlib.Path:
    """An archive of any kind."""
    if file.name.endswith((".tar.bz2", ".tbz2", ".tar.xz", ".txz")):
        mode = "w:xz" if "xz" in file.suffix else "w:bz2"
        with tarfile.open(file, mode) as opened:
            for path, content in files.items():
                item = tarfile.TarInfo(path)
                item.size = len(content)
                opened.addfile(item, io.BytesIO(content))
    else:
        trees.pack(file, files)
    return file


def snapshot(folder) -> dict[str, tuple[int, int]]:
    """Every path below with its size and time."""
    paths = sorted(pathlib.Path(folder).rglob("*"))
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in paths}


# --- loose files ---------------------------------------------------------------------


def test_pictures_of_any_depth_and_suffix_are_listed_in_the_order_of_their_paths(
    tmp_path,
):
    names = ["b/x.JPG", "a.png", "b/a/y.jpeg", "c/1/2/3/4.webp"]
    trees.loose(tmp_path, dict.fromkeys([*names, "notes.txt", "b/x.jpg.part"], b"?"))
    assert [path for path, _ in Raw(tmp_path).images()] == sorted(names)


def test_hidden_files_and_what_macos_leaves_behind_do_not_count(tmp_path):
    junk = [
        "._a.jpg",
        ".DS_Store",
        ".hidden/a.jpg",
        "__MACOSX/a.jpg",
        "b/__MACOSX/c.jpg",
    ]
    trees.loose(tmp_path, dict.fromkeys([*junk, "a.jpg"], b"?"))
    assert list(Raw(tmp_path).files) == ["a.jpg"]


@pytest.mark.parametrize("kind", [".tar", ".zip"])
def test_hidden_files_and_what_macos_leaves_behind_do_not_count_in_archives(
    tmp_path, kind
):
    junk = ["__MACOSX/._a.jpg", "__MACOSX/a.jpg", "b/._a.jpg", ".hidden/a.jpg"]
    packed(tmp_path / f"x{kind}", dict.fromkeys([*junk, "./b/a.jpg"], b"?"))
    assert [path for path, _ in Raw(tmp_path).images()] == [f"x{kind}/b/a.jpg"]


def test_a_name_that_is_no_utf8_is_read_and_shown_with_its_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"picture")
    assert read_all(tmp_path) == {name: b"picture"}
    assert readable(name) == r"caf\xe9.jpg"


def test_pipes_sockets_and_devices_are_left_alone(tmp_path):
    trees.loose(tmp_path, {"a.jpg": b"?"})
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.jpg"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null.jpg", 0o20666, os.makedev(1, 3))
    assert list(Raw(tmp_path).files) == ["a.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).strip("/").endswith("shut"):  # which root may list
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"shut/? cannot be listed \(Permission denied\)"
    ):
        Raw(tmp_path)


def test_no_folder_and_a_file_in_its_place_are_told_apart(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, what in (("gone", "is not there"), ("file", "is a file")):
        with pytest.raises(UserError, match=f"--raw .*{name} {what}; give the folder"):
            Raw(tmp_path / name)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(images.LARGEST + 1)
    with pytest.raises(OSError, match="512 MB are no picture"):
        Reader(tmp_path).read(Place("a.jpg"))


# --- links ---------------------------------------------------------------------------


def test_links_to_files_inside_are_files_and_dead_ones_are_kept_apart(tmp_path):
    trees.loose(tmp_path, {"real/a.jpg": b"a"})
    (tmp_path / "b.jpg").symlink_to("real/a.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "x.jpg").symlink_to("y.jpg")
    (tmp_path / "y.jpg").symlink_to("x.jpg")
    assert read_all(tmp_path) == dict.fromkeys(["b.jpg", "c.jpg", "real/a.jpg"], b"a")
    assert Raw(tmp_path).dead == ["gone.jpg", "x.jpg", "y.jpg"]


def test_linked_folders_are_found_by_path_but_their_pictures_listed_once(tmp_path):
    trees.loose(tmp_path, {"real/cam/a.jpg": b"a"})
    (tmp_path / "imgs").symlink_to("real")
    (tmp_path / "again").symlink_to("imgs")
    (tmp_path / "real" / "circle").symlink_to("..")
    raw = Raw(tmp_path)
    assert [path for path, _ in raw.images()] == ["real/cam/a.jpg"]
    for path in ("imgs/cam/a.jpg", "again/cam/a.jpg", "real/circle/imgs/cam/a.jpg"):
        assert raw.find(path) == Place("real/cam/a.jpg")
    assert raw.find("imgs/circle/" * 20 + "real/cam/a.jpg") is None  # but it ends


@pytest.mark.parametrize("target", ["file.jpg", "", "beside"])
def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path, target):
    trees.loose(
        tmp_path, {"out/file.jpg": b"?", "raw/a.jpg": b"?", "rawer/b.jpg": b"?"}
    )
    leads = tmp_path / "out" / target if target != "beside" else tmp_path / "rawer"
    (tmp_path / "raw" / "link").symlink_to(leads)
    refused(tmp_path / "raw", "raw/link is a link to ", str(leads), "outside")
    with pytest.raises(UserError, match="raw/link is a link to"):
        Raw(tmp_path / "raw").find("link/b.jpg" if target != "file.jpg" else "link")


def test_a_folder_given_by_a_link_is_read_as_itself(tmp_path):
    trees.loose(tmp_path / "real", FILES)
    (tmp_path / "raw").symlink_to("real")
    assert read_all(tmp_path / "raw") == FILES


# --- paths ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../x.jpg", "a/../../x.jpg", "/abs/x.jpg", "C:\\x.jpg", "C:/x.jpg",
             "\\\\host\\share\\x.jpg", "..\\x.jpg", "a\0.jpg", "", ".", "./"]
)  # fmt: skip
def test_a_path_that_leads_out_is_refused(path):
    with pytest.raises(UserError, match="^here: the path .* leads out of its folder"):
        inside(path, "here")


@pytest.mark.parametrize(
    ("path", "plain"),
    [("./a//b.jpg", "a/b.jpg"), ("a\\b.jpg", "a/b.jpg"), ("a/b\\c.jpg", "a/b\\c.jpg"),
     ("..a/b..jpg", "..a/b..jpg"), ("a/...", "a/...")],
)  # fmt: skip
def test_a_path_inside_is_given_in_its_plain_form(path, plain):
    assert inside(path, "here") == plain


# --- archives ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_read_in_place_gives_the_bytes_of_the_loose_files(tmp_path, kind):
    trees.loose(tmp_path / "loose", FILES)
    (tmp_path / "packed").mkdir()
    packed(tmp_path / "packed" / f"part{kind}")
    before = snapshot(tmp_path)
    there = read_all(tmp_path / "packed")
    assert there == {f"part{kind}/{p}": content for p, content in FILES.items()}
    wound = kind not in (".tar", ".zip")  # then it is read in its own order
    wanted = FILES if wound else read_all(tmp_path / "loose")
    assert list(there.values()) == list(wanted.values())
    assert snapshot(tmp_path) == before  # nothing was unpacked


@pytest.mark.parametrize("kind", KINDS)
def test_members_read_in_any_order_are_the_same(tmp_path, kind):
    packed(tmp_path / f"part{kind}")
    raw = Raw(tmp_path)
    places, reader = dict(raw.images()), Reader(raw.root)
    for path in (*reversed(FILES), *FILES):
        assert reader.read(places[f"part{kind}/{path}"]) == FILES[path]


def test_more_archives_than_stay_open_are_read_in_turn(tmp_path):
    for number in range(20):
        packed(
            tmp_path / f"{number:02d}{KINDS[number % 4]}", {"a.jpg": bytes([number])}
        )
    raw = Raw(tmp_path)
    places, reader = [place for _, place in raw.images()], Reader(raw.root)
    for _ in range(2):
        assert [reader.read(place) for place in places] == [
            bytes([i]) for i in range(20)
        ]
    assert len(reader._open) <= 8


@pytest.mark.parametrize("flavour", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, 2])
def test_long_and_odd_member_names_arrive_whole(tmp_path, flavour):
    long = "/".join(["folder" * 8] * 4) + "/ä 一 é.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=flavour) as opened:
        for name in (long, "./b.jpg"):
            item = tarfile.TarInfo(name)
            item.size = 3
            opened.addfile(item, io.BytesIO(b"abc"))
    assert read_all(tmp_path) == {f"a.tar/{long}": b"abc", "a.tar/b.jpg": b"abc"}


def test_a_file_that_tar_stored_as_a_hard_link_is_read_too(tmp_path):
    packed(tmp_path / "a.tar", {"x/1.jpg": b"one"})
    with tarfile.open(tmp_path / "a.tar", "a") as opened:
        item = tarfile.TarInfo("x/2.jpg")
        item.type, item.linkname = tarfile.LNKTYPE, "x/1.jpg"
        opened.addfile(item)
    assert read_all(tmp_path) == dict.fromkeys(
        ["a.tar/x/1.jpg", "a.tar/x/2.jpg"], b"one"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_in_a_member_is_refused_by_name(tmp_path, kind):
    file = packed(tmp_path / f"part{kind}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(tmp_path, f"part{kind} is no archive, or is damaged", "fetch it again")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_tar_cut_exactly_between_two_members_is_refused(tmp_path, compress):
    whole = trees.tar(FILES.items())
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        offset = opened.getmembers()[7].offset
    file = tmp_path / ("a.tar" if compress is bytes else "a.tar.gz")
    file.write_bytes(compress(whole[:offset]))
    refused(tmp_path, f"{file.name} is no archive, or is damaged (it ends early)")


@pytest.mark.parametrize("missing", [1, 4, 8, 12])
def test_a_gzip_cut_in_its_trailer_is_refused(tmp_path, missing):
    file = packed(tmp_path / "a.tgz")
    file.write_bytes(file.read_bytes()[:-missing])
    refused(tmp_path, "a.tgz is no archive, or is damaged")


def test_a_gzip_whose_bytes_are_not_those_it_was_made_of_is_refused(tmp_path):
    file = packed(tmp_path / "a.tgz")
    content = bytearray(file.read_bytes())
    content[-8] ^= 1  # the checksum
    file.write_bytes(content)
    refused(tmp_path, "a.tgz is no archive, or is damaged (CRC check failed")


def test_two_archives_joined_into_one_file_are_refused(tmp_path):
    other = {"other.jpg": b"?"}
    joined = trees.tar(FILES.items()) + trees.tar(other.items())
    (tmp_path / "a.tar").write_bytes(joined)
    refused(tmp_path, "a.tar is no archive, or is damaged", "after its end")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"\0" * 100])
def test_what_is_no_archive_is_refused(tmp_path, kind, content):
    (tmp_path / f"a{kind}").write_bytes(content)
    refused(tmp_path, f"a{kind} is no archive, or is damaged")


@pytest.mark.parametrize("kind", [".tar", ".zip"])
@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/abs.jpg", "C:\\x.jpg"])
def test_a_member_that_leads_out_is_refused_by_name(tmp_path, kind, name):
    packed(tmp_path / f"a{kind}", {"good.jpg": b"?", name: b"?"})
    refused(tmp_path, f"a{kind}: the path '{name}' leads out of its folder")


def test_an_encrypted_zip_is_refused_with_the_remedy(tmp_path):
    file = packed(tmp_path / "a.zip", {"a.jpg": b"secret"})
    content = file.read_bytes()
    at = content.index(b"PK\1\2") + 8
    file.write_bytes(content[:at] + struct.pack("<H", 1) + content[at + 2 :])
    refused(tmp_path, "a.zip: 'a.jpg' is encrypted; unpack the archive")


def test_one_damaged_member_of_a_zip_is_one_picture_that_cannot_be_read(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as opened:  # stored, not deflated
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            opened.writestr(name, name.encode() * 100)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"b.jpg" * 100, b"b.jpg" * 99 + b"B.jpg"))
    raw = Raw(tmp_path)
    places, reader = dict(raw.images()), Reader(raw.root)
    with pytest.raises(
        OSError, match=r"a.zip: BadZipFile: Bad CRC-32 for file 'b.jpg'"
    ):
        reader.read(places["a.zip/b.jpg"])
    for name in ("a.jpg", "c.jpg"):
        assert reader.read(places[f"a.zip/{name}"]) == name.encode() * 100


@pytest.mark.parametrize("kind", [".tar", ".zip"])
def test_a_member_said_to_be_enormous_is_no_picture_and_is_not_read(tmp_path, kind):
    file, size = tmp_path / f"a{kind}", images.LARGEST + 1
    if kind == ".tar":
        item = tarfile.TarInfo("a.jpg")
        item.size = size
        with open(file, "wb") as opened:  # holes take no room
            opened.write(item.tobuf())
            opened.truncate(-(-size // 512) * 512 + 4096)
    else:
        content = packed(file, {"a.jpg": b"?"}).read_bytes()
        at = content.index(b"PK\1\2") + 24
        file.write_bytes(content[:at] + struct.pack("<I", size) + content[at + 4 :])
    (place,) = dict(Raw(tmp_path).images()).values()
    with pytest.raises(OSError, match="512 MB are no picture"):
        Reader(tmp_path).read(place)


def test_a_decompression_bomb_is_a_picture_that_cannot_be_read(tmp_path):
    out = io.BytesIO()
    Image.new("1", (9000, 9000)).save(out, "PNG")  # 32,000 times its size as RGB
    assert len(out.getvalue()) < 20_000
    with pytest.raises(OSError, match="taken for a decompression bomb"):
        images.measure(out.getvalue())


def test_links_in_a_tar_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        for name, target in (("a.jpg", "/etc/passwd"), ("b.jpg", "../../x")):
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                item = tarfile.TarInfo(name)
                item.type, item.linkname = kind, target
                opened.addfile(item)
    assert read_all(tmp_path) == {}


def test_an_archive_that_is_not_needed_is_not_opened(tmp_path):
    trees.loose(tmp_path, {"imgs/a.jpg": b"?", "old.zip": b"no archive"})
    assert Raw(tmp_path).locate(["a.jpg"]) == [Place("imgs/a.jpg")]


# --- where the images of an annotation lie -------------------------------------------


@pytest.mark.parametrize(
    "below", ["", "imgs/", "CUHK-PEDES/imgs/", "a.zip/", "x.tgz/i/"]
)
def test_images_are_found_wherever_the_annotation_begins(tmp_path, below):
    archive = next((f for f in ("a.zip", "x.tgz") if below.startswith(f)), None)
    if archive:
        inner = below.removeprefix(f"{archive}/")
        packed(tmp_path / archive, {inner + p: c for p, c in FILES.items()})
    else:
        trees.loose(tmp_path / below, FILES)
    raw = Raw(tmp_path)
    places, reader = raw.locate([*FILES, "cam 0/none.jpg"]), Reader(raw.root)
    assert places.pop() is None
    assert [reader.read(place) for place in places] == list(FILES.values())


def test_of_two_places_the_one_with_more_images_is_taken_then_the_other(tmp_path):
    paths = list(FILES)
    trees.loose(tmp_path / "whole", dict.fromkeys(paths[:-1], b"whole"))
    trees.loose(tmp_path / "a", dict.fromkeys(paths[-3:], b"few"))
    raw = Raw(tmp_path)
    found = [Reader(raw.root).read(place) for place in raw.locate(paths)]
    assert found == [b"whole"] * (len(paths) - 1) + [b"few"]


def test_imgs_comes_before_a_copy_that_holds_as_many(tmp_path):
    for folder in ("copy/imgs", "imgs", "zz"):
        trees.loose(tmp_path / folder, FILES)
    places = Raw(tmp_path).locate(list(FILES))
    assert [place.file for place in places] == [f"imgs/{path}" for path in FILES]


def test_each_first_folder_of_the_paths_may_lie_somewhere_else(tmp_path):
    trees.loose(tmp_path / "one", {"cam_a/1.jpg": b"a"})
    trees.loose(tmp_path / "two" / "three", {"Market/1.jpg": b"m"})
    places = Raw(tmp_path).locate(["cam_a/1.jpg", "Market/1.jpg", "CUHK01/1.jpg"])
    files = [place and place.file for place in places]
    assert files == ["one/cam_a/1.jpg", "two/three/Market/1.jpg", None]


def test_annotation_files_are_looked_for_from_the_top_down(tmp_path):
    trees.loose(tmp_path, {"a/b/x.json": b"", "a/x.json": b"", "a/b/c/z.json": b""})
    assert Raw(tmp_path).named("x.json") == ["a/x.json"]
    assert Raw(tmp_path).named("z.json") == []
    assert Raw(tmp_path).named("y.json", suffix=".json") == ["a/x.json"]


def test_a_folder_below_the_one_that_paths_are_relative_to_will_do(tmp_path):
    trees.loose(tmp_path, dict.fromkeys(("cam_a/1.jpg", "cam_a/2.jpg"), b"?"))
    paths = ["CUHK/imgs/cam_a/1.jpg", "CUHK/imgs/cam_a/3.jpg"]
    assert Raw(tmp_path).locate(paths) == [Place("cam_a/1.jpg"), None]
    assert Raw(tmp_path / "cam_a").locate(["cam_a/1.jpg", "cam_b/1.jpg"]) == [None] * 2


def test_places_that_images_were_found_in_are_counted(tmp_path):
    trees.loose(
        tmp_path, dict.fromkeys(("imgs/a/1.jpg", "imgs/a/2.jpg", "more/b/1.jpg"), b"?")
    )
    raw = Raw(tmp_path)
    raw.locate(["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    assert raw.starts == {"imgs/": 2, "more/": 1}
