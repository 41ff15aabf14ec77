"""Pictures have the right shape, orientation and scale, and show what they are asked to."""

import imageio.v3 as imageio
import numpy as np
import pytest
from segarena.evaluation.drawing import GAP_PX
from segarena.evaluation.volume_figures import CaseView, save_case_figure
from segarena.evaluation.volume_pictures import orthogonal_slices

SHAPE = (32, 32, 32)
BLACK = np.zeros(SHAPE, np.uint8)
MIDDLE = {"centre_ijk": (16, 16, 16), "spacing_mm": (1.0, 1.0, 1.0), "height_px": 32}
RED, BLUE = (255, 0, 0), (0, 0, 255)


def panels(picture: np.ndarray, width: int = 32) -> list[np.ndarray]:
    """The three panels of a picture of a cubic volume."""
    return [picture[:, i * (width + GAP_PX) : i * (width + GAP_PX) + width] for i in range(3)]


def colours(picture: np.ndarray, rgb) -> np.ndarray:
    return (picture == np.array(rgb)).all(axis=-1)


def marked(*ijk: int) -> np.ndarray:
    image = BLACK.copy()
    image[ijk] = 255
    return image


@pytest.mark.parametrize("height", [64, 97])
def test_the_picture_is_rgb_of_the_height_asked_for_and_of_even_width(height):
    picture = orthogonal_slices(
        np.zeros((20, 30, 11), np.uint8), centre_ijk=(0, 29, 10), spacing_mm=(1, 1, 2.5), height_px=height
    )
    assert picture.dtype == np.uint8
    assert (picture.shape[0], picture.shape[2]) == (height, 3)
    assert picture.shape[1] % 2 == 0


def test_the_shape_does_not_depend_on_what_is_drawn():
    everything = orthogonal_slices(
        BLACK,
        **MIDDLE,
        boxes=[((0, 0, 0), (4, 4, 4), RED)],
        heat=np.ones(SHAPE, np.float32),
        contours=[(BLACK > 0, RED)],
    )
    assert everything.shape == orthogonal_slices(BLACK, **MIDDLE).shape


@pytest.mark.parametrize(
    ("voxel", "panel", "left", "top"),
    [
        ((30, 16, 16), 0, True, None),  # the patient's right is on the left
        ((16, 30, 16), 0, None, True),  # front up
        ((30, 16, 16), 1, True, None),
        ((16, 16, 30), 1, None, True),  # head up
        ((16, 30, 16), 2, True, None),  # the sagittal slice faces left
        ((16, 16, 30), 2, None, True),
    ],
)
def test_slices_hang_as_radiologists_hang_them(voxel, panel, left, top):
    ((row, col),) = np.argwhere(panels(orthogonal_slices(marked(*voxel), **MIDDLE))[panel].any(axis=-1))
    # voxel v stands at 31 - v from the left or from the top
    assert (row, col) == (1 if top else 15, 1 if left else 15)


def test_each_panel_shows_the_slice_through_the_centre():
    for axis, panel in ((2, 0), (1, 1), (0, 2)):
        here, beside = [3, 3, 3], [3, 3, 3]
        here[axis], beside[axis] = 16, 17
        assert panels(orthogonal_slices(marked(*here), **MIDDLE))[panel].any()
        assert not panels(orthogonal_slices(marked(*beside), **MIDDLE))[panel].any()


def test_anisotropic_voxels_are_drawn_at_their_true_size():
    """10 voxels of 4 mm are as tall as 40 of 1 mm: a cube of 40 mm looks square in all planes."""
    picture = orthogonal_slices(
        np.full((40, 40, 10), 9, np.uint8), centre_ijk=(5, 5, 5), spacing_mm=(1, 1, 4), height_px=80
    )
    assert picture.shape == (80, 3 * 80 + 2 * GAP_PX, 3)
    thin = orthogonal_slices(
        np.full((40, 40, 10), 9, np.uint8), centre_ijk=(5, 5, 5), spacing_mm=(1, 1, 1), height_px=80
    )
    coronal = panels(thin, 80)[1]
    assert coronal.any(axis=(1, 2)).sum() == 20  # a quarter of the height, in the middle
    assert not coronal[:30].any()
    assert not coronal[50:].any()


def test_a_box_is_outlined_where_it_stands_and_nowhere_else():
    axial = panels(orthogonal_slices(BLACK, **MIDDLE, boxes=[((10, 8, 12), (8, 12, 8), RED)]))[0]
    red = colours(axial, RED)
    rows, cols = np.nonzero(red)
    assert (rows.min(), rows.max()) == (31 - 19, 31 - 8)
    assert (cols.min(), cols.max()) == (31 - 17, 31 - 10)
    assert not red[15, 17]  # hollow
    assert not axial[~red].any()


def test_a_box_in_front_of_the_slice_is_dashed_and_dim():
    axial = panels(orthogonal_slices(BLACK, **MIDDLE, boxes=[((4, 4, 20), (20, 20, 8), RED)]))[0]
    assert not colours(axial, RED).any()
    solid = colours(panels(orthogonal_slices(BLACK, **MIDDLE, boxes=[((4, 4, 12), (20, 20, 8), RED)]))[0], RED)
    dashes = axial.any(axis=-1)
    assert 0 < dashes.sum() < solid.sum()
    assert not (dashes & ~solid).any()
    assert 100 < axial.max() < 255


def test_a_contour_is_the_inner_edge_one_pixel_wide():
    mask = np.zeros(SHAPE, bool)
    mask[8:20, 8:20, 8:20] = True
    blue = colours(panels(orthogonal_slices(BLACK, **MIDDLE, contours=[(mask, BLUE)]))[0], BLUE)
    assert blue.sum() == 4 * 12 - 4


def test_heat_is_transparent_at_0_and_stronger_above():
    image = np.full(SHAPE, 100, np.uint8)
    heat = np.zeros(SHAPE, np.float32)
    heat[20:24], heat[8:12] = 0.3, 1.0
    axial = panels(orthogonal_slices(image, **MIDDLE, heat=heat))[0].astype(int)
    change = np.abs(axial - 100).sum(axis=-1)[0]  # along the first row: i = 31 - column
    assert (change[[31 - 15, 31 - 2]] == 0).all()
    assert 0 < change[31 - 21] < change[31 - 9]


def test_the_input_arrays_stay_untouched():
    image, heat = np.full(SHAPE, 7, np.uint8), np.full(SHAPE, 0.5, np.float32)
    orthogonal_slices(image, **MIDDLE, heat=heat, boxes=[((0, 0, 0), SHAPE, RED)])
    assert (image == 7).all()
    assert (heat == 0.5).all()


def test_large_panels_carry_direction_letters():
    picture = orthogonal_slices(BLACK, centre_ijk=(16, 16, 16), spacing_mm=(1, 1, 1), height_px=256)
    axial = panels(picture, 256)[0]
    for region in (axial[100:156, :20], axial[100:156, -20:], axial[:20, 100:156], axial[-20:, 100:156]):
        assert region.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": BLACK.astype(np.float32)}, "must be uint8"),
        ({"image": BLACK[0]}, r"must be uint8 \[X, Y, Z\]"),
        ({"centre_ijk": (32, 0, 0)}, "must lie in the image"),
        ({"centre_ijk": (-1, 0, 0)}, "must lie in the image"),
        ({"spacing_mm": (1, 1)}, "spacing_mm"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm"),
        ({"height_px": 4}, "height_px is 4"),
        ({"heat": np.zeros((2, 2, 2), np.float32)}, "heat is"),
        ({"heat": np.full(SHAPE, np.nan, np.float32)}, "without NaN"),
        ({"heat": np.full(SHAPE, 1.5, np.float32)}, r"must lie in \[0, 1\]"),
        ({"contours": [(BLACK, RED)]}, "must be bool"),
    ],
)
def test_bad_input_is_rejected(changes, message):
    arguments = {"image": BLACK, **MIDDLE, **changes}
    with pytest.raises(ValueError, match=message):
        orthogonal_slices(arguments.pop("image"), **arguments)


# -- the figure of an evaluation -----------------------------------------------------------------------------------


def view(*, tumour: bool = True, painted: bool = True) -> CaseView:
    label, pred = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    label[8:16, 8:16, 4:12], pred[8:16, 8:16, 8:16] = tumour, painted
    label[8:18, 8:18, 9] |= tumour
    return CaseView("case_1", BLACK, label, pred, pred.astype(np.float32), (1.0, 1.0, 2.0))


def test_a_case_shows_its_largest_slice_and_its_dice():
    assert view().slice_k == 9
    assert view().verdict == f"Dice {100 * 2 * 256 / (512 + 548):.1f} % (whole volume)"
    assert view(tumour=False).slice_k == 8
    assert view(tumour=False).verdict == "empty target; 1.0 ml painted"
    assert view(tumour=False, painted=False).slice_k == 16


@pytest.mark.parametrize("rows", [1, 3])
def test_the_figure_grows_with_the_cases(tmp_path, rows):
    save_case_figure(tmp_path / "f.png", [view(), view(tumour=False), view(painted=False)][:rows], title="phantoms")
    picture = imageio.imread(tmp_path / "f.png")
    assert picture.shape[1] == 1500
    assert picture.shape[0] == pytest.approx(150 * (0.9 + 3.1 * rows), abs=1)
    assert len(np.unique(picture[..., 0])) > 20


def test_cases_that_do_not_match_are_rejected(tmp_path):
    good = view()
    bad = CaseView("odd", good.image, good.label[1:], good.pred, good.heat, good.spacing_mm)
    with pytest.raises(ValueError, match="case 'odd'"):
        save_case_figure(tmp_path / "f.png", [good, bad], title="")
    with pytest.raises(ValueError, match="no cases"):
        save_case_figure(tmp_path / "f.png", [], title="")
    assert not list(tmp_path.iterdir())
