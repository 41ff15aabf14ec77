"""A table of one's own radiographs, such as hips (docs/apga.md, Method 3): a CSV with the columns

path     of PNG or JPEG, from the table's folder
label    0..5
group    patient; images of one group never lie in two splits
split    train, val or test, or another name
study    images of one study are judged together; without this column each image is a study
"""

import csv
import io
from pathlib import Path

from ...common.reading import quoted, read_text
from ..folders import below
from ..selection import one_split_each
from .files import XrayFile

COLUMNS = ("path", "label", "group", "split")
CLASSES = (
    "normal",
    "displaced femoral neck fracture",
    "non-displaced femoral neck fracture",
    "intertrochanteric fracture",
    "fixation",
    "arthroplasty",
)
TWO_CLASSES = ("no fracture", "fracture")
FRACTURES = (1, 2, 3)
"""Labels that two classes join as 1; the others become 0."""
PART = "hip"


def find_table(table: Path, n_classes: int) -> list[XrayFile]:
    """All radiographs of a table, in its order; files are not opened, nor looked for.

    Args:
        table: the CSV.
        n_classes: 6, or 2: fracture or none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no CSV, a missing column, a cell that is empty or not allowed, a path twice, two images of one name,
            a group in two splits, or a study of two labels.
    """
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
        columns = reader.fieldnames or []
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {table} cannot be read as CSV ({error}); correct it") from error
    if missing := [name for name in COLUMNS if name not in columns]:
        given = quoted(", ".join(columns)) if columns else "none"
        raise ValueError(f"{table} lacks the columns {', '.join(missing)}; it has {given}")
    found, seen, studies = list[XrayFile](), dict[str, str](), dict[str, int]()
    for number, row in rows:
        where = f"line {number} of {table}"
        cells = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "study")}
        if empty := [name for name in COLUMNS if not cells[name]]:
            raise ValueError(f"{where} has no {' and no '.join(empty)}; fill it in")
        if cells["label"] not in map(str, range(len(CLASSES))):
            raise ValueError(f"{where} has the label {quoted(cells['label'])} but must have 0..{len(CLASSES) - 1}")
        label = int(cells["label"])
        if n_classes == len(TWO_CLASSES):
            label = int(label in FRACTURES)
        path = below(table.parent, cells["path"], where)
        name = "_".join((*Path(cells["path"]).parent.parts, path.stem))
        if (first := seen.setdefault(name, where)) != where:
            raise ValueError(f"{where} has the path {quoted(cells['path'])}, but {first} has it, or one like it, too")
        study = f"{cells['group']}_{cells['study']}" if cells["study"] else name
        if studies.setdefault(study, label) != label:
            raise ValueError(
                f"{where} is of study {quoted(cells['study'])}, which has another label above; correct one"
            )
        found.append(XrayFile(name, label, study, cells["group"], PART, cells["split"], path, where))
    if not found:
        raise ValueError(f"{table} lists no radiograph; add a line for each")
    splits = dict[str, list[str]]()
    for one in found:
        splits.setdefault(one.split, []).append(one.patient)
    one_split_each(splits, str(table))
    return found
