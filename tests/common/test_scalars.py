"""metrics.jsonl: its lines are read and measured, and one that is none is named."""

import pytest
from segarena.common.scalars import read_scalars, whole_lines

LINES = '{"step": 1, "a": 0.5}\n{"step": 2, "a": -1}\n'


@pytest.fixture
def path(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(LINES)
    return tmp_path / "metrics.jsonl"


def test_lines_are_read_oldest_first(path):
    assert read_scalars(path) == [{"step": 1, "a": 0.5}, {"step": 2, "a": -1}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"a": "x"}', '{"a": null}', "[" * 100_000, "\0", '{"a": 1}{"b": 2}'])
def test_a_line_that_is_none_is_named(path, line):
    path.write_text(f"{LINES}{line}\n")
    whole = path.stat().st_size
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3, "):
        read_scalars(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3, .*; put .* back, or move it away"):
        whole_lines(path, whole)


def test_what_is_not_utf_8_is_refused_by_name(path):
    path.write_bytes(b"\xff" + path.read_bytes())
    with pytest.raises(ValueError, match=r"put .*metrics\.jsonl back"):
        whole_lines(path, 10**6)


@pytest.mark.parametrize(
    ("size", "kept"),
    [(0, 0), (3, 0), (22, 22), (23, 22), (len(LINES), len(LINES)), (2**40, len(LINES)), (2**70, len(LINES))],
)
def test_only_whole_lines_count(path, size, kept):
    assert whole_lines(path, size) == kept


def test_a_line_beyond_need_not_be_whole(path):
    path.write_text(LINES + '{"step": 3')
    assert whole_lines(path, len(LINES) + 5) == len(LINES)
