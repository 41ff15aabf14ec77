"""FAB with a box of the image's own, and VAFA on frequencies (docs/seat.md, Method 16)."""

import pytest
import torch
from attack_toys import TinyNet, scene, trained
from monai.losses.ssim_loss import SSIMLoss
from scipy.fft import dctn
from scipy.optimize import linprog
from segarena.attacks.budget import image_range
from segarena.attacks.fab import fab, project
from segarena.attacks.named import named_attack
from segarena.attacks.restarts import pgd_restarts
from segarena.attacks.vafa import cosines, soft_round, vafa
from segarena.common.overlap import class_counts, dice_batch
from torch import nn


def dice_of(net, images, labels):
    with torch.no_grad():
        logits = net(images)
    return dice_batch(class_counts(logits.argmax(dim=1), labels, logits.shape[1]))


# -- projection onto a plane inside a box ------------------------------------------------------------------------------


def shortest(slope, gain, width, lower, upper):
    """The least lambda with |change| <= lambda width, by linear programming; None where nothing reaches the plane."""
    size = len(slope)
    rows = [[*(1.0 if i == j else 0.0 for j in range(size)), -width[i]] for i in range(size)]
    rows += [[*(-1.0 if i == j else 0.0 for j in range(size)), -width[i]] for i in range(size)]
    found = linprog(
        [*[0] * size, 1], A_ub=rows, b_ub=[0] * (2 * size), A_eq=[[*slope, 0]], b_eq=[gain],
        bounds=[*zip(lower, upper, strict=True), (0, None)],
    )  # fmt: skip
    return found.x[-1] if found.success else None


@pytest.mark.parametrize("gain", [0.0, 0.2, -0.3, 1.1, -0.6])
def test_a_projection_is_the_optimum_of_the_linear_programme(gain):
    generator = torch.Generator().manual_seed(7)
    slope, width = torch.randn(3, 2, 4, generator=generator), torch.rand(3, 2, 4, generator=generator) + 0.2
    slope[0, 0, 0] = 0
    lower, upper = (sign * torch.rand(3, 2, 4, generator=generator) * width for sign in (-1, 1))
    upper[1, 0, :2] = 0
    found = project(slope, torch.full((3,), gain), width, lower, upper)
    assert ((found >= lower - 1e-6) & (found <= upper + 1e-6)).all()
    for image in range(3):
        rows = [x[image].flatten().double().tolist() for x in (slope, width, lower, upper)]
        best = shortest(rows[0], gain, *rows[1:])
        grown = (slope[image] * found[image]).sum().item()
        assert best is not None
        assert grown == pytest.approx(gain, abs=1e-5)
        assert (found[image].abs() / width[image]).max().item() == pytest.approx(best, abs=1e-5)


def test_a_plane_out_of_reach_is_approached_as_far_as_the_box_goes():
    slope = torch.tensor([[2.0, -1.0, 0.0, 3.0]])
    lower, upper = torch.tensor([[-0.1, -0.2, -1.0, -0.5]]), torch.tensor([[0.3, 0.4, 1.0, 0.0]])
    found = project(slope, torch.tensor([100.0]), torch.ones(1, 4), lower, upper)
    assert found.flatten().tolist() == pytest.approx([0.3, -0.2, 0, 0])
    nothing = project(torch.zeros(1, 4), torch.tensor([1.0]), torch.ones(1, 4), lower, upper)
    assert (nothing == 0).all()


class Linear(nn.Module):
    """Logits (0, w x), at most one of them in favour of each class."""

    def forward(self, x):
        value = (x * torch.tensor([2.0, -1.0]).view(1, 2, *[1] * (x.dim() - 2))).sum(dim=1, keepdim=True)
        return torch.cat([torch.zeros_like(value), value], dim=1)


def test_on_a_linear_victim_the_first_steps_reach_the_boundary_by_the_shortest_way():
    """One voxel, z = 2 a - b = 0.3, class 1: both channels change by 0.1 x 1.05, and class 0 is there."""
    images, labels = torch.tensor([0.4, 0.5]).view(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.int64)
    found = fab(Linear(), images, labels, eps=0.2, steps=1, restarts=1)
    change = (found - images).flatten()
    assert Linear()(found).argmax() == 0
    assert change[0].item() == pytest.approx(-change[1].item(), abs=1e-6) == pytest.approx(-0.105, abs=1e-5)
    cut = fab(Linear(), images, labels, eps=0.05, steps=3, restarts=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut, images)  # no image of the ball is lower


def test_the_clean_image_is_projected_onto_the_same_plane_from_wherever_the_step_is(monkeypatch):
    """The boundary of a linear victim is one plane: from the clean image it is 0.3 away in each step."""
    images, labels = torch.tensor([0.4, 0.5]).view(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.int64)
    gains = []

    def watched(slope, gain, *given):
        gains.append(gain.item())
        return project(slope, gain, *given)

    monkeypatch.setattr("segarena.attacks.fab.project", watched)
    fab(Linear(), images, labels, eps=0.2, steps=4, restarts=1)
    assert gains[1::2] == pytest.approx([0.3] * 4, abs=1e-6)
    assert gains[0] == pytest.approx(0.3, abs=1e-6)
    assert all(abs(gain) < 0.1 for gain in gains[2::2]), "the image itself is near it by then"


def test_fab_is_about_as_strong_as_pgd_and_restarts_never_weaken_it():
    images, labels = scene(3, 3, seed=50)
    common = {"eps": 0.08, "bounds": image_range(images)}
    one = fab(trained(3), images, labels, steps=4, restarts=1, **common)
    again = fab(trained(3), images, labels, steps=4, restarts=2, generator=torch.Generator().manual_seed(1), **common)
    pgd = pgd_restarts(trained(3), images, labels, generator=torch.Generator().manual_seed(1), **common)
    left, more, other, clean = (dice_of(trained(3), x, labels) for x in (one, again, pgd, images))
    assert (more <= left + 1e-6).all()
    assert left.mean() < other.mean() + 0.1 < clean.mean()
    with pytest.raises(ValueError, match="restarts is 0"):
        fab(trained(3), images, labels, restarts=0, **common)


# -- frequencies -------------------------------------------------------------------------------------------------------


def test_soft_rounding_has_its_known_values():
    found = soft_round(torch.tensor([2.5, 2.9, -1.5]), 0.1)
    assert found.tolist() == pytest.approx([2.5, 2.9593, -1.5], abs=1e-4)
    values = torch.tensor([0.1, 0.8, 1.2, -0.2])
    assert torch.allclose(soft_round(values, 1e-6), values.round(), atol=0.01)
    values = torch.tensor([0.2, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: soft_round(u, 0.1), values)


@pytest.mark.parametrize(("sides", "blocks"), [((8, 12), (4, 6)), ((4, 6, 8), (4, 3, 4))])
def test_the_cosine_transform_is_that_of_scipy_in_each_block_and_goes_back(sides, blocks):
    values = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = cosines(values, blocks)
    assert torch.allclose(cosines(found, blocks, inverse=True), values, atol=1e-12)
    last = tuple(slice(side - block, side) for side, block in zip(sides, blocks, strict=True))
    assert torch.allclose(found[(1, 0, *last)], torch.from_numpy(dctn(values[(1, 0, *last)].numpy(), norm="ortho")))


@pytest.mark.parametrize("axes", [2, 3])
def test_gradients_find_worse_tables_than_the_coarsest_ones(axes):
    images, labels = scene(3, axes, seed=51)
    coarsest = vafa(trained(axes), images, labels, steps=1)
    found = vafa(trained(axes), images, labels, steps=10)
    clean, first, last = (dice_of(trained(axes), x, labels).mean() for x in (images, coarsest, found))
    assert last < first - 0.005
    assert last < clean - 0.01
    assert ((found >= 0) & (found <= 1)).all()


def test_where_the_prediction_is_indifferent_tables_become_like_the_image():
    images, labels = scene(2, 3, seed=53)
    seen = []

    class Indifferent(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return torch.cat([0 * x[:, :1], 0 * x[:, :1] + 1], dim=1)

    vafa(Indifferent(), images, labels.clamp(max=1), steps=10)
    loss = SSIMLoss(3, data_range=1.0, win_size=3)
    unlike = [float(loss(shown, images)) for shown in seen[1:]]
    assert unlike[4] < 0.8 * unlike[0], "later the rounding grows hard"


def test_finer_tables_change_less_and_a_radius_cuts():
    images, labels = scene(2, 3, seed=52)
    fine = vafa(trained(3), images, labels, steps=3, q_max=1, q_min=0.5)
    coarse = vafa(trained(3), images, labels, steps=3, q_max=40)
    assert (fine - images).abs().amax() < 0.01 < (coarse - images).abs().amax()
    cut = vafa(trained(3), images, labels, steps=3, q_max=40, eps="2/255")
    assert (cut - images).abs().amax() <= 2 / 255 + 1e-6
    kept = named_attack("vafa_q30_3")
    assert (kept.kind, kept.eps.value, kept.steps) == ("free", 1, 3)


def test_images_of_more_than_a_block_are_padded_and_cut():
    images, labels = torch.rand(1, 2, 33, 40), torch.randint(3, (1, 33, 40))
    net = TinyNet().eval()
    found = vafa(net, images, labels, steps=2, q_max=2, q_min=1)
    assert found.shape == images.shape
    assert (found - images).abs().amax() < 0.05


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [({"q_min": 30}, "q_min is 30"), ({"q_min": 0}, "q_min is 0"), ({"q_start": 1}, "q_start is 1"),
     ({"steps": 0}, "steps is 0")],
)  # fmt: skip
def test_tables_outside_of_their_range_are_refused(settings, wrong):
    images, labels = scene(1, 3)
    with pytest.raises(ValueError, match=wrong):
        vafa(trained(3), images, labels, **settings)
