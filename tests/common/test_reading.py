"""Text, JSON and YAML that anybody may have written."""

import os

import pytest
from segarena.common.reading import (
    DEEPEST,
    MOST_VALUES,
    parse_json,
    parse_yaml,
    quoted,
    read_json,
    read_text,
    read_yaml,
)

ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGE_BOMB = "m0: &m0 {k: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}], k{n}: 1}}\n" for n in range(1, 8)
)


def test_a_text_is_read_with_and_without_a_byte_order_mark(tmp_path):
    for content in (b"gr\xc3\xbcn", b"\xef\xbb\xbfgr\xc3\xbcn"):
        (tmp_path / "a.txt").write_bytes(content)
        assert read_text(tmp_path / "a.txt") == "grün"


def test_what_is_no_text_file_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn")
    (tmp_path / "long.txt").write_bytes(bytes(101))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(FileNotFoundError, match=r"absent\.txt' does not exist"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match=r"latin\.txt is no text in UTF-8"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match=r"long\.txt has more than 100 bytes"):
        read_text(tmp_path / "long.txt", limit=100)
    assert read_text(tmp_path / "long.txt", limit=101) == "\0" * 101
    for name in ("pipe.txt", "."):
        with pytest.raises(ValueError, match="is a folder, a pipe or a device"):
            read_text(tmp_path / name)


def test_json_is_read_and_its_file_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null]}')
    (tmp_path / "b.json").write_text('{"a": ')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match=r"b\.json is not JSON: Expecting value: line 1"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000, "[" * 51 + "]" * 51])
def test_deep_json_is_refused(text):
    with pytest.raises(ValueError, match="here is nested too deeply: more than 50 times"):
        parse_json(text, "here")


def test_json_as_deep_as_allowed_is_read():
    assert str(parse_json("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), "here")).count("[") == DEEPEST - 1


def test_a_number_too_long_for_an_integer_is_refused():
    with pytest.raises(ValueError, match="here is not JSON"):
        parse_json("9" * 10_000, "here")


def test_yaml_is_read_with_its_aliases(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "an alias bomb": (ALIAS_BOMB, rf"here, line 5, column 10: more than {MOST_VALUES} keys and values"),
        "a merge bomb": (MERGE_BOMB, rf"here, line 5, column 35: more than {MOST_VALUES} keys and values"),
        "a long list": (f"[{'x, ' * 100_000}]", rf"here, line 1, column \d+: more than {MOST_VALUES} keys and values"),
        "a deep list": ("[" * 100_000, "here, line 1, column 51: nested too deeply"),
        "a deep map": ("".join(" " * n + "a:\n" for n in range(500)), "here, line 50, column 50: nested too deeply"),
        "an alias in itself": ("env: &a\n  cases: *a", "here, line 2, column 10: an alias within what it stands for"),
        "an alias of nothing": ("env: *x", "here, line 1, column 6: found undefined alias 'x'"),
        "a tab": ("env:\n\tcases: []", r"here, line 2, column 1: found character '\\t'"),
        "a key twice": ("a: 1\nb: 2\na: 3", "here, line 3, column 1: key 'a' stands twice"),
        "a key that is a list": ("? [a]\n: b", "here, line 1, column 3: found unhashable key"),
        "two documents": ("a: 1\n---\nb: 2", "here, line 2, column 1: but found another document"),
        "code": ("a: !!python/name:os.system", "here, line 1, column 4: could not determine a constructor"),
        "a NUL": ("a: \0", "here, character 4: special characters are not allowed"),
        "a date that is none": ("a: 2020-13-45", "here has a value that is not what it claims to be: month"),
        "a tag that lies": ("a: !!timestamp x", "here has a value that is not what it claims to be"),
        "a long number": ("a: " + "9" * 5000, "here has a value that is not what it claims to be"),
    }.values(),
)
def test_yaml_that_is_none_or_grows_is_refused_at_its_line(text, said):
    with pytest.raises(ValueError, match=said):
        parse_yaml(text, "here")


def test_a_quotation_is_short_and_shows_both_ends():
    assert quoted("x") == "'x'"
    assert quoted(ValueError("why")) == "why"
    assert quoted("a" * 1000 + "z", 40) == f"'{'a' * 19} ... {'a' * 8}z'"
