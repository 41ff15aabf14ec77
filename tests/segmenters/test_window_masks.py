"""From the scores of windows to a map: plain loops over windows give the same."""

from dataclasses import replace

import pytest
import torch
from segarena.datasets.liver.lattice import WindowLattice
from segarena.segmenters.score_prior import ScorePrior
from segarena.segmenters.window_masks import MaskMaker

LATTICE = WindowLattice((24, 20, 16), (8, 12, 8), phase=(1, 0, 2))
REDUCE = {"mean": lambda x: sum(x) / len(x), "max": max, "min": min}


def plain_map(seen, reduce):
    """A of every voxel from the windows that hold it, one after the other; 0 where there is none."""
    over = [[[[] for _ in range(16)] for _ in range(20)] for _ in range(24)]
    for (x, y, z), score in zip(LATTICE.corners().tolist(), seen.tolist(), strict=True):
        if score == score:
            for i in range(x, x + 8):
                for j in range(y, y + 12):
                    for k in range(z, z + 8):
                        over[i][j][k].append(score)
    return torch.tensor([[[REDUCE[reduce](v) if v else 0.0 for v in line] for line in plane] for plane in over])


@pytest.mark.parametrize("reduce", list(REDUCE))
def test_a_map_of_blocks_is_that_of_plain_loops(reduce):
    rng = torch.Generator().manual_seed(0)
    seen = torch.rand(LATTICE.size, generator=rng)
    seen[torch.rand(LATTICE.size, generator=rng) < 0.7] = torch.nan
    maker = MaskMaker(LATTICE, reduce, "blocks")
    assert torch.allclose(maker.voxels(maker.blocks(seen[None], [0]))[0], plain_map(seen, reduce), atol=1e-6)


def test_how_often_a_window_was_visited_does_not_matter_but_to_the_sum():
    at, scores = torch.tensor([[3, 3, 9, -1]]), torch.tensor([[0.5, 0.5, 0.25, 0.9]])
    once, distinct = torch.tensor([[3, 9]]), torch.tensor([[0.5, 0.25]])
    for reduce in REDUCE:
        maker = MaskMaker(LATTICE, reduce, "blocks")
        assert torch.equal(maker.paint(at, scores, range(len(at))), maker.paint(once, distinct, range(len(once))))
    found = maker.seen(torch.tensor([[3, 9, 3, -1]]), torch.tensor([[0.0, 0.25, 0.5, 0.9]]))[0]  # blanked, then not
    assert (float(found[3]), float(found[9]), int(found.isnan().sum())) == (0.5, 0.25, LATTICE.size - 2)
    summed = MaskMaker(LATTICE, "sum", "blocks")
    assert float(summed.paint(at, scores, [0]).max()) == 1.25
    assert float(summed.paint(once, distinct, [0]).max()) == 0.75


def test_the_minimum_undoes_the_dilation_by_the_window():
    """Labels of windows, 1 where any tumour voxel is inside: the minimum is the tumour again, the maximum is not."""
    lattice = WindowLattice((32, 32, 32), (8, 8, 8))
    tumour = torch.zeros(32, 32, 32, dtype=torch.bool)
    tumour[12:20, 8:20, 12:16] = True  # whole blocks
    labels = (lattice.window_sums(tumour) > 0).float()[None]
    made = {reduce: MaskMaker(lattice, reduce, "blocks") for reduce in ("min", "max")}
    masks = {reduce: maker.voxels(maker.blocks(labels, [0]))[0] > 0.5 for reduce, maker in made.items()}
    assert torch.equal(masks["min"], tumour)
    assert masks["max"].sum() > 5 * tumour.sum()


def test_windows_that_were_not_seen_are_filled_from_the_prior():
    prior = ScorePrior(LATTICE.shape)
    seen = torch.full((1, LATTICE.size), torch.nan)
    seen[0, LATTICE.size // 2] = 1.0
    alone = MaskMaker(LATTICE, "min", "blocks").blocks(seen, range(len(seen)))
    filled = MaskMaker(LATTICE, "min", "blocks", prior).blocks(seen, range(len(seen)))
    assert torch.equal(filled, MaskMaker(LATTICE, "min", "blocks").blocks(prior.fill(seen), range(len(seen))))
    assert (alone > 0).sum() == 2 * 3 * 2, "one window covers its own blocks"
    assert (filled > 0).sum() > 5 * (alone > 0).sum()


class Corner:
    """All of a score is the first block's."""

    def __init__(self) -> None:
        self.asked = 0

    def blocks(self, ids):
        corners = LATTICE.corners()[ids] // LATTICE.step
        cut = torch.tensor([int(phase > 0) for phase in LATTICE.phase])
        _, by, bz = LATTICE.block_shape
        inside = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))
        return ((corners[:, None] + inside + cut) * torch.tensor((by * bz, bz, 1))).sum(dim=2)

    def __call__(self, case, ids):
        self.asked += 1
        return torch.eye(12)[:1].expand(len(ids), -1)


def test_shares_of_whole_volumes_are_made_once_and_never_those_of_other_scores():
    evidence, seen = Corner(), torch.rand(LATTICE.size, generator=torch.Generator().manual_seed(1))
    maker = MaskMaker(LATTICE, "mean", "blocks", evidence=evidence)
    for reduce in REDUCE:
        fresh = MaskMaker(LATTICE, reduce, "blocks", evidence=Corner())
        again = replace(maker, reduce=reduce)
        assert torch.equal(again.blocks(seen[None], [0]), fresh.blocks(seen[None], [0]))
    assert evidence.asked == 1
    for other in (seen / 2, seen.where(seen > 0.5, torch.nan)):
        fresh = MaskMaker(LATTICE, "mean", "blocks", evidence=Corner())
        assert torch.equal(maker.blocks(other[None], [0]), fresh.blocks(other[None], [0]))
        assert torch.equal(maker.blocks(seen[None], [1]), fresh.blocks(seen[None], [1]))
    asked, some = evidence.asked, seen.where(seen > 0.5, torch.nan)
    maker.blocks(torch.stack((some, seen)), [1, 1])
    assert evidence.asked == asked + 1, "windows of an episode are not kept in place of a whole volume"
