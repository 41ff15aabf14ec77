"""The page of a sweep says what the result files say: means, intervals, which variant, which method."""

import re

import imageio.v3 as imageio
import numpy as np
import pytest
from segarena.evaluation.report import STANDARD, Column, interval
from segarena.evaluation.results import Result, count_origins
from segarena.evaluation.statistics import bootstrap_interval
from segarena.evaluation.sweep_page import save_sweep_figure, write_page

COLUMNS = [STANDARD["dice"], Column("steps", "Steps", "", 1, 1)]
DICE = {
    "low": {0: [0.1, 0.2, 0.3], 1: [0.2, 0.3, 0.4]},
    "high": {0: [0.5, 0.6, 0.7], 1: [0.7, 0.8, 0.9]},
}
"""Of the trained policy, by variant and seed, of three cases."""


def result(method, seed, dice, **more):
    cases = [{"case_id": f"case_{n}", "origin": "phantom", "dice": one, **more} for n, one in enumerate(dice)]
    return Result(
        id=f"{method}_{seed}".replace(" ", "_"),
        paper="SPARS",
        env="SPARS-LiverCT-v0",
        method=method,
        seed=seed,
        data="liver phantom",
        split="test",
        supervision="window",
        mode="inductive",
        origins=count_origins(cases),
        metrics={},
        cases=cases,
        settings={},
        command="",
        revision=None,
        machine={},
    )


@pytest.fixture
def variants(tmp_path):
    """Folders of results by variant, one per seed, each with the trained policy and a score map."""
    found = {}
    for variant, of_seeds in DICE.items():
        for seed, dice in of_seeds.items():
            folder = tmp_path / f"{variant}{seed}"
            result("SPARS", seed, dice, steps=4.0).write(folder / "a.json")
            result("score map", seed, [0.25, 0.5, 0.75]).write(folder / "b.json")
            found.setdefault(variant, []).append(folder)
    return found


def page_of(tmp_path, variants, **more):
    trained = more.pop("trained", dict.fromkeys(variants, "SPARS"))
    path = write_page(tmp_path / "out", "My sweep", variants, trained=trained, columns=COLUMNS, **more)
    assert path == tmp_path / "out" / "index.md"
    return path.read_text(encoding="utf-8")


def rows(text, method):
    """The cells of the table of a method, by variant."""
    section = re.search(rf"^## {re.escape(method)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return lines[0], {line[0]: line for line in lines[2:]}


def test_each_method_has_a_row_for_each_variant(tmp_path, variants):
    text = page_of(tmp_path, variants)
    header, of_policy = rows(text, "SPARS")
    assert header == ["Variant", "Supervision", "Mode", "Seeds", "Dice (%)", "Steps"]
    assert list(of_policy) == ["low", "high"]
    for variant, of_seeds in DICE.items():
        mean, low, high = bootstrap_interval(100 * np.array(list(of_seeds.values())))
        assert of_policy[variant][3:5] == ["2", f"{mean:.1f} [{low:.1f}, {high:.1f}]"]
    assert of_policy["low"][4].startswith("25.0 [")
    assert of_policy["high"][4].startswith("70.0 [")
    header, of_map = rows(text, "score map")
    assert header[4:] == ["Dice (%)"], "a score map takes no steps"
    assert of_map["low"][1:] == of_map["high"][1:]
    assert "![Dice of the variants](dice.png)" in text
    assert "Without results" not in text


def test_the_trained_policy_is_one_method_whatever_the_variants_call_it(tmp_path, variants):
    for number, folder in enumerate(variants["high"]):
        result("SPARS, other", number, DICE["high"][number], steps=4.0).write(folder / "a.json")
    text = page_of(tmp_path, variants, trained={"low": "SPARS", "high": "SPARS, other"})
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["trained policy", "score map"]
    assert list(rows(text, "trained policy")[1]) == ["low", "high"]


def test_what_is_missing_is_named(tmp_path, variants):
    text = page_of(
        tmp_path, {"low": variants["low"][:1]}, axis=("env.threshold", {"low": 0.5}), missing=["low1", "high0"]
    )
    assert "Without results: low1, high0." in text
    assert rows(text, "SPARS")[1]["low"][3] == "1"
    with pytest.raises(ValueError, match="a sweep without results has no page"):
        page_of(tmp_path, {})


def test_results_on_other_cases_cannot_stand_beside_each_other(tmp_path, variants):
    result("SPARS", 0, [0.5], steps=4.0).write(variants["high"][0] / "a.json")
    with pytest.raises(ValueError, match="differ in the cases"):
        page_of(tmp_path, variants)


def test_an_interval_is_in_the_unit_of_its_column_and_undefined_where_a_case_is():
    both = [result("a", seed, dice) for seed, dice in DICE["low"].items()]
    assert interval(both, "dice") == bootstrap_interval(100 * np.array(list(DICE["low"].values())))
    assert interval(both, Column("dice", "Dice")).mean == pytest.approx(0.25)
    assert np.isnan(interval(both, "steps")).all()


def drawn(path, bands, axis=None):
    save_sweep_figure(path, bands, COLUMNS[0], axis)
    return imageio.imread(path)[..., :3].astype(int)


def test_the_figure_has_a_mark_for_each_variant_at_its_value(tmp_path):
    low, high = (interval([result("a", s, d) for s, d in DICE[name].items()], "dice") for name in ("low", "high"))
    picture = drawn(
        tmp_path / "a.png", {"SPARS": {"low": low, "high": high}}, ("env.threshold", {"low": 0.2, "high": 0.4})
    )
    blue = np.abs(picture - (31, 119, 180)).sum(axis=-1) < 60
    plot = blue[: int(0.7 * len(blue))]  # without the legend
    columns = np.flatnonzero(plot.any(axis=0))
    left, right = (
        plot[:, at - 3 : at + 4] if at > 10 else plot[:, at : at + 7] for at in (columns[0] + 3, columns[-1] - 3)
    )
    assert np.flatnonzero(left.any(axis=1)).mean() > np.flatnonzero(right.any(axis=1)).mean() + 50, "higher is above"
    assert plot[:, (columns[0] + columns[-1]) // 2].any(), "numbers are joined by a line"
    apart = drawn(tmp_path / "b.png", {"SPARS": {"low": low, "high": high}})
    blue = np.abs(apart - (31, 119, 180)).sum(axis=-1) < 60
    columns = np.flatnonzero(blue[: int(0.7 * len(blue))].any(axis=0))
    assert (np.diff(columns) > 50).sum() == 1, "names are not"
    with pytest.raises(ValueError, match="no methods to draw"):
        save_sweep_figure(tmp_path / "c.png", {}, COLUMNS[0])
