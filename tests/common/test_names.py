"""Names of methods and runs as parts of file names."""

import pytest
from segarena.common.names import LONGEST, check_name, slug


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("score map (mean)", "score_map_mean"),
        ("SPARS τ=0.3", "SPARS_tau_0_3"),
        ("Θ and Σ", "Theta_and_Sigma"),
        ("Grün café", "Grun_cafe"),
        ("a – b…", "a_b"),
        ("../../x", "x"),
        (r"$\frac{1}{2}$", "frac_1_2"),
    ],
)
def test_a_name_that_can_be_spelt_in_ascii_is(name, expected):
    assert slug(name) == expected


@pytest.mark.parametrize(
    "name", ["!!!", "\N{ANATOMICAL HEART}", "心", "心脏", "a \N{ANATOMICAL HEART}", "a 心", "n" * 81, ""]
)
def test_what_is_lost_is_told_apart_by_a_digest(name):
    assert slug(name).isascii()
    assert slug(name).replace("_", "").isalnum()
    assert len(slug(name)) <= LONGEST
    assert slug(name) != slug(f"{name}?"[::-1])


def test_names_that_lose_letters_do_not_share_a_file():
    names = ["!!!", "???", "\N{ANATOMICAL HEART}", "心", "脏", "a 心", "a 脏", "n" * 81, "n" * 82]
    assert len({slug(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "a\tb", "bell\x07", "n" * 101, "\u2028"])
def test_a_name_that_no_table_can_show_is_refused(name):
    with pytest.raises(ValueError, match=r"name is .* but must be one line of 1 to 100 characters .* --name"):
        check_name(name)


@pytest.mark.parametrize("name", ["SPARS", "a | b", "$5", "\N{ANATOMICAL HEART}", "n" * 100, "τ = 0.3"])
def test_any_other_name_is_taken(name):
    check_name(name)


def test_a_plus_sign_makes_another_name():
    assert slug("RP-PGD++-AT") == "RP_PGD_plus_plus_AT" != slug("RP-PGD-AT")
