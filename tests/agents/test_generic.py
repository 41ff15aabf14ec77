"""Experiments of `paper: ppo`: what of their settings is made whole."""

from segarena.agents.generic import FILES, PPOExperiment


def test_files_of_the_settings_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    named = dict.fromkeys(FILES, "there")
    experiment = PPOExperiment(settings={**named, "split": "there"}, evaluate_settings={"classifier": "packaged"})
    found = experiment.resolved()
    assert found.settings == {**dict.fromkeys(FILES, str(tmp_path.resolve() / "there")), "split": "there"}
    assert found.evaluate_settings == {"classifier": "packaged"}, "there is no such file"
    assert {"csv", "classifier"} <= set(FILES)
