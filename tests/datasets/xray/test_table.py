"""Tables of hips: six classes or two, and what is refused by line."""

import pytest
from segarena.datasets.xray.table import find_table
from xray_toys import fake_hips, replace_line


def test_six_classes_or_two(tmp_path):
    table = fake_hips(tmp_path)
    six, two = find_table(table, 6), find_table(table, 2)
    assert [one.label for one in six[:12:2]] == [0, 1, 2, 3, 4, 5]
    assert [one.label for one in two[:12:2]] == [0, 1, 1, 1, 0, 0]
    assert (six[0].id, six[0].patient, six[0].study, six[0].split, six[0].part) == (
        "train_0_0",
        "patient_train_0_0",
        "train_0_0",
        "train",
        "hip",
    )
    assert six[0].path == tmp_path / "train_0_0.png"
    assert six[0].where == f"line 2 of {table}"
    assert len(six) == 36


def test_images_of_a_study_are_named_by_a_column(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        "path,label,group,split,study\na/1.png,0,p,train,left\na/2.png,0,p,train,left\na/3.png,1,p,train,right\n"
        "a/4.png,1,q,train,left\na/5.png,0,q,train,\n"
    )
    files = find_table(table, 6)
    assert [one.study for one in files] == ["p_left", "p_left", "p_right", "q_left", "a_5"]
    assert [one.id for one in files] == ["a_1", "a_2", "a_3", "a_4", "a_5"]
    replace_line(table, 3, "a/2.png,1,p,train,left")
    with pytest.raises(ValueError, match=r"line 3 of .* is of study 'left', which has another label above"):
        find_table(table, 6)


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (1, "path,label,group", "lacks the columns split; it has 'path, label, group'"),
        (2, "train_0_0.png,,g,train", "line 2 of .* has no label; fill it in"),
        (2, "train_0_0.png,0", "line 2 of .* has no group and no split"),
        (3, "train_0_1.png,6,g,train", r"line 3 of .* has the label '6' but must have 0\.\.5"),
        (3, "train_0_1.png,-1,g,train", "line 3 of .* has the label '-1'"),
        (3, "../x.png,1,g,train", r"line 3 of .* names '\.\./x.png', which must lie below"),
        (3, "train_0_0.png,0,g,train", "line 3 of .* has the path 'train_0_0.png', but line 2 of"),
        (3, "train_0_1.png,0,patient_val_0_0,train", "patient_val_0_0 is in train and in val"),
        (3, '"train_0_1.png,0,g,train', "line .* cannot be read as CSV"),
    ],
)
def test_a_wrong_line_is_refused_by_number(number, text, message, tmp_path):
    table = fake_hips(tmp_path)
    replace_line(table, number, text)
    with pytest.raises(ValueError, match=message):
        find_table(table, 2)


def test_an_empty_table_is_refused(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label,group,split\n")
    with pytest.raises(ValueError, match=r"labels.csv lists no radiograph"):
        find_table(table, 2)
    table.write_text("")
    with pytest.raises(ValueError, match="lacks the columns path, label, group, split; it has none"):
        find_table(table, 2)
