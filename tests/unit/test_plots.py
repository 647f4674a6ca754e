"""Pictures of objectives show the functions that are trained with."""

import math

import pytest

from rlpost.cli import main
from rlpost.errors import ConfigError
from rlpost.reporting.plots import _curves, named, plot_objectives


def test_curves_are_the_published_functions():
    log_ratio, loss, multiplier = _curves(named("clip"), 1.0, num_points=5)
    assert log_ratio == [-2.5, -1.25, 0.0, 1.25, 2.5]
    ratios = [math.exp(d) for d in log_ratio]
    assert loss == pytest.approx([-min(r, 1.2) for r in ratios])
    assert multiplier == pytest.approx([r if r <= 1.2 else 0.0 for r in ratios])
    _, _, mhpo = _curves(named("mhpo"), -1.0, num_points=5)
    assert mhpo[2] == pytest.approx(0.2651, abs=5e-5)
    _, _, scaled = _curves(named("mhpo:normalize_at_one=true:c=3"), -1.0, num_points=5)
    assert scaled[2] == pytest.approx(1.0)


def test_the_command_draws_both_formats_and_names_them(tmp_path, capsys):
    names = ["mhpo", "clip", "holder", "holder_token:p_schedule=cos"]
    assert main(["objective", "plot", *names, f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(tmp_path / "objectives.svg"), str(tmp_path / "objectives.png")]
    svg = (tmp_path / "objectives.svg").read_text()
    before = (tmp_path / "objectives.png").read_bytes()
    plot_objectives(names, tmp_path)
    assert (tmp_path / "objectives.png").read_bytes() == before
    assert svg.startswith("<?xml")


@pytest.mark.parametrize("words", [[], ["plot"], ["draw", "clip"]])
def test_a_command_without_names_is_refused(words, capsys):
    assert main(["objective", *words]) == 2
    assert "rlpost objective plot mhpo clip" in capsys.readouterr().err


def test_an_unknown_objective_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no objective ppo2"):
        plot_objectives(["ppo2"], tmp_path)
