"""Constants of the ten tasks, the planner, and their JSON files."""

import json

import pytest
from segarena.datasets.decathlon.fingerprint import Fingerprint
from segarena.datasets.decathlon.plan import Plan, plan_of
from segarena.datasets.decathlon.tasks import PHANTOM_TASKS, TASKS, find_task

PLANNED = """
1  148,148,96  128,128,96  128,128,96  111/222/222  3
2  212,212,96  192,192,96  192,192,96  221/222/222  2
3  212,212,96  192,192,96  256,256,96  221/222/222  2
4  32,48,32    32,48,32    32,48,32    111/111/222  22
5  116,116,16  96,96,16    192,192,16  111/221/221  13
6  212,212,96  192,192,96  256,256,96  221/222/222  2
7  212,148,84  192,128,64  256,256,64  211/221/222  3
8  116,116,32  96,96,32    256,256,32  111/221/222  5
9  212,212,48  192,192,48  256,256,48  221/221/222  5
10 212,212,84  192,192,64  256,256,64  221/221/222  3
"""
"""docs/seat.md, Method 2: task, p_size, in_size, val_size, strides, batch."""
Z_WINDOWS = """
1  -1.19 1.83  -1.07 1.43  -1.11 2.20  -1.07 2.76
2  -2.519 2.205
3  -3.864 2.795
4  -1.611 4.024
5  -.683 1.460  -3.430 2.789
6  -2.831 1.541
7  -3.210 2.609
8  -2.197 3.272
9  -3.791 2.113
10 -3.161 3.328
"""
"""docs/seat.md, Method 1: prepared intensities of each channel."""


def rows(text):
    return [line.split() for line in text.strip().splitlines()]


@pytest.mark.parametrize("row", rows(PLANNED), ids=lambda row: row[0])
def test_the_planner_gives_the_table_of_all_ten_tasks(row):
    task, plan = row[0], find_task(row[0]).plan
    sizes = [",".join(map(str, size)) for size in (plan.p_size, plan.in_size, plan.val_size)]
    strides = "/".join("".join(map(str, stride)) for stride in plan.strides)
    assert [task, *sizes, strides, str(plan.batch)] == row
    for inside, *halvings in zip(plan.in_size, *plan.strides, strict=True):
        assert inside % (4 * halvings[0] * halvings[1] * halvings[2]) == 0, "the deepest grid is whole"


@pytest.mark.parametrize("row", rows(Z_WINDOWS), ids=lambda row: row[0])
def test_windows_in_z_are_those_of_the_page(row):
    task, *ends = row
    found = [end for window in find_task(task).fingerprint.z_window() for end in window]
    assert found == pytest.approx([float(end) for end in ends], abs=0.005 if task == "1" else 0.0007)


def test_each_branch_of_the_planner_acts():
    small = plan_of((100, 100, 100), (20, 20, 20), 1000, batch=2)
    assert small.in_size == (96, 96, 96)  # 64 * 1.5
    assert small.p_size == (96, 96, 96)  # 116 would exceed the image
    assert plan_of((127, 100, 100), (20, 20, 20), 1000, 2).p_size[0] == 116  # 96 + 20
    deep = plan_of((100, 100, 100), (64, 64, 64), 40**3, batch=2)
    assert deep.strides[0] == (1, 1, 1)  # 64 = 2^6 voxels are halved 4 times at most, down to 4
    assert plan_of((400, 400, 100), (4, 4, 4), 40**3, 2).in_size[0] == 64, "too many deepest features: smaller patches"


def test_tasks_are_found_by_number_and_name():
    assert len(TASKS) == 10
    assert [int(task.name[4:6]) for task in TASKS.values()] == list(range(1, 11))
    for name in (9, "9", "spleen", "Spleen", "Task09_Spleen"):
        assert find_task(name).name == "Task09_Spleen"
    assert find_task(1).channels == ("FLAIR", "T1w", "T1gd", "T2w")
    assert [len(task.classes) for task in TASKS.values()] == [4, 2, 3, 3, 3, 2, 3, 3, 2, 2]
    assert {task.name for task in TASKS.values() if task.ct} == {
        *("Task03_Liver", "Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon")
    }
    assert find_task("toy", phantom=True) is PHANTOM_TASKS["Toy"]
    assert find_task(4, phantom=True) is not find_task(4)


def test_a_wrong_task_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"task is 'Splen' but must be one of 1 BrainTumour.*did you mean 'Spleen'"):
        find_task("Splen")
    with pytest.raises(ValueError, match="task is 11 but must be one of"):
        find_task(11)
    with pytest.raises(ValueError, match=r"no phantom; there are phantoms of BrainTumour, Hippocampus, Toy.*folder"):
        find_task(9, phantom=True)
    with pytest.raises(ValueError, match="task is 'toy' but must be one of"):
        find_task("toy")


def test_plan_and_fingerprint_are_json_that_a_person_reads(tmp_path):
    task = find_task(5)
    task.plan.save(tmp_path / "plan.json")
    task.fingerprint.save(tmp_path / "fingerprint.json")
    assert Plan.load(tmp_path / "plan.json") == task.plan
    assert Fingerprint.load(tmp_path / "fingerprint.json") == task.fingerprint
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert lines[1:3] == ['  "p_size": [116, 116, 16],', '  "in_size": [96, 96, 16],']


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_size": [96, 96]}, r"plan.json: plan.in_size is \(96, 96\)"),
        ({"in_size": [999, 96, 16]}, "plan.in_size is .* must not exceed p_size"),
        ({"batch": 0}, "plan.batch is 0"),
        ({"batch": None}, "plan.batch is None"),
        ({"strides": [[1, 1, 1], [2, 2, 0], [2, 2, 2]]}, "plan.strides"),
        ({"batsh": 3}, "unknown field 'batsh'; did you mean batch"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "plan.json"
    find_task(5).plan.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Plan.load(path)


def test_files_that_hold_no_plan_or_fingerprint_are_refused(tmp_path):
    path = tmp_path / "some.json"
    for text, message in (("[]", "must be an object"), ("{}", "lacks p_size"), ("{", "not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Plan.load(path)
    find_task(5).fingerprint.save(path)
    good = json.loads(path.read_text())
    for change, message in (
        ({"std": [1.0]}, "have 2, 2 and 1 channels"),
        ({"std": [1.0, 0.0]}, "fingerprint.std"),
        ({"window": [[1.0, 0.0], [0.0, 1.0]]}, "must ascend"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            Fingerprint.load(path)


@pytest.mark.parametrize("size", [(7, 50, 36), (0, 50, 36)])
def test_images_too_small_for_a_plan_are_refused(size):
    with pytest.raises(ValueError, match="mean_size"):
        plan_of(size, (19, 23, 20), 1580, 2)
