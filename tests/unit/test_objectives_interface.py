"""How objectives are built, fed and reported."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from rlpost.errors import ConfigError, DataError
from rlpost.objective_configs import Schedule
from rlpost.objectives import ObjectiveInputs, build, build_from, objective_configs
from rlpost.objectives.schedules import scheduled

BUILT_IN = sorted(set(objective_configs) - {"custom"})


def on_four_tokens(log_ratio, advantage=1.0, mask=(True,) * 4):
    d = torch.tensor([log_ratio], dtype=torch.float64)
    return ObjectiveInputs(
        logprobs=d,
        old_logprobs=torch.zeros_like(d),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        loss_mask=torch.tensor([mask]),
        weights=torch.full_like(d, 0.25),
    )


def test_clip_metrics_by_hand():
    ratios = [1.0, 1.1, 1.5, 0.5]
    metrics = build("clip")(on_four_tokens([math.log(r) for r in ratios])).metrics.values()
    assert metrics == pytest.approx(
        {
            "policy/ratio_mean": 4.1 / 4,
            "policy/ratio_max": 1.5,
            "policy/gradient_multiplier_mean": 2.6 / 4,
            "policy/gradient_multiplier_max": 1.1,
            "policy/ratio_controlled_frac": 0.25,
            "policy/clip_frac": 0.25,
        }
    )


def test_metrics_see_trained_tokens_only():
    kept = (True, True, False, False)
    metrics = build("clip")(on_four_tokens([0.0, 0.0, 3.0, math.nan], mask=kept)).metrics
    assert metrics.values()["policy/ratio_max"] == 1.0
    assert metrics.means["policy/clip_frac"] == (0.0, 2.0)
    assert build("clip")(on_four_tokens([0.0] * 4, mask=(False,) * 4)).metrics.values() == {}


def test_a_constant_scale_is_not_control():
    on_policy = build("mhpo")(on_four_tokens([0.0] * 4)).metrics.values()
    assert on_policy["policy/ratio_controlled_frac"] == 0.0
    assert on_policy["policy/gradient_multiplier_mean"] == pytest.approx(0.2651, abs=5e-5)
    far = build("mhpo")(on_four_tokens([0.0, 0.1, -2.5, 6.0])).metrics.values()
    assert far["policy/ratio_controlled_frac"] == 0.5
    assert far["policy/clip_frac"] == 0.25


def test_holder_clips_whole_sequences_and_reports_p():
    output = build("holder", p=1.0, p_schedule="constant")(on_four_tokens([0.5] * 4))
    assert output.metrics.values()["policy/clip_frac"] == 1.0
    assert output.metrics.values()["objective/p"] == 1.0
    assert float(output.loss) == pytest.approx(-1.2)


def test_advantages_may_be_per_sequence_or_per_token():
    inputs = on_four_tokens([0.1, 0.0, -0.1, 0.05], advantage=-0.7)
    spread = inputs.prepared()
    assert spread.advantages.tolist() == [[-0.7] * 4]
    for name in BUILT_IN:
        assert torch.equal(build(name)(inputs).loss, build(name)(spread).loss)


@pytest.mark.parametrize("field", ["old_logprobs", "advantages", "loss_mask", "weights"])
def test_shapes_that_do_not_fit_are_refused_by_name(field):
    inputs = on_four_tokens([0.0] * 4)
    wrong = torch.zeros(3, dtype=torch.bool) if field == "loss_mask" else torch.zeros(3)
    object.__setattr__(inputs, field, wrong)
    with pytest.raises(DataError, match=rf"{field} must have .* \[1, 4\], got \[3\]"):
        build("clip")(inputs)


@pytest.mark.parametrize(
    ("schedule", "start", "quarter", "middle", "end"),
    [
        ("linear_dec", 2.0, 1.0, 0.0, -2.0),
        ("linear", -2.0, -1.0, 0.0, 2.0),
        ("cos", 2.0, math.sqrt(2), 0.0, -2.0),
        ("sin", -2.0, -math.sqrt(2), 0.0, 2.0),
        ("quad", -2.0, -1.75, -1.0, 2.0),
        ("quad_dec", 2.0, 1.75, 1.0, -2.0),
        ("cubic", -2.0, -0.25, 0.0, 2.0),
        ("cubic_dec", 2.0, 0.25, 0.0, -2.0),
    ],
)
def test_schedules_by_hand_and_held_outside_the_range(schedule, start, quarter, middle, end):
    expected = [start, start, quarter, middle, end, end]
    positions = (-1.0, 0.0, 0.25, 0.5, 1.0, 7.0)
    values = [scheduled(Schedule(schedule), x, -2.0, 2.0) for x in positions]
    assert values == pytest.approx(expected, abs=1e-12)
    objective = build("holder", p_schedule=schedule, schedule_steps=40)
    assert objective.at_step(10)["p"] == pytest.approx(quarter, abs=1e-12)
    assert objective.at_step(0, progress=0.5)["p"] == pytest.approx(middle, abs=1e-12)


def test_the_constant_schedule_uses_p_and_ignores_the_range():
    objective = build("holder", p=0.7, p_schedule="constant")
    assert [objective.at_step(step)["p"] for step in (0, 250, 10_000)] == [0.7] * 3


@pytest.mark.parametrize("step", [0, 125, 500])
def test_p_follows_the_step_into_loss_and_metrics(step):
    inputs = on_four_tokens([0.1, -0.1, 0.05, 0.0])
    p = 2.0 - 4.0 * step / 500
    output = build("holder")(inputs, step=step)
    same = build("holder", p=p, p_schedule="constant")(inputs)
    assert output.metrics.values()["objective/p"] == p
    assert torch.equal(output.loss, same.loss)
    assert torch.equal(build("holder")(inputs, progress=step / 500).loss, same.loss)


@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        ("clip", "token_mean"),
        ("mhpo", "sequence_mean"),
        ("holder", "sequence_mean"),
        ("reinforce", "token_mean"),
        ("gspo", "sequence_mean"),
        ("gmpo", "sequence_mean"),
        ("sapo", "sequence_mean"),
        ("cispo", "token_mean"),
        ("none", "token_mean"),
    ],
)
def test_default_reductions_are_the_papers(name, reduction):
    assert build(name).default_reduction == reduction


@pytest.mark.parametrize("name", BUILT_IN)
def test_configs_survive_omegaconf_and_build(name):
    config = objective_configs[name]()
    assert config.name == name
    structured = OmegaConf.structured(config)
    round_trip = OmegaConf.to_object(structured)
    assert round_trip == config
    assert build_from(round_trip).config == config


@pytest.mark.parametrize(
    ("name", "wrong", "field"),
    [
        ("clip", {"eps_low": 1.5}, "objective.eps_low"),
        ("clip", {"eps_high": math.nan}, "objective.eps_high"),
        ("clip", {"dual_clip": 0.5}, "objective.dual_clip"),
        ("mhpo", {"c": 0.0}, "objective.c"),
        ("mhpo", {"lambda_neg": math.inf}, "objective.lambda_neg"),
        ("holder", {"p_min": 3.0}, "objective.p_min=3.0 must not exceed"),
        ("holder", {"p": math.nan}, "objective.p must be finite"),
        ("holder", {"schedule_steps": 0}, "objective.schedule_steps"),
        ("holder", {"eps": 1.0}, "objective.eps"),
        ("holder", {"p_schedule": "linea"}, "objective.p_schedule=linea: no such schedule"),
        ("mhpo", {"clip_high": 0.3}, "objective.clip_high: mhpo has no such hyperparameter"),
        ("reinforce", {"eps": 0.3}, "available: none"),
        ("gspo", {"eps_low": 0.0}, "objective.eps_low"),
        ("gspo", {"eps_high": math.inf}, "objective.eps_high"),
        ("gmpo", {"log_clip": -0.4}, "objective.log_clip"),
        ("cispo", {"eps_high": math.nan}, "objective.eps_high"),
        ("sapo", {"tau_neg": 0.0}, "objective.tau_neg"),
        ("ppo2", {}, "available: clip, mhpo, holder, holder_token"),
    ],
)
def test_impossible_objectives_are_refused_by_name(name, wrong, field):
    with pytest.raises(ConfigError, match=field):
        build(name, **wrong)
