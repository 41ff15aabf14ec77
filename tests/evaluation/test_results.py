"""Result files are complete, atomic and honest about what is missing; reports merge them correctly."""

import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from segarena.evaluation import machine
from segarena.evaluation.metrics import segmentation_metrics
from segarena.evaluation.report import Column, differences, mean_metrics, p_values, pairs, table
from segarena.evaluation.results import Result, count_origins, read_results
from segarena.evaluation.statistics import bootstrap_interval, holm, paired_wilcoxon

SHOWN = ("dice", "hd95_mm", "nsd", "lesion_recall", "lesion_precision")


def case(number: int, dice: float, *, target: bool = True, painted: bool = True, origin: str = "phantom"):
    return {
        "case_id": f"case_{number}",
        "origin": origin,
        "dice": dice,
        "label_voxels": 100.0 * target,
        "pred_voxels": 50.0 * painted,
        "false_positive_ml": 1.5 * painted,
    }


def result(method: str = "ppo", seed: int = 0, cases=None, **changes) -> Result:
    cases = [case(0, 0.5), case(1, 0.7), case(2, 0.9, origin="implanted")] if cases is None else cases
    values = {
        "id": f"spars-{method}-{seed}",
        "paper": "SPARS",
        "env": "SPARS-LiverCT-v0",
        "method": method,
        "seed": seed,
        "data": "phantom-test",
        "split": "test",
        "supervision": "window",
        "mode": "inductive",
        "origins": count_origins(cases),
        "metrics": mean_metrics(cases) if cases else {},
        "cases": cases,
        "settings": {"rollouts": 8, "mask_threshold": 0.5, "mask_threshold_from": "paper"},
        "command": "run_rl.py evaluate --seed 0",
        "revision": "abc",
        "machine": {"python": "3.11"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    return Result(**(values | changes))


def row(text: str, method: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_result_survives_writing_and_reading(tmp_path):
    first, second = result(seed=0), result(seed=1)
    second.write(tmp_path / "results" / "b.json")
    first.write(tmp_path / "results" / "a.json")
    assert read_results(tmp_path / "results") == [first, second]
    assert read_results(str(tmp_path / "results" / "b.json")) == [second]
    assert read_results([tmp_path / "results" / "b.json", tmp_path / "results" / "a.json"]) == [second, first]


def test_nan_and_infinity_become_null(tmp_path):
    result(metrics={"dice": math.nan, "hd95_mm": math.inf}, settings={"taus": (0.5, math.nan)}).write(
        tmp_path / "r.json"
    )
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"dice": None, "hd95_mm": None}
    assert content["settings"] == {"taus": [0.5, None]}


def test_cases_are_written_as_csv(tmp_path):
    cases = [
        {"case_id": 'a "b", c', "origin": "phantom", "hd95_mm": 1.5, "note": "two\nlines"},
        {"note": "ü", "origin": "phantom", "case_id": "d", "patient": "p", "hd95_mm": math.inf, "steps": None},
    ]
    result(cases=cases, metrics={}).write_cases(tmp_path / "deep" / "r.csv")
    text = (tmp_path / "deep" / "r.csv").read_bytes().decode()
    assert text == (
        'case_id,origin,patient,hd95_mm,note,steps\r\n"a ""b"", c",phantom,,1.5,"two\nlines",\r\nd,phantom,p,,ü,\r\n'
    )


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    result(seed=0).write(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            result(seed=1).write(path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        result(settings={"net": object()}).write(path)
    assert read_results(path)[0].seed == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"id": "x"}', "missing keys .*'paper'"),
        (None, "unknown keys .'surprise'."),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    result().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}) if text is None else text)
    with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
        read_results(tmp_path)


def test_wrong_values_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "bad.json"
    result().write(path)
    for key, value in (("mode", "psychic"), ("cases", ["a"]), ("origins", {"phantom": 9}), ("origins", None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(ValueError, match=r"bad\.json is not a result"):
            read_results(path)


@pytest.mark.parametrize(
    "changes",
    [
        *({"seed": value} for value in ("x", None, [], 1.5)),
        *({"method": value} for value in (None, 5, [], {})),
        *({"metrics": value} for value in (None, 5, {"dice": "x"}, {"dice": float("nan")})),
        *({name: value} for name in ("env", "data", "split", "supervision") for value in ([], 5)),
        *({"cases": [{**case(0, 0.5), "dice": value}]} for value in ([], {}, float("inf"))),
    ],
)
def test_values_of_another_type_in_a_file_name_the_file(tmp_path, changes):
    result().write(tmp_path / "bad.json")
    content = json.loads((tmp_path / "bad.json").read_text())
    if "cases" in changes:
        changes = {**changes, "origins": {"phantom": 1}}
    (tmp_path / "bad.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(ValueError, match=r"bad\.json is not a result"):
        read_results(tmp_path)


def test_a_metric_that_is_text_is_named_in_a_table():
    with pytest.raises(ValueError, match="metric 'dice' of case 'case_0' is 'x' but must be a number"):
        table([result(cases=[{**case(0, 0.5), "dice": "x"}], metrics={})], SHOWN)


def test_a_name_does_not_break_the_table():
    lines = table([result("a | b\nc")], ["dice"]).splitlines()
    assert lines[2].startswith(r"| a \| b c ")
    assert lines[0].count("|") == lines[2].replace(r"\|", "").count("|")


def test_missing_files_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*\.json in the folder"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no result file .*x\.json"):
        read_results(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "psychic"}, "mode is 'psychic'"),
        ({"origins": {"cadaver": 3}}, "cadaver"),
        ({"origins": {"real": 3}}, "origins is"),
        ({"cases": [{"dice": 0.5}]}, "needs a case_id"),
        ({"cases": [case(0, 0.5), case(0, 0.6)]}, "case_0.* more than once"),
    ],
)
def test_contradictory_results_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(result(), **changes)


def test_means_leave_out_empty_targets_only_where_overlap_is_meant():
    means = mean_metrics([case(0, 0.4), case(1, 0.6), case(2, 0.0, target=False)])
    assert means["dice"] == pytest.approx(0.5)
    assert means["false_positive_ml"] == 1.5
    assert math.isnan(mean_metrics([case(2, 0.0, target=False)])["dice"])


@pytest.mark.parametrize(("needs_target", "mean"), [(True, 0.5), (False, 0.75)])
def test_a_column_says_whether_empty_targets_count(needs_target, mean):
    hits = Column("hit", "Hit", "%", 100, 0, needs_target)
    cases = [case(0, 0.4) | {"hit": 0.5}, case(1, 0.0, target=False) | {"hit": 1.0}]
    assert mean_metrics(cases, [hits])["hit"] == mean
    assert row(table([result(cases=cases)], [hits]), "ppo")[4].split()[0] == f"{100 * mean:.0f}"


def test_text_of_a_case_is_a_tag_and_no_metric():
    assert mean_metrics([{"case_id": "a", "origin": "real", "scanner": "b", "dice": 1.0}]) == {"dice": 1.0}


def test_a_metric_is_shown_as_its_column_says_or_under_its_own_name():
    cases = [case(i, 0.5) | {"duration": 0.25} for i in range(2)]
    text = table([result(cases=cases)], [Column("duration", "Duration", "ms", 1000, 0), "duration"])
    assert [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")][4:] == ["Duration (ms)", "duration"]
    assert row(text, "ppo")[4:] == ["250 [250, 250]", "0.250 [0.250, 0.250]"]


def test_a_metric_that_one_case_lacks_is_undefined_not_averaged_over_the_rest():
    assert math.isnan(mean_metrics([{"case_id": "a", "auroc": 1.0}, {"case_id": "b", "auroc": None}])["auroc"])
    with pytest.raises(ValueError, match="no cases"):
        mean_metrics([])


def test_the_machine_is_described_without_names_and_paths():
    described = machine.describe_machine()
    assert described.keys() == {"python", "system", "packages", "cpu", "cores", "gpu", "threads", "revision"}
    assert described["packages"]["torch"] == torch.__version__
    assert described["cores"] >= 1
    assert str(machine.ROOT) not in json.dumps(described)


def test_the_revision_is_a_commit_or_none(monkeypatch, tmp_path):
    revision = machine.git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.git_revision() is None


def test_where_some_cases_have_labels_means_and_p_values_are_over_these():
    known = [{**case(n, dice), "labelled": 1.0, "valid": 1.0} for n, dice in enumerate((0.5, 0.7, 0.9))]
    unknown = {"case_id": "case_9", "origin": "phantom", "labelled": 0.0, "valid": 0.0}
    some, all_known = result(cases=[*known, unknown]), result(cases=known)
    assert some.metrics["dice"] == all_known.metrics["dice"] == pytest.approx(0.7)
    assert some.metrics["valid"] == 0.75
    text = table([some, result("other", cases=[*known, unknown])], ["dice", "valid"], baseline="ppo")
    assert row(text, "ppo")[4].startswith("70.0 [")
    assert "3 of the 4 cases have labels: what needs labels is the mean over these." in text
    without = [{key: value for key, value in one.items() if key != "valid"} for one in (*known, unknown)]
    text = table([result("other", cases=without), some], ["dice", "valid"])
    assert row(text, "ppo")[5].startswith("0.750 ["), "of all cases, though the first method knows nothing of it"
    assert row(text, "other")[5] == "–"
    assert "have labels" not in table([all_known], ["dice"])
    lacking = [{key: value for key, value in known[0].items() if key != "dice"}, *known[1:]]
    assert math.isnan(mean_metrics(lacking)["dice"]), "a labelled case that lacks a metric is not left out"


# -- report --------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_and_interval_in_percent():
    mean, low, high = bootstrap_interval([50.0, 70.0, 90.0])
    assert row(table([result()], ["dice"]), "ppo") == [
        "ppo",
        "window",
        "inductive",
        "1",
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
    ]


def test_seeds_of_a_method_become_one_row_and_methods_keep_their_order():
    shifted = [case(i, dice + 0.1) for i, dice in ((2, 0.9), (0, 0.5), (1, 0.7))]  # another order of cases
    runs = [result("sweep"), result("ppo", 0), result("ppo", 1, shifted), result("greedy")]
    text = table(runs, ["dice"])
    assert [line.split()[1] for line in text.splitlines()[2:5]] == ["sweep", "ppo", "greedy"]
    mean, low, high = bootstrap_interval([[50.0, 70.0, 90.0], [60.0, 80.0, 100.0]])
    assert row(text, "ppo")[3:] == ["2", f"{mean:.1f} [{low:.1f}, {high:.1f}]"]


def test_cases_with_an_empty_target_get_columns_of_their_own():
    cases = [case(0, 0.5), case(1, 0.7), case(2, 0.0, target=False), case(3, 1.0, target=False, painted=False)]
    text = table([result(cases=cases)], ["dice"])
    assert row(text, "ppo")[4:] == ["60.0 [50.0, 70.0]", "0.8 [0.0, 1.5]", "50.0 [0.0, 100.0]"]  # 0.75 to even
    assert "2 cases with an empty target are left out" in text
    assert "empty target" not in table([result()], ["dice"])


def test_the_footer_says_what_the_numbers_rest_on():
    footer = table([result(seed=3), result(seed=5)], ["dice"])
    assert (
        "SPARS-LiverCT-v0, phantom-test, split test: 3 cases (2 phantom, 1 implanted, 0 real); seeds [3, 5]." in footer
    )


def test_undefined_metrics_and_single_cases_show_no_false_precision():
    assert row(table([result()], ["dice", "auroc"]), "ppo")[-1] == "–"
    assert row(table([result(cases=[case(0, 0.5)])], ["dice"]), "ppo")[-1] == "50.0 [–]"


def test_the_table_is_padded_to_straight_columns():
    lines = [line for line in table([result("a"), result("a long name")], SHOWN).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "Dice (%)" in lines[0]
    assert "HD95 (mm)" in lines[0]


def test_methods_are_compared_on_paired_cases_with_seeds_averaged():
    base, gains = np.linspace(0.2, 0.6, 8), np.linspace(0.01, 0.08, 8)
    ours = [result("ppo", s, [case(i, b + g + d) for i, (b, g) in enumerate(zip(base, gains, strict=True))])
            for s, d in ((0, -0.005), (1, 0.005))]  # fmt: skip
    theirs = result("sweep", 0, [case(i, b) for i, b in reversed(list(enumerate(base)))])
    found = p_values([*ours, theirs], "sweep", "dice")
    assert found == {"ppo": pytest.approx(2 / 256)}
    assert found["ppo"] == paired_wilcoxon(gains, np.zeros(8))
    text = table([*ours, theirs], ["dice"], baseline="sweep")
    assert (row(text, "ppo")[-1], row(text, "sweep")[-1]) == ("0.0078", "–")


def test_every_two_methods_are_compared_in_a_table_of_pairs():
    base, gains = np.linspace(0.2, 0.6, 8), np.linspace(0.01, 0.08, 8)
    cases = {"base": base, "better": base + gains, "worse": base - gains}
    results = [
        result(name, seed, [case(i, dice + shift) for i, dice in enumerate(of_name)])
        for name, of_name in cases.items()
        for seed, shift in ((1, 0.02), (0, -0.02))[: 1 if name == "worse" else 2]
    ]
    header, _, *lines = pairs(results, "dice").splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("Method", "Other", "Difference of Dice (%)", "p", "p, Holm"),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:3]]
    assert [row[:2] for row in rows] == [["base", "better"], ["base", "worse"], ["better", "worse"]]
    difference = bootstrap_interval(-100 * np.stack([gains, gains]))  # what the seeds have in common cancels
    assert rows[0][2] == f"{difference.mean:.1f} [{difference.low:.1f}, {difference.high:.1f}]"
    assert rows[1][2].startswith("2.5 "), "4.5 less the 2 that seed 1 of the other is above the mean of both"
    wilcoxon = paired_wilcoxon(base, cases["better"])
    assert rows[0][3:] == [f"{wilcoxon:.2g}", f"{3 * wilcoxon:.2g}"]
    assert float(rows[1][3]) == pytest.approx(paired_wilcoxon(base, cases["worse"] + 0.02), rel=0.01)
    assert "over cases" in lines[4]
    assert "corrected for the 3 pairs" in lines[5]
    with pytest.raises(ValueError, match="no pairs: the only method is 'ppo'"):
        pairs([result()], "dice")


def test_differences_from_a_reference_are_paired_by_case_and_seed():
    reference = {seed: [0.5 + 0.1 * seed, 0.7, 0.2] for seed in (0, 1)}
    gains = [0.1, 0.2, 0.03]
    of = lambda values: [case(number, value) for number, value in enumerate(values)]  # noqa: E731
    results = [result("base", seed, of(values)) for seed, values in reference.items()]
    results += [
        result("ours", seed, of([one + gain for one, gain in zip(values, gains, strict=True)]))
        for seed, values in reversed(reference.items())
    ]
    results.append(result("once", 7, of([0.4, 0.5, 0.6])))
    text = differences(results, "base", ["dice", "false_positive_ml"])
    assert text.splitlines()[0].startswith("| Difference from base | Dice (%) ")
    mean, low, high = bootstrap_interval(100 * np.array([gains, gains]))
    assert row(text, "ours")[1:] == [f"{mean:.1f} [{low:.1f}, {high:.1f}]", "0.0 [0.0, 0.0]"]
    mean, low, high = bootstrap_interval(100 * (np.array([0.4, 0.5, 0.6]) - np.mean([*reference.values()], axis=0)))
    assert row(text, "once")[1] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    assert "mean of the method less that of base" in text
    assert len(text.splitlines()) == 6
    with pytest.raises(ValueError, match="reference is 'theirs' but the methods are"):
        differences(results, "theirs", ["dice"])


def test_numbers_of_the_settings_stand_in_a_table_where_a_result_has_them():
    columns = (Column("steps", "Steps", digits=0), Column("share", "Share", "%", 100, 1), Column("none", "None"))
    told = [{"steps": 10, "share": None}, {"steps": 13, "share": None}, {"steps": 4, "share": 0.5}, {}]
    names = [("ours", 0), ("ours", 1), ("base", 0), ("bare", 0)]
    text = table(
        [result(*name, settings=one) for name, one in zip(names, told, strict=True)], ["dice"], settings=columns
    )
    assert row(text, "Method")[3:6] == ["Seeds", "Steps", "Share (%)"]
    assert [row(text, name)[4:6] for name in ("ours", "base", "bare")] == [["12", "–"], ["4", "50.0"], ["–", "–"]]
    assert "None" not in text
    assert table([result()], ["dice"], settings=columns) == table([result()], ["dice"])


def test_pairs_of_patients_are_compared_by_the_patients_means():
    def of(name, values):
        patients = [case(i, v) | {"patient": f"p{i // 2}"} for i, v in enumerate(values)]
        return result(name, cases=patients)

    ours, theirs = np.array([0.5, 0.6, 0.3, 0.35, 0.8, 0.7]), np.array([0.4, 0.4, 0.2, 0.3, 0.9, 0.5])
    text = pairs([of("ours", ours), of("theirs", theirs)], "dice")
    means = [values.reshape(3, 2).mean(axis=1) for values in (ours, theirs)]
    assert row(text, "ours")[3] == f"{paired_wilcoxon(*means):.2g}"
    assert "over patients" in text


def test_the_p_values_of_several_methods_are_corrected_after_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}  # 3 x 0.01; 2 x 0.03, below which 1 x 0.04 may not fall; 4 x 0.005
    )
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.02}) == {"a": 0.02}
    base, gains = np.linspace(0.2, 0.6, 8), np.linspace(0.01, 0.08, 8)
    results = [result(name, cases=[case(i, b + sign * g) for i, (b, g) in enumerate(zip(base, gains, strict=True))])
               for name, sign in (("base", 0), ("better", 1), ("worse", -1))]  # fmt: skip
    assert p_values(results, "base", "dice") == {"better": pytest.approx(4 / 256), "worse": pytest.approx(4 / 256)}
    assert "p (Dice vs base, Holm)" in table(results, ["dice"], baseline="base")
    assert "Holm" not in table(results[:2], ["dice"], baseline="base"), "one comparison needs no correction"


def test_a_name_neither_ends_a_cell_nor_begins_a_formula():
    text = table([result("a|b\n$c$")], ["dice"])
    header, _, line, *_ = text.splitlines()
    assert line.startswith(r"| a\|b \$c\$ |")
    assert len(re.findall(r"(?<!\\)\|", line)) == header.count("|")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([result("greedy", data="liver")], "one environment, data set and split"),
        ([result("ppo", 0)], "a seed more than once"),
        ([result("ppo", 1, supervision="voxel")], "mixes kinds of supervision"),
        ([result("greedy", cases=[case(7, 0.5)])], "differ in the cases .*case_7"),
        ([result("greedy", cases=[])], "differ in the cases"),
    ],
)
def test_results_that_do_not_belong_in_one_table_are_rejected(others, message):
    with pytest.raises(ValueError, match=message):
        table([result("ppo", 0), *others], SHOWN)


def test_empty_reports_unknown_baselines_and_missing_metrics_are_rejected():
    with pytest.raises(ValueError, match="no results"):
        table([], SHOWN)
    with pytest.raises(ValueError, match="columns is empty"):
        table([result()], [])
    with pytest.raises(ValueError, match="baseline is 'oracle'"):
        p_values([result()], "oracle", "dice")
    with pytest.raises(ValueError, match="'nsd' is missing or undefined"):
        p_values([result(), replace(result(), method="b")], "b", "nsd")


def test_the_metrics_of_a_case_go_into_a_report_as_they_are():
    label = torch.zeros(6, 6, 6, dtype=torch.bool)
    label[1:4, 1:4, 1:4] = True
    cases = [
        {"case_id": str(i), "origin": "real", **segmentation_metrics(mask, label, (1, 1, 2))}
        for i, mask in enumerate((label, label.roll(1, 0), ~label))
    ]
    cells = row(table([result(cases=cases)], SHOWN), "ppo")
    assert len(cells) == 9
    assert "–" not in cells
