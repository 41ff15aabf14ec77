"""Cases are chosen by split, by pattern and by the number of a phantom; what cannot be chosen is refused by name."""

from dataclasses import dataclass, replace

import pytest
from segarena.datasets.sample import BadSample, load_each
from segarena.datasets.selection import (
    Catalogue,
    PhantomNames,
    check_pattern,
    check_ratios,
    one_split_each,
    patient_of,
    setting,
    split_by_ratio,
)

GROUPS = {"ct2#0": "ct2", "ct2#1": "ct2", "ct1#0": "ct1", "ct1#1": "ct1", "ct9#0": "ct9"}
CATALOGUE = Catalogue("/data", GROUPS, {"train": ["ct1", "ct3", "ct2"], "test": ["ct4"]}, "CT", "name cases")
PHANTOMS = PhantomNames("phantom_b_", digits=4)


def test_a_split_is_in_the_order_of_its_groups_and_all_in_that_of_the_data():
    assert CATALOGUE.in_split("train") == ["ct1#0", "ct1#1", "ct2#0", "ct2#1"]
    assert CATALOGUE.in_split("all") == list(GROUPS)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:1]", ["ct1#0", "ct1#1"]),
        ("train[1:2]", []),  # ct3 is not there, and counts
        ("train[1:]", ["ct2#0", "ct2#1"]),
        ("train[2:99]", ["ct2#0", "ct2#1"]),
        ("train[:]", ["ct1#0", "ct1#1", "ct2#0", "ct2#1"]),
        ("more+train[:1]", ["ct9#0", "ct1#0", "ct1#1"]),
        ("train[:1]+more[:1]", ["ct1#0", "ct1#1", "ct9#0"]),
    ],
)
def test_parts_of_splits_are_counted_in_groups_and_joined(split, expected):
    catalogue = replace(CATALOGUE, splits={**CATALOGUE.splits, "more": ["ct9"]})
    if expected:
        assert catalogue.in_split(split) == expected
    else:
        with pytest.raises(ValueError, match="has no CT that is there"):
            catalogue.in_split(split)


@pytest.mark.parametrize("split", ["train[", "train[1]", "train[-1:]", "train[:1]+", "", "+", "val[:1]", "train[:a]"])
def test_a_part_of_a_split_that_cannot_be_read_is_refused(split):
    with pytest.raises(ValueError, match="has train, test, all; name cases"):
        CATALOGUE.in_split(split)


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
    with pytest.raises(ValueError, match=r"it has ct0, ct1, ct2, ct3, ct4, \.\.\. ct19 \(20 CTs\); correct"):
        many.named(["x*"])


def test_a_division_by_ratio_is_the_same_everywhere_and_takes_everybody_once():
    names = [f"p{n}" for n in range(10)]
    splits = split_by_ratio(names, {"train": 7, "val": 1, "test": 2, "pred": 0}, seed=0)
    assert splits == {"train": ["p6", "p0", "p3", "p2", "p5", "p1", "p9"], "val": ["p8"], "test": ["p7", "p4"]}
    assert split_by_ratio(reversed(names + names), {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0) == splits
    assert split_by_ratio(names, {"train": 7, "val": 1, "test": 2}, seed=1) != splits


@pytest.mark.parametrize("number", [4, 5, 23, 131])
def test_every_split_gets_somebody_and_its_share_to_within_one(number):
    ratios = {"a": 0.3, "b": 0.1, "c": 0.4, "d": 0.2}
    splits = split_by_ratio(map(str, range(number)), ratios, seed=3)
    assert sorted(group for groups in splits.values() for group in groups) == sorted(map(str, range(number)))
    for name, share in ratios.items():
        assert len(splits[name]) >= 1
        assert abs(len(splits[name]) - share * number) <= 1


def test_too_few_patients_say_which_split_would_be_empty():
    message = "^2 patients are too few for the 3 splits train, val, test: val would be empty$"
    with pytest.raises(ValueError, match=message):
        split_by_ratio(["p1", "p2", "p1"], {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0)


@pytest.mark.parametrize("ratios", [{}, {"train": 0}, {"train": 1, "val": -1}, {"train": float("nan")}, {"all": 1}])
def test_ratios_that_divide_nothing_are_refused(ratios):
    check_ratios({"train": 3, "val": 0}, ["train"])
    with pytest.raises(ValueError, match=r"split_ratios is .* e\.g\. \{train: 1, val: 1\}"):
        check_ratios(ratios, ["train", "val"])


def test_a_pattern_finds_the_patient_in_a_name():
    assert patient_of("P07_4CH_ED", None) == "P07_4CH_ED"
    assert patient_of("P07_4CH_ED", "^P[0-9]+") == "P07"
    assert patient_of("study-12-a", "study-([0-9]+)") == "12"
    with pytest.raises(ValueError, match=r"patient_pattern '\^P\[0-9\]\+' finds no patient in the name 'x1'"):
        patient_of("x1", "^P[0-9]+")
    check_pattern(None)
    with pytest.raises(ValueError, match=r"patient_pattern is '\(' but must be a regular expression"):
        check_pattern("(")


def test_a_setting_is_written_as_its_user_has_to_write_it():
    assert setting("--test.", "cases", ["a#1"]) == """--test.cases '["a#1"]'"""
    assert setting("--test.", "split", "all") == "--test.split all"
    assert setting("", "cases", ["a"]) == 'cases=["a"]'


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
