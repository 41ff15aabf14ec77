"""The Gaussian process of score volumes: its posterior, learned or stationary, all at once or window by window."""

import logging

import pytest
import torch
from segarena.common.networks import save_network
from segarena.datasets.liver.lattice import WindowLattice
from segarena.segmenters import score_prior
from segarena.segmenters.score_prior import FEWEST, NOISE, Posterior, ScorePrior, load_prior

LATTICE = WindowLattice((32, 28, 20), (8, 8, 8))


@pytest.fixture(scope="module")
def volumes():
    """Score volumes with one bump each, at a place that varies along x alone."""
    cells = torch.stack(torch.meshgrid(*(torch.arange(n) for n in LATTICE.shape), indexing="ij"), dim=-1).float()
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(120, generator=rng) * (LATTICE.shape[0] - 1)
    middle = torch.stack((x, torch.full_like(x, 2.5), torch.full_like(x, 1.5)), dim=-1)
    away = (cells[None] - middle[:, None, None, None]).square().sum(-1)
    return torch.exp(-away / 4).flatten(1)


@pytest.fixture(scope="module")
def learned(volumes):
    return ScorePrior.fit(volumes[:100], LATTICE, "classifier")


def plain_posterior(prior, seen, scores):
    """Mean and variance by the textbook's formulae, from the whole covariance."""
    k = prior.rows(torch.arange(prior.size)).double()
    among = k[seen][:, seen] + NOISE * torch.eye(len(seen))
    gain = k[:, seen] @ torch.linalg.inv(among)
    mean = prior.mean.double() + gain @ (scores - prior.mean[seen]).double()
    return mean, (k - gain @ k[seen]).diagonal()


def test_the_covariance_is_that_of_the_volumes_and_a_stationary_part(volumes, learned):
    k = learned.rows(torch.arange(LATTICE.size))
    assert torch.allclose(k, k.T, atol=1e-6)
    assert torch.allclose(k.diagonal(), learned.variance, atol=1e-6)
    assert torch.linalg.eigvalsh(k.double()).min() > -1e-6
    empirical = torch.cov(volumes[:100].T)
    cells = torch.stack(torch.unravel_index(torch.arange(LATTICE.size), LATTICE.shape), dim=-1).double()
    lengths = torch.tensor(score_prior.LENGTHS, dtype=torch.float64)
    near = torch.exp(-0.5 * torch.cdist(cells / lengths, cells / lengths).square())
    s = empirical.diagonal().clamp(min=1e-6).sqrt()
    assert torch.allclose(k, (0.7 * empirical + 0.3 * s * s[:, None] * near).float(), atol=1e-4)


@pytest.mark.parametrize("name", ["learned", "stationary"])
def test_what_was_not_seen_is_the_posterior_mean(volumes, learned, name):
    prior = learned if name == "learned" else ScorePrior(LATTICE.shape)
    seen = torch.randperm(LATTICE.size, generator=torch.Generator().manual_seed(1))[:25]
    truth = volumes[110]
    scores = torch.full_like(truth, torch.nan)
    scores[seen] = truth[seen]
    filled = prior.fill(scores[None])[0]
    mean, _ = plain_posterior(prior, seen, truth[seen])
    assert torch.equal(filled[seen], truth[seen]), "what was seen stays as it is"
    rest = scores.isnan()
    assert torch.allclose(filled[rest], mean.clamp(0, 1).float()[rest], atol=1e-4)


def test_a_learned_covariance_tells_more_than_a_stationary_one_and_more_than_the_mean(volumes, learned):
    """From six windows of unseen volumes; a sign turned round would do worse than the mean alone."""
    rng = torch.Generator().manual_seed(2)
    errors = {"learned": 0.0, "stationary": 0.0, "mean": 0.0}
    stationary = ScorePrior.fit(volumes[:4], LATTICE, "classifier")
    for truth in volumes[100:]:
        scores = torch.full_like(truth, torch.nan)
        seen = torch.randperm(LATTICE.size, generator=rng)[:6]
        scores[seen] = truth[seen]
        errors["learned"] += float((learned.fill(scores[None])[0] - truth).square().mean())
        errors["stationary"] += float((stationary.fill(scores[None])[0] - truth).square().mean())
        errors["mean"] += float((learned.mean - truth).square().mean())
    assert errors["learned"] < 0.5 * errors["mean"]
    assert errors["learned"] < 0.5 * errors["stationary"]


def test_nothing_seen_is_the_mean_and_everything_seen_stays(volumes, learned):
    nothing = torch.full((1, LATTICE.size), torch.nan)
    assert torch.equal(learned.fill(nothing)[0], learned.mean.clamp(0, 1))
    assert torch.equal(learned.fill(volumes[:2]), volumes[:2])


def test_window_by_window_is_all_at_once(volumes, learned):
    """In environments that see other windows, one of which looks twice at the same and one of which begins anew."""
    rng = torch.Generator().manual_seed(3)
    truth = volumes[[101, 102, 103]]
    paths = torch.stack([torch.randperm(LATTICE.size, generator=rng)[:9] for _ in range(3)])
    paths[1, 5] = paths[1, 2]
    posterior = Posterior(learned, 3, most=12)
    for step in range(9):
        if step == 4:
            posterior.reset(torch.tensor([2]))
        posterior.see(paths[:, step], truth.gather(1, paths[:, step, None])[:, 0])
    for env, seen in enumerate((paths[0], paths[1].unique(), paths[2, 4:])):
        mean, variance = plain_posterior(learned, seen, truth[env, seen])
        assert torch.allclose(posterior.mean[env].double(), mean, atol=2e-4)
        assert torch.allclose(posterior.variance[env].double(), variance, atol=2e-4)
        assert posterior.seen[env].nonzero().flatten().tolist() == sorted(seen.tolist())
    again = Posterior(learned, 3, most=12)
    again.load_state(posterior.state())
    for one in (posterior, again):
        one.see(paths[:, 0].flip(0), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(posterior.mean, again.mean)


def test_too_few_volumes_give_a_stationary_covariance_and_say_so(volumes, caplog):
    with caplog.at_level(logging.WARNING):
        prior = ScorePrior.fit(volumes[: FEWEST - 1], LATTICE, "classifier")
    assert f"{FEWEST - 1} score volumes are too few to learn a covariance from ({FEWEST} are needed)" in caplog.text
    assert prior.patterns == 0
    assert prior.mean.unique().numel() == 1
    assert float(prior.mean[0]) == pytest.approx(float(volumes[: FEWEST - 1].mean()))


def test_a_file_of_another_lattice_or_classifier_is_refused(tmp_path, learned):
    save_network(tmp_path / "prior.safetensors", learned)
    back = load_prior(tmp_path / "prior.safetensors", LATTICE, "classifier")
    assert torch.equal(back.patterns_of, learned.patterns_of)
    for other in (WindowLattice((24, 28, 20), (8, 8, 8)), WindowLattice((32, 28, 20), (8, 8, 8), phase=(0, 0, 1))):
        with pytest.raises(ValueError, match=r"was learned on another lattice \(grid 32x28x20, window 8x8x8"):
            load_prior(tmp_path / "prior.safetensors", other, "classifier")
    with pytest.raises(ValueError, match="learned from the scores of another classifier"):
        load_prior(tmp_path / "prior.safetensors", LATTICE, "another")
    with pytest.raises(FileNotFoundError):
        load_prior(tmp_path / "gone.safetensors", LATTICE, "classifier")
