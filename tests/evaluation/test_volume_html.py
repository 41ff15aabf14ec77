"""3-D pictures: every voxel of a surface and no other, in mm, in a file that needs nothing else."""

import base64
import html.parser
import json
import re
import sys

import numpy as np
import pytest
from segarena.evaluation import volume_html
from segarena.evaluation.volume_figures import CaseView
from segarena.evaluation.volume_html import save_case_html, surface_mm, volume_figure


def box(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


SHAPE = (20, 18, 16)
LABEL = box(SHAPE, slice(4, 9), slice(4, 9), slice(4, 9))
"""5³ voxels, of which 5³ - 3³ = 98 lie on the surface."""
PRED = box(SHAPE, slice(6, 8), slice(6, 9), slice(0, 4))
"""2 x 3 x 4 voxels, all on the surface, at the border of the volume."""
ORGAN = box(SHAPE, slice(2, 12), slice(2, 12), slice(2, 12))


def view(**changes):
    arrays = {"label": LABEL, "pred": PRED, "organ": ORGAN, **changes}
    zeros = np.zeros(SHAPE)
    return CaseView(
        "a <b>", zeros.astype(np.uint8), arrays["label"], arrays["pred"], zeros, (1.0, 2.0, 3.0), arrays["organ"]
    )


def test_a_surface_is_the_voxels_with_a_face_outside():
    points = surface_mm(LABEL, (1.0, 1.0, 1.0))
    assert points.shape == (3, 98)
    found = {tuple(point) for point in (points.T - 0.5).astype(int)}
    assert found == {tuple(at) for at in np.argwhere(LABEL)} - {
        (x, y, z) for x in (5, 6, 7) for y in (5, 6, 7) for z in (5, 6, 7)
    }
    assert surface_mm(PRED, (1.0, 1.0, 1.0)).shape == (3, 24), "the border of the volume is a face"
    assert surface_mm(np.zeros(SHAPE, bool), (1.0, 1.0, 1.0)).shape == (3, 0)
    assert surface_mm(np.ones(SHAPE, bool), (1.0, 1.0, 1.0)).shape[1] == 20 * 18 * 16 - 18 * 16 * 14


def test_points_are_centres_in_mm():
    one = box(SHAPE, 3, 4, 5)
    assert surface_mm(one, (1.0, 2.0, 3.0)).ravel().tolist() == [3.5, 9.0, 16.5]


def test_a_large_surface_is_thinned_evenly():
    whole = surface_mm(LABEL, (1.0, 1.0, 1.0))
    some = surface_mm(LABEL, (1.0, 1.0, 1.0), most=40)
    assert np.array_equal(some, whole[:, ::3])
    assert some.shape[1] == 33


def test_the_figure_has_label_prediction_and_the_faint_organ():
    pytest.importorskip("plotly", reason="plotly is not here: pip install 'segarena[viz]'")
    figure = volume_figure(view(), title="title")
    assert [(trace.name, len(trace.x), len(trace.z)) for trace in figure.data[:2]] == [
        ("label", 98, 98),
        ("prediction", 24, 24),
    ]
    assert figure.data[2].name == "organ"
    assert figure.data[2].marker.opacity < 0.2 < figure.data[0].marker.opacity
    assert figure.layout.scene.aspectmode == "data"
    assert figure.layout.scene.zaxis.range == (0.0, 48.0)
    assert max(figure.data[0].y) == 17.0
    colours = {trace.marker.color for trace in figure.data}
    assert len(colours) == 3
    assert len(volume_figure(view(organ=None), title="").data) == 2


class Scripts(html.parser.HTMLParser):
    """Text of the scripts of a page, and whatever it would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.scripts, self.loads, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data


def test_the_file_holds_everything_and_no_more_than_a_few_megabytes(tmp_path):
    pytest.importorskip("plotly", reason="plotly is not here: pip install 'segarena[viz]'")
    path = tmp_path / "cases.html"
    full = np.ones((20, 18, 16), bool)
    save_case_html(path, [view(), view(pred=full)], title="SPARS & co, θ = 0.5")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 8e6
    page = Scripts()
    page.feed(text)
    assert (page.open, page.loads) == ([], [])
    assert "<title>SPARS &amp; co, θ = 0.5</title>" in text
    assert "a <b>" not in text
    assert sum(len(script) > 10**6 for script in page.scripts) == 1, "plotly once"
    sizes = []
    for script in page.scripts:
        if found := re.search(r'Plotly\.newPlot\(\s*"[\w-]+",\s*(\[.*?\]),\s*\{"template"', script, re.DOTALL):
            traces = json.loads(found[1])
            points = {t["name"]: np.frombuffer(base64.b64decode(t["x"]["bdata"]), t["x"]["dtype"]) for t in traces}
            sizes.append((len(points["label"]), len(points["prediction"])))
            assert sorted(set(points["label"].tolist())) == [4.5, 5.5, 6.5, 7.5, 8.5]
    assert sizes == [(98, 24), (98, 20 * 18 * 16 - 18 * 16 * 14)]


def test_no_cases_and_no_plotly_are_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no cases to draw"):
        save_case_html(tmp_path / "x.html", [], title="")
    for name in ("plotly", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"^3-D pictures need plotly: pip install 'segarena\[viz\]'$"):
        volume_html.import_plotly()
    with pytest.raises(ValueError, match="need plotly"):
        save_case_html(tmp_path / "x.html", [view()], title="")
    assert not (tmp_path / "x.html").exists()
