"""Cases are chosen by split, by pattern and by the number of a phantom; what cannot be chosen is refused by name."""

from dataclasses import dataclass, replace

import pytest
from segarena.datasets.sample import BadSample, load_each
from segarena.datasets.selection import Catalogue, PhantomNames, one_split_each

GROUPS = {"ct2#0": "ct2", "ct2#1": "ct2", "ct1#0": "ct1", "ct1#1": "ct1", "ct9#0": "ct9"}
CATALOGUE = Catalogue("/data", GROUPS, {"train": ["ct1", "ct3", "ct2"], "test": ["ct4"]}, "CT", "name cases")
PHANTOMS = PhantomNames("phantom_b_", digits=4)


def test_a_split_is_in_the_order_of_its_groups_and_all_in_that_of_the_data():
    assert CATALOGUE.in_split("train") == ["ct1#0", "ct1#1", "ct2#0", "ct2#1"]
    assert CATALOGUE.in_split("all") == list(GROUPS)


def test_patterns_fit_ids_and_groups_and_take_each_id_once():
    assert CATALOGUE.named(["ct1#1", "ct?#1", "ct9"]) == ["ct1#1", "ct2#1", "ct9#0"]
    assert CATALOGUE.named(["*"]) == list(GROUPS)
    assert CATALOGUE.named([]) == []


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "split is 'val' but '/data' has train, test, all; name cases$"),
        ("test", "split 'test' of '/data' has no CT that is there; there are ct2#0, .*, ct9#0; name cases$"),
    ],
)
def test_a_split_that_is_not_there_is_refused(split, message):
    with pytest.raises(ValueError, match=message):
        CATALOGUE.in_split(split)


def test_a_pattern_that_nothing_fits_is_refused_and_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"no CT in '/data' is called 'ct5'; it has ct2#0, ct2#1, ct1#0, ct1#1, ct9#0"):
        CATALOGUE.named(["ct1", "ct5"])
    many = replace(CATALOGUE, groups={f"ct{n}": f"ct{n}" for n in range(20)})
    with pytest.raises(ValueError, match=r"it has ct0, ct1, ct2, ct3, ct4, \.\.\. ct19 \(20 CTs\)$"):
        many.named(["x*"])


def test_a_group_in_two_splits_is_refused():
    one_split_each({"train": ["a", "a"], "test": ["b"]}, "lists.json")
    with pytest.raises(ValueError, match=r"lists\.json: b is in train and in test"):
        one_split_each({"train": ["a", "b"], "test": ["b"]}, "lists.json")


def test_a_phantom_is_known_by_its_number_with_or_without_zeros():
    patterns = PHANTOMS.in_full(["phantom_b_12", "phantom_b_0012", "phantom_b_123456", "phantom_b_00*", "phantom_a_1"])
    assert patterns == ["phantom_b_0012", "phantom_b_0012", "phantom_b_123456", "phantom_b_00*", "phantom_a_1"]
    assert PHANTOMS.numbers(patterns) == {"phantom_b_0012": 12, "phantom_b_123456": 123456}
    assert PHANTOMS.name(7) == "phantom_b_0007"


@dataclass(frozen=True)
class Numbered:
    id: str
    number: int


def test_a_bad_source_raises_or_is_handed_over_and_left_out():
    def load(source):
        if source.number == 0:
            raise ValueError("0 divides nothing")
        return 12 // source.number

    sources = [Numbered(str(n), n) for n in (3, 0, 4)]
    with pytest.raises(ValueError, match="0 divides nothing"):
        dict(load_each(sources, load, None))
    bad = []
    assert [(s.id, value) for s, value in load_each(sources, load, bad.append)] == [("3", 4), ("4", 3)]
    assert bad == [BadSample("0", "0 divides nothing")]
    with pytest.raises(TypeError):  # a mistake of the program is no bad file
        dict(load_each(sources, lambda source: source + 1, bad.append))
