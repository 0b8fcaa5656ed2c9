"""Annotation files read entry by entry: as json.loads reads them, in little memory."""

import json
import random
import tracemalloc

import pytest

from data_prep import annotations
from unipt_jax.errors import UserError

CHUNKS = (1, 2, 3, 7, 64, 1 << 20)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a text as a file, so many bytes at a time."""

    def items(content: str | bytes, chunk: int = 1 << 20):
        monkeypatch.setattr(annotations, "_CHUNK", chunk)
        file = tmp_path / "a.json"
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        file.write_bytes(content)
        return list(annotations.items(file, "a.json"))

    return items


@pytest.fixture
def refused(read):
    """The one sentence with which reading ends, in pieces of any size."""

    def sentence(content: str | bytes) -> str:
        texts = []
        for chunk in CHUNKS:
            with pytest.raises(UserError) as caught:
                read(content, chunk)
            texts.append(str(caught.value))
        assert "\n" not in texts[-1]
        assert texts[-1].startswith("a.json")
        # Where it stops may hang on how much of the text is there, but not much.
        assert len({text.partition("near")[0] for text in texts}) == 1
        return texts[-1]

    return sentence


def value(draw: random.Random, depth: int = 0):
    """A random JSON value."""
    kind = draw.randrange(6 if depth > 3 else 8)
    if kind == 0:
        return draw.choice([None, True, False])
    if kind == 1:
        return draw.choice([0, -1, 7, 10**6, 2**70, -(2**63)])
    if kind == 2:
        return draw.choice([0.5, -1.25, 1e300, 2.5e-7, -0.0, 123456.789])
    if kind < 6:
        letters = 'aZ é一😀"\\/\n\t\u2028,]}{[:\x00'
        return "".join(draw.choices(letters, k=draw.randrange(12)))
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {value_key(draw): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def value_key(draw: random.Random) -> str:
    return "".join(draw.choices('aé😀"\\ ', k=draw.randrange(5)))


# --- the same as json.loads ----------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_items_equal_json_loads_on_random_values(read, chunk, indent, ascii_only):
    draw = random.Random(chunk)
    for _ in range(60):
        whole = [value(draw) for _ in range(draw.randrange(6))]
        text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
        assert read(text, chunk) == list(enumerate(whole, start=1))
        named = {value_key(draw): value(draw) for _ in range(draw.randrange(6))}
        text = json.dumps(named, indent=indent, ensure_ascii=ascii_only)
        assert read(text, chunk) == list(named.items())


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "number", ["1", "-1", "1.5", "-0.25", "1e5", "1E+5", "12.5e-3"]
)
def test_a_number_cut_by_the_end_of_a_piece_is_one_number(read, chunk, number):
    text = f"[{number},{number} , {number}\n]"
    assert read(text, chunk) == list(enumerate(json.loads(text), start=1))
    assert read(f'{{"a":{number}}}', chunk) == [("a", json.loads(number))]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_byte_order_mark_and_spaces_around_do_no_harm(read, chunk):
    assert read(b'\xef\xbb\xbf \r\n\t["\xc3\xa9"] \n\n', chunk) == [(1, "é")]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_name_that_stands_twice_is_given_twice(read, chunk):
    assert read('{"a": 1, "b": 2, "a": 3}', chunk) == [("a", 1), ("b", 2), ("a", 3)]


@pytest.mark.parametrize("text", ["[]", "{}", " [ ] ", "\n{\n}\n"])
def test_an_empty_list_or_object_has_no_entries(read, text):
    assert read(text, 1) == []


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "expected a list or an object of entries"),
        ("\n\n", 3, "expected a list or an object of entries"),
        ('\n"text"', 2, "expected a list or an object of entries"),
        ("12", 1, "expected a list or an object of entries"),
        ("<html>", 1, "expected a list or an object of entries"),
        ('[\n{"a": 1},\n]', 3, "Expecting value"),
        ('{"a": 1,\n}', 2, "Expecting value"),
        ("[1\n2]", 2, "expected a comma or the end"),
        ("[1]\n[2]", 2, "expected nothing after the end"),
        ("[1]\n x", 2, "expected nothing after the end"),
        ("{1: 2}", 1, "expected a name and a colon"),
        ('{"a" 2}', 1, "expected a name and a colon"),
        ("{'a': 2}", 1, "Expecting value"),
        ('[\n{"a": 1,\n "b": nought}]', 3, "Expecting value"),
        ('[\n{"a": 1\n "b": 2}]', 3, "Expecting ',' delimiter"),
        ('["tab\there"]', 1, "Invalid control character"),
        ("[" + "9" * 5000 + "]", 1, "a number without end"),
    ],
)
def test_what_is_no_json_is_refused_with_its_line(refused, text, line, why):
    said = refused(text)
    assert f"a.json is no JSON: line {line}, " in said
    assert why in said
    assert said.endswith("; fetch it again, or correct it")


def test_brackets_without_end_are_refused_in_a_sentence(read):
    with pytest.raises(UserError, match="a.json is no JSON: line 1, near .*nested"):
        read("[" * 200_000)


@pytest.mark.parametrize("whole", ['[{"a": "text", "b": [1, 2]},\n {"a": "bcd"}]\n',
                                   '{"a/1.jpg": "A man",\n "b": ["x", "y"]}'])  # fmt: skip
def test_a_file_cut_off_anywhere_is_refused_with_that_guess(read, whole):
    end = len(whole.rstrip())
    for cut in range(end):
        with pytest.raises(UserError) as caught:
            read(whole[:cut])
        text = str(caught.value)
        assert f"line {1 + whole[:cut].count(chr(10))}, " in text or "Unterm" in text
        assert "is it cut off?" in text, (cut, text)
    assert read(whole[:end])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_what_is_not_utf8_is_refused_with_its_line(refused, encoding):
    said = refused('[\n"größer"]'.encode(encoding))
    line = 2 if encoding == "latin-1" else 1
    assert said.startswith(f"a.json is not UTF-8: line {line}: ")
    assert said.endswith("; save it as UTF-8")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match="x is not there, or no file"):
            list(annotations.items(path, "x"))


# --- large files ---------------------------------------------------------------------


def test_a_list_of_60_mb_is_read_in_little_memory(tmp_path):
    file, count = tmp_path / "large.json", 200_000
    entry = json.dumps({"file_path": "a/b.jpg", "captions": ["é" * 45]}) + ",\n"
    with file.open("w") as out:
        out.write("[" + entry * (count - 1) + entry[:-2] + "]")
    assert file.stat().st_size > 60e6
    tracemalloc.start()
    try:
        read = sum(number > 0 for number, _ in annotations.items(file, "x"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == count
    assert peak < 10e6  # a few pieces of 1 MB, as bytes and as text


def test_a_file_broken_at_its_beginning_is_not_read_to_its_end(tmp_path):
    file = tmp_path / "broken.json"
    with file.open("w") as out:
        out.write('[{"a": nonsense, ')
        out.truncate(1 << 31)  # zeros, which take no room
    read = []

    class Counting(annotations._Stream):
        def more(self):
            super().more()
            read.append(len(self.text))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "_Stream", Counting)
        with pytest.raises(UserError, match="line 1, near 'nonsense"):
            next(annotations.items(file, "broken.json"))
    assert len(read) < 20  # MB, of 2048


# --- fields --------------------------------------------------------------------------


def entry(**values):
    return annotations.Annotation("f.json entry 3", values)


@pytest.mark.parametrize(
    ("ask", "values", "said"),
    [
        (lambda e: e.path("p"), {}, "there is no 'p', expected the path of an image"),
        (lambda e: e.path("p", "q"), {"r": 1}, "the path of an image (as p or q)"),
        (lambda e: e.path("p"), {"p": " "}, "'p' is \" \", expected the path"),
        (lambda e: e.path("p"), {"p": 5}, "'p' is 5, expected the path of an image"),
        (lambda e: e.path("p"), {"p": "../x"}, "leads out of its folder"),
        (lambda e: e.path("p"), {"p": "a\ud83d.jpg"}, "'p' is \"a\\ud83d.jpg\""),
        (lambda e: e.captions("c"), {"c": 5}, "a sentence or a list of sentences"),
        (lambda e: e.captions("c"), {"c": ["a", None]}, "'c' is [\"a\", null]"),
        (lambda e: e.captions("c"), {"c": "a \ud83d"}, "'c' is \"a \\ud83d\""),
        (lambda e: e.number("n"), {"n": True}, "'n' is true, expected a whole number"),
        (lambda e: e.number("n"), {"n": -1}, "'n' is -1, expected a whole number"),
        (lambda e: e.number("n"), {"n": 1.5}, "'n' is 1.5, expected a whole number"),
        (
            lambda e: e.number("n"),
            {"n": "x1"},
            "'n' is \"x1\", expected a whole number",
        ),
        (lambda e: e.number("n"), {"n": 2**63}, "expected a whole number from 0"),
        (lambda e: e.one_of("s", "a", "b"), {"s": ["a"]}, "expected one of a, b"),
        (lambda e: e.one_of("s", "a", "b"), {"s": {"x": 1}}, "expected one of a, b"),
    ],
)
def test_a_wrong_field_is_shown_with_its_entry_and_what_was_expected(ask, values, said):
    with pytest.raises(UserError) as caught:
        ask(entry(**values))
    text = str(caught.value)
    assert text.startswith("f.json entry 3: ")
    assert said in text
    text.encode()  # can be printed


def test_right_fields_arrive_in_their_plain_form():
    known = entry(p=" a\\b.jpg ", c=" A  man\n", d=["x ", "", "y"], n="007", s="a")
    assert known.path("none", "p") == "a/b.jpg"
    assert known.captions("c") == ("A man",)
    assert known.captions("c2", "d") == ("x", "", "y")
    assert known.number("n") == 7
    assert known.one_of("s", "a") == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"a": 1}', "a.json is an object that begins with 'a'; expected a list"),
     ('[{}, "x"]', 'a.json entry 2 is "x"; expected an object')],
)  # fmt: skip
def test_entries_must_be_a_list_of_objects(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as caught:
        list(annotations.entries(tmp_path / "a.json", "a.json"))
    assert str(caught.value).startswith(said)
