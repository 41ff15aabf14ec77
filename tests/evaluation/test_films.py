"""Films show every picture with its caption and one legend, whole and readable."""

import gc

import imageio.v3 as imageio
import numpy as np
import pytest
from segarena.evaluation import films
from segarena.evaluation.films import LEAST_WIDTH_PX, PAPER, Shot, check_film, compose, write_film

RED, BLUE = (250, 10, 10), (10, 10, 250)


def shots(number=3, shape=(64, 600, 3), lines=("step {}, score 0.5",)):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (number, *shape), dtype=np.uint8)
    return [Shot(picture, [line.format(n) for line in lines]) for n, picture in enumerate(pictures)]


def is_paper(part):
    return (part == PAPER).all(axis=-1)


def test_a_picture_is_whole_above_its_caption():
    made = shots()
    frames = compose(made, [(RED, "one"), (BLUE, "other")])
    for frame, shot in zip(frames, made, strict=True):
        np.testing.assert_array_equal(frame[:64], shot.picture)
        assert (frame[64:] == RED).all(axis=-1).sum() == (frame[64:] == BLUE).all(axis=-1).sum() > 50
    assert len({frame.shape for frame in frames}) == 1
    assert (frames[0][64:] != frames[1][64:]).any(), "step 0 and step 1"
    assert all(size % 2 == 0 for size in frames[0].shape[:2]), "for videos"


def test_text_neither_leaves_the_film_nor_overlaps():
    long = " ".join(f"word{n}" for n in range(60))
    (frame,) = compose(shots(1, lines=(long, "short")), [(RED, "the meaning of a colour " * 2)] * 5)
    text = ~is_paper(frame[64:])
    assert not text[:, -4:].any()
    assert not text[-4:].any()
    written = text.any(axis=1)
    runs = np.flatnonzero(np.diff(written.astype(int)) == 1)
    assert len(runs) >= 10, "lines with room between them"


def test_a_long_caption_makes_room_for_all_of_it():
    first, second = compose([*shots(1), Shot(shots(1)[0].picture, ["a line"] * 9)])
    assert first.shape == second.shape
    assert first.shape[0] > 64 + 9 * films.TEXT_PX


@pytest.mark.parametrize("width", [30, 31, LEAST_WIDTH_PX - 1])
def test_a_narrow_picture_stands_in_the_middle(width):
    (shot,) = shots(1, (20, width, 3))
    (frame,) = compose([shot])
    left = (frame.shape[1] - width) // 2
    assert frame.shape[1] >= LEAST_WIDTH_PX
    np.testing.assert_array_equal(frame[:20, left : left + width], shot.picture)


def test_an_odd_width_loses_nothing():
    (shot,) = shots(1, (20, 601, 3))
    (frame,) = compose([shot])
    np.testing.assert_array_equal(frame[:20, :601], shot.picture)
    assert frame.shape[1] == 602


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's pipes to ffmpeg
@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film_is_read_back(tmp_path, ending):
    path = tmp_path / "deep" / f"film.{ending}"
    smooth = [Shot(np.full((64, 600, 3), 60 * n + 20, np.uint8), [f"step {n}"]) for n in range(3)]
    write_film(path, smooth, legend=[(RED, "one")], frame_ms=250)
    frames = imageio.imread(path, index=None)
    expected = np.stack(compose(smooth, [(RED, "one")]))
    assert frames.shape == expected.shape
    assert np.abs(frames[:, :64].astype(int) - expected[:, :64]).max() < 12, "MP4 is compressed"
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    gc.collect()  # now, where it is known whose pipes are left open


@pytest.mark.parametrize("name", ["film.avi", "film", "film.gif.png"])
def test_another_ending_is_refused(name):
    with pytest.raises(ValueError, match=r"must end in \.gif or \.mp4"):
        check_film(name)


def test_an_mp4_without_an_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(films, "find_spec", lambda name: None)
    check_film("film.gif")
    with pytest.raises(ValueError, match=r"pip install 'segarena\[video\]', or write a \.gif"):
        check_film("film.mp4")


def test_no_film_of_nothing_or_of_different_pictures():
    with pytest.raises(ValueError, match="at least one picture"):
        compose([])
    with pytest.raises(ValueError, match="different shapes"):
        compose([*shots(1), *shots(1, (32, 600, 3))])
