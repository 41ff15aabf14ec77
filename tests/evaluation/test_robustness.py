"""The report of a model: what it says, how it goes on, what it refuses (docs/rp-pgd.md, Method 26-28)."""

import json
import math
from fractions import Fraction

import pytest
import torch
from attack_toys import TinyNet, scene, trained
from segarena.attacks.named import NamedAttack
from segarena.common.overlap import class_counts
from segarena.evaluation import robustness_run
from segarena.evaluation.robustness import robustness_report
from segarena.evaluation.robustness_report import RobustnessReport
from segarena.evaluation.robustness_results import read_attack_results
from torch import nn


def report(axes=2, number=3, **settings):
    images, labels = scene(number, axes, seed=99)
    settings = {"eps": 0.06, "attacks": ["fgsm", "pgd_10"], "progress": False, **settings}
    return robustness_report(settings.pop("model", trained(axes)), images, labels, **settings)


@pytest.mark.parametrize("axes", [2, 3])
def test_clean_and_attacked_metrics_are_those_of_the_model(axes):
    images, labels = scene(3, axes, seed=99)
    found = report(axes, batch_size=2, sanity=False)
    with torch.no_grad():
        counts = class_counts(trained(axes)(images).argmax(dim=1), labels, 3)
    assert found.of("clean").both == counts.both.tolist()
    assert found.of("clean").predicted == counts.predicted.tolist()
    assert found.of("clean").true == counts.true.tolist()
    assert found.metrics("pgd_10").miou < found.metrics("clean").miou - 0.2
    assert found.metrics("pgd_10").dice < found.metrics("clean").dice - 0.2
    assert [one.attack for one in found.results] == ["clean", "fgsm", "pgd_10"]
    pgd = found.of("pgd_10")
    assert (pgd.forwards, pgd.backwards, pgd.eps, pgd.radius) == (10, 10, "0.06", 0.06)
    assert max(pgd.farthest) == pytest.approx(0.06, abs=1e-6)
    assert math.isfinite(pgd.seconds)
    assert pgd.zero_gradient < 0.01
    assert (found.of("clean").forwards, found.of("clean").zero_gradient, found.of("clean").eps) == (0, None, "0")


def test_the_model_is_left_as_it_was():
    net = TinyNet().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    attacks = ["fgsm", "rp_pgd_pp_2", "sea_9", "padam_cos_2", "dag_2", "square_2", "transfer_2"]
    report(model=net, attacks=attacks, feature_layer="features", surrogates=[trained()])
    assert net.training
    assert all(one.requires_grad and one.grad is None for one in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_the_batch_size_changes_nothing_but_chance():
    settings = {"attacks": ["fgsm", "segpgd_3"], "sanity": False, "number": 5}
    one, four = (report(batch_size=size, **settings) for size in (1, 4))
    assert [a.both for a in one.results] == [b.both for b in four.results]


def test_images_of_any_sizes_and_ranges():
    pairs = [scene(2, side=side, seed=side) for side in (11, 13)]
    images = [100 * image for batch, _ in pairs for image in batch]
    labels = [label for _, batch in pairs for label in batch]

    class Units(nn.Module):
        def forward(self, x):
            return trained()(x / 100)

    found = robustness_report(Units(), images, labels, eps="8/255", bounds=(0.0, 100.0), progress=False)
    assert len(found.of("fgsm").ids) == 4
    assert found.metrics("fgsm").miou < found.metrics("clean").miou
    assert max(found.of("fgsm").farthest) == pytest.approx(8 / 255, abs=1e-5)
    own = robustness_report(Units(), images, labels, bounds="image", progress=False)
    assert max(own.of("fgsm").farthest) == pytest.approx(8 / 255, abs=1e-5)
    with pytest.raises(ValueError, match="must lie within bounds"):
        robustness_report(Units(), images, labels, progress=False)


def test_ignored_pixels_count_nowhere_and_an_image_of_them_alone_is_not_changed():
    images, labels = scene(3, seed=99)
    labels[1], labels[0, :4] = 255, 255
    found = robustness_report(trained(), images, labels, attacks=["pgd_5", "sea_9"], eps=0.06, progress=False)
    assert sum(found.of("clean").true[0]) == 77
    assert sum(found.of("clean").predicted[0]) == 77
    for one in found.results:
        assert one.farthest[1] == 0
        assert one.true[1] == [0, 0, 0]
    assert found.metrics("pgd_5").miou < found.metrics("clean").miou
    nothing = robustness_report(trained(), images, torch.full_like(labels, 255), attacks=["pgd_5"], progress=False)
    assert str(nothing).count("–") > 10
    assert nothing.of("pgd_5").zero_gradient is None


def test_radii_are_named_as_they_were_given():
    found = report(eps=["8/255", 0.03, Fraction(2, 255)], attacks=["fgsm"], sanity=False)
    radii = {one.eps: one.radius for one in found.results}
    assert radii == {"0": 0, "8/255": pytest.approx(0.0313725, abs=1e-7), "0.03": 0.03, "2/255": pytest.approx(2 / 255)}
    assert [one.eps for one in found.ordered] == ["0", "2/255", "0.03", "8/255"]
    with pytest.raises(ValueError, match=r"attack 'fgsm' with eps None on model None has 3 results"):
        found.metrics("fgsm")
    assert found.metrics("fgsm", eps="8/255").aacc < found.metrics("fgsm", eps="2/255").aacc


def test_a_preset_leaves_out_what_it_cannot_make_and_says_so(tmp_path):
    found = report(attacks="grid", steps=[2], out=tmp_path)
    assert found.left_out == ["rp_pgd_2", "rp_pgd_pp_2"]
    assert "Left out, as they need what was not given: rp_pgd_2, rp_pgd_pp_2." in (tmp_path / "index.md").read_text()
    whole = report(attacks="grid", steps=[2], feature_layer="features")
    assert whole.left_out == []
    assert whole.of("rp_pgd_pp_2").backwards == 2
    with pytest.raises(ValueError, match="attack 'rp_pgd_2' needs feature_layer: give it, or leave it out"):
        report(attacks=["rp_pgd_2"])
    with pytest.raises(ValueError, match="attack 'transfer' needs surrogates"):
        report(attacks=["transfer"])


def test_a_killed_evaluation_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    whole = report(attacks=["pgd_12", "square_5"], out=tmp_path / "whole")
    calls = []
    real = robustness_run.Evaluation._made

    def dies(self, attack, *arguments):
        calls.append(attack.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, attack, *arguments)

    monkeypatch.setattr(robustness_run.Evaluation, "_made", dies)
    with pytest.raises(KeyboardInterrupt):
        report(attacks=["pgd_12", "square_5"], out=tmp_path / "killed")
    assert calls == ["clean", "pgd_12", "square_5"]
    assert {one.attack for one in read_attack_results(tmp_path / "killed")} == {"clean", "pgd_12"}
    again = report(attacks=["pgd_12", "square_5"], out=tmp_path / "killed")
    assert calls[3:] == ["square_5", "random", "unbounded"]
    assert [one.both for one in again.results] == [one.both for one in whole.results]
    report(attacks=["pgd_12", "square_5"], out=tmp_path / "killed")
    assert len(calls) == 6


def test_results_of_something_else_are_refused(tmp_path):
    report(out=tmp_path, sanity=False)
    for change, what in {
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 1},
        "ignore_index": {"ignore_index": 7},
        "weights": {"model": TinyNet()},
        "data": {"number": 2},
        "bounds": {"bounds": (0.0, 2.0)},
    }.items():
        with pytest.raises(ValueError, match=f"was made with other .*{change}.*; remove it, or give another folder"):
            report(out=tmp_path, sanity=False, **what)


def test_models_share_a_folder_and_a_page(tmp_path):
    (tmp_path / "other.json").write_text("[]")  # of something else
    report(out=tmp_path, name="first", eps=[0.03, 0.06], attacks=["pgd_3", "pgd_10"])
    report(out=tmp_path, name="second", model=TinyNet(), attacks=["pgd_3"])
    page = (tmp_path / "index.md").read_text()
    assert "| first " in page
    assert "| second " in page
    for figure in ("miou_steps.png", "miou_eps.png", "iou_sizes.png"):
        assert f"]({figure})" in page
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    report(out=tmp_path, name="third", number=2, attacks=["pgd_3"])  # other images: a page of their own
    assert "| first " not in (tmp_path / "index.md").read_text()


def test_the_page_is_made_of_the_files_alone(tmp_path):
    report(out=tmp_path, eps=[0.03, 0.06], attacks=["pgd_3", "pgd_10", "dag_free"], name="a $ | b")
    page = (tmp_path / "index.md").read_text()
    (tmp_path / "index.md").unlink()
    assert "median; 3 of 3 images were" in page
    read = RobustnessReport.read(tmp_path)
    assert read.write(tmp_path).read_text() == page
    assert read.radii[0].median == pytest.approx(sorted(read.of("dag_free").farthest)[1])
    zero = RobustnessReport.read(tmp_path, "zero")
    assert "counted as 0" in zero.write(tmp_path).read_text()


def test_a_damaged_result_is_refused_by_name(tmp_path):
    report(out=tmp_path, attacks=["fgsm"], sanity=False)
    path = tmp_path / "model__fgsm__eps_0_06.json"
    good = json.loads(path.read_text())
    worst = [[rows[0][0] + 999, *rows[0][1:]] for rows in [good["both"]]] + good["both"][1:]
    for change, words in {
        "both": (worst, "more pixels are both predicted and true"),
        "true": (good["true"][:-1], "true must be"),
        "predicted": ([[-1, 0, 0]] * 3, "predicted of the result must be"),
        "kind": ("grey", "kind is 'grey'"),
        "seconds": ("long", "seconds is 'long'"),
    }.items():
        path.write_text(json.dumps({**good, change: words[0]}))
        with pytest.raises(ValueError, match=rf"eps_0_06\.json is no result of an attack.*{words[1]}"):
            read_attack_results(path)
    path.write_text(json.dumps({key: value for key, value in good.items() if key != "ids"}))
    with pytest.raises(ValueError, match=r"missing keys \['ids'\]"):
        read_attack_results(path)
    path.write_text("[1")
    with pytest.raises(ValueError, match=r"eps_0_06\.json"):
        read_attack_results(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.json").write_text("{}")  # of something else
    with pytest.raises(FileNotFoundError, match="no result of an attack"):
        read_attack_results(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no result file"):
        read_attack_results(tmp_path / "none.json")


def test_an_attack_of_ones_own_is_held_to_its_ball():
    def outside(model, images, labels, *, eps, **_):
        return images + 2 * eps.value

    def inside(model, images, labels, *, eps, **_):
        return (images + eps.value).clamp(max=1)

    found = report(attacks=[NamedAttack("brighter", "Brighter", inside, "noise")], sanity=False)
    assert found.of("brighter").radius == 0.06
    with pytest.raises(ValueError, match=r"attack 'far' leaves its ball or the bounds: it changes values by 0\.12"):
        report(attacks=[NamedAttack("far", "Far", outside)])


REFUSED = [
    ({"eps": 0}, "eps is 0 but must be above 0"),
    ({"eps": 8}, "8 grey levels are 8/255"),
    ({"eps": []}, "eps is empty"),
    ({"attacks": ["pgd_0"]}, "needs at least 1 step"),
    ({"attacks": ["fgsm", "fgsm"]}, r"attacks name \['fgsm'\] more than once"),
    ({"attacks": "everything"}, "attacks is 'everything' but must be one of"),
    ({"attacks": "grid", "steps": [0]}, "needs at least 1 step"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"absent": "none"}, "absent is 'none'"),
    ({"classes": ["a"]}, "classes are 1 names but the model gives logits of 3 classes"),
    ({"ids": ["a", "a", "b"]}, "ids are 3 names but there are 3 images, each with a name of its own"),
    ({"class_counts": torch.ones(4)}, r"class_counts are \[4\] but must be \[3\]"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
    ({"name": ""}, "name is ''"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_meant_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        report(**settings)


def test_images_and_labels_that_do_not_fit_are_refused():
    images, labels = scene(2)
    for x, y, words in (
        (images, labels[:1], "2 images and 1 labels"),
        (images[:0], labels[:0], "0 images"),
        (images, labels[:, 1:], r"label 0 is \[10, 11\] but its image of \[2, 11, 11\] needs \[11, 11\]"),
        (images, labels.float(), "label 0 is torch.float32 but must be integers"),
        (images.byte(), labels, "image 0 is torch.uint8"),
        (images[:, :, 0], labels[:, 0], "image 0 is .* with two or three spatial axes"),
        (images, labels + 3, r"label 0 has values \[.*3.*\] but the model has classes 0 .. 2, and ignore_index is 255"),
        (images - 0.7, labels, "must lie within bounds"),
        (images * torch.nan, labels, "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            robustness_report(trained(), x, y, progress=False)


class Pooled(nn.Module):
    def forward(self, x):
        return x[:, :, ::2]


class Two(nn.Module):
    def forward(self, x):
        return x, x


class NotANumber(nn.Module):
    def forward(self, x):
        return x / 0 * 0


@pytest.mark.parametrize(
    ("model", "words"),
    [(Pooled(), r"logits \[1, 2, 6, 11\]"), (Two(), "gives tuple"), (NotANumber(), "logits have NaN")],
)
def test_a_model_that_gives_no_logits_is_refused(model, words):
    images, labels = scene(2)
    with pytest.raises(ValueError, match=words):
        robustness_report(model, images, labels % 2, progress=False)


def test_a_report_is_about_the_same_images():
    first, other = report(sanity=False), report(sanity=False, number=2, name="other")
    with pytest.raises(ValueError, match="clean on other has other images or classes than clean on model"):
        RobustnessReport([*first.results, *other.results])
    with pytest.raises(ValueError, match="each of another model, attack or eps"):
        RobustnessReport([*first.results, *first.results])
    with pytest.raises(ValueError, match="a report needs results"):
        RobustnessReport([])


# -- checks --------------------------------------------------------------------------------------------------------


def failed(found):
    return {one.name: one.text for one in found.checks if not one.passed}


def test_a_plain_model_passes_every_check():
    found = report(eps=[0.03, 0.06], attacks=["fgsm", "pgd_3", "pgd_20", "square_20"])
    assert failed(found) == {}
    assert len(found.checks) == 8
    assert "not so" not in str(found)


class Rounded(nn.Module):
    """A victim behind steps of grey, which no gradient passes."""

    def forward(self, x):
        return trained()((x * 20).round() / 20) + 0 * x.sum()


class Saturated(nn.Module):
    """Logits so large that the cross-entropy of right pixels has no gradient left."""

    def forward(self, x):
        return 1000 * trained()(x)


class Deaf(nn.Module):
    """The same logits for every image."""

    def forward(self, x):
        return 0 * trained()(x) + torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)


def test_masked_gradients_fail_the_checks():
    found = failed(report(model=Rounded(), eps=0.06, attacks=["fgsm", "pgd_20", "square_100"]))
    assert "gradients are masked" in found["nothing is left without a bound"]
    assert "100 % of the first gradient is exactly 0" in found["there is a gradient"]
    assert (
        "square_100 (eps 0.06), without gradients, is stronger"
        in found["black-box attacks do less than white-box ones"]
    )
    assert "these lead nowhere" in found["chance does less than gradients"]
    saturated = failed(report(model=Saturated(), eps=0.06, attacks=["pgd_20", "cw_linf_20"]))
    assert "of the first gradient is exactly 0" in saturated["there is a gradient"]
    assert "hardly looks at its input" in failed(report(model=Deaf()))["nothing is left without a bound"]


def fake(name, damage, kind="white", family=None, steps=None):
    """An attack that makes images brighter by a share of the radius, for the model below."""

    def attack(model, images, labels, *, eps, **_):
        return (images + eps.value * damage(eps.value)).clamp(0, 1)

    return NamedAttack(name, name, attack, kind, family or name, steps)


class Brightness(nn.Module):
    """Class 0 is right while the image is as dark as it was; the brighter, the more columns are wrong."""

    def forward(self, x):
        columns = torch.linspace(0, 1, x.shape[-1])
        wrong = ((x[:, :1] - 0.5) * 10 > columns).float()
        return torch.cat([1 - wrong, wrong], dim=1) + 0 * x[:, :1]


def judged(attacks, eps=0.1, **settings):
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, 8, 8, dtype=torch.int64)
    return failed(robustness_report(
        Brightness(), images, labels, eps=eps, attacks=attacks, sanity=False, progress=False, **settings
    ))  # fmt: skip


def test_what_an_attack_should_do_is_checked_in_each_direction():
    few, many = (fake(f"a_{n}", lambda _, d=d: d, family="a", steps=n) for n, d in ((2, 0.8), (9, 0.3)))
    assert judged([few, many]).keys() == {"more steps do no less"}
    assert "a_9 (eps 0.1) is weaker than a_2" in judged([few, many])["more steps do no less"]
    shrinking = fake("b", lambda radius: 0.8 if radius < 0.07 else 0.1)
    text = judged([shrinking], eps=[0.05, 0.1])["a larger radius does no less"]
    assert "b (eps 0.1) is weaker than with eps 0.05" in text
    strong, weak = fake("fgsm", lambda _: 0.8, family="fgsm"), fake("pgd_3", lambda _: 0.3, family="pgd", steps=3)
    assert (
        "fgsm (eps 0.1), one step, is stronger than pgd_3" in judged([strong, weak])["one step does less than several"]
    )
    noise = fake("noise", lambda _: 0.8, "noise")
    assert "as much harm as pgd_3" in judged([noise, weak])["chance does less than gradients"]
    black = fake("box", lambda _: 0.8, "black")
    assert "box (eps 0.1), without gradients" in judged([black, weak])["black-box attacks do less than white-box ones"]
    assert judged([fake("c", lambda _: 0.8), fake("d", lambda _: 0.3, "black")]) == {}


def test_an_attack_that_helps_is_suspicious():
    images, labels = scene(3, seed=99)
    found = robustness_report(trained(), images, (labels + 1) % 3, attacks=["bim_3"], eps=0.06, progress=False)
    assert "an attack does harm" not in failed(found)

    def helps(model, images, labels, *, eps, **_):
        with torch.enable_grad():
            x = images.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(x), labels)
            (gradient,) = torch.autograd.grad(loss, x)
        return (images - eps.value * gradient.sign()).clamp(0, 1)

    torch.manual_seed(0)  # of the weights
    wrong = report(attacks=[NamedAttack("turned", "Turned", helps)], model=TinyNet())
    assert "turned (eps 0.06) raises the mIoU of clean images" in failed(wrong)["an attack does harm"]


def test_the_worst_case_is_lower_than_each_attack():
    found = report(eps=[0.03, 0.06], attacks=["pgd_5", "cw_linf_5", "square_20"], number=6)
    assert [one.eps for one in found.worst] == ["0.03", "0.06"]
    for one in found.worst:
        each = [found.metrics(name, one.eps) for name in ("pgd_5", "cw_linf_5", "square_20")]
        assert one.miou <= min(metrics.miou for metrics in each)
        assert one.aacc <= min(metrics.aacc for metrics in each)
        assert sum(one.chosen.values()) == 6
