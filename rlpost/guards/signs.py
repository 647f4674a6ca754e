"""What a run's own numbers give away after a step.

Each sign is a function of the journal and the recipe that returns what it sees, with a remedy, or
None. What a guard does when it sees something is `guards.<name>` in a recipe.
"""

import math
from collections.abc import Callable, Sequence
from statistics import linear_regression, median

from rlpost.choices import Advantage, Dtype
from rlpost.guards.disks import low_disk
from rlpost.guards.journal import Journal
from rlpost.schema import RunConfig

Guard = Callable[[Journal, RunConfig], str | None]
_SURE = 4.0  # standard errors that a fall of the reward must exceed
_DRIFT_FLOOR = 0.02  # nats a token: below it no trend matters


def _first_ratio(journal: Journal, config: RunConfig) -> str | None:
    exact = {config.model.dtype, config.rollout.dtype or config.model.dtype} == {Dtype.float32}
    limit = config.guards.max_first_ratio_gap
    limit = limit if limit is not None else (0.01 if exact else 0.1)
    gap = journal.now("policy/first_ratio_gap")
    if gap is None or gap <= limit:
        return None
    cause = (
        "vLLM samples from another policy than the one trained, or computes it less exactly"
        if config.old_logprobs.value == "behavior"
        else "two forward passes of the same weights differ, as with dropout"
    )
    return (
        f"before the step's first update ratios differ from 1 by {gap:.3g} on average, more than "
        f"guards.max_first_ratio_gap={limit:g} (old_logprobs={config.old_logprobs.value}): {cause};"
        " compare mismatch/logprob_gap_mean, check model.dtype and rollout.dtype, or raise the "
        "limit"
    )


def _logprob_gap(journal: Journal, config: RunConfig) -> str | None:
    limit, gap = config.guards.max_logprob_gap, journal.now("mismatch/logprob_gap_mean")
    if limit is None or gap is None or gap <= limit:
        return None
    return (
        f"learner and vLLM differ by {gap:.3g} a token in mean logprob on equal weights, more than "
        f"guards.max_logprob_gap={limit:g}: the rollout workers sample from another policy than "
        "the one trained; check model.dtype and rollout.dtype, or raise the limit"
    )


def _logprob_drift(journal: Journal, config: RunConfig) -> str | None:
    half, factor = max(1, config.guards.window // 2), config.guards.max_logprob_drift
    remedy = (
        "samples come from policies ever farther from the one trained; lower max_staleness or "
        "learner.learning_rate, or add a correction (correction.kind=tis)"
    )
    for name in ("mismatch/logprob_gap_mean", "staleness/logprob_gap_mean"):
        now = journal.now(name)
        if now is not None and not math.isfinite(now):
            return f"{name} is {now}: a logprob that is no number is far from any; {remedy}"
        values = journal.last(name, 2 * half)
        if not values:
            continue
        # Against the half before, a jump shows; against the run's beginning, a slow rise.
        after = median(values[half:])
        earlier = {"the steps before": values[:half], "the first steps": journal.early[name][:half]}
        for which, levels in earlier.items():
            if after > max(_DRIFT_FLOOR, factor * median(levels)):
                return (
                    f"{name} rose from {median(levels):.3g} in {which} to {after:.3g} (medians of "
                    f"{half} steps each), by more than guards.max_logprob_drift={factor:g} times: "
                    f"{remedy}"
                )
    return None


def _constant(journal: Journal, config: RunConfig) -> bool:
    """Say whether no two rewards of the run have ever differed, evaluations included."""
    judged = any(
        0.0 < value < 1.0
        for extremes in (journal.low, journal.high)
        for name, value in extremes.items()
        if name.startswith("eval/") and "/pass@" in name
    )
    same = not journal.varied("reward/mean") and journal.high.get("reward/std", 1.0) < 1e-9
    return journal.num_steps >= config.guards.steps and same and not judged


def _constant_verifier(journal: Journal, config: RunConfig) -> str | None:
    if not _constant(journal, config):
        return None
    return (
        f"in all {journal.num_steps} steps every response got the same reward "
        f"{journal.now('reward/mean'):g}: the verifier {config.task.verifier} may not look at the "
        "response, or the task is out of the policy's reach; read a few responses in rollouts/, "
        "and try task.verifier on an answer known to be right"
    )


def _no_signal(journal: Journal, config: RunConfig) -> str | None:
    steps = config.guards.steps
    by_batch = config.advantage is Advantage.reinforce_baseline
    silent = (
        [float(std < 1e-9) for std in journal.last("reward/std", steps)]
        if by_batch
        else journal.last("group/zero_advantage_frac", steps)
    )
    if not silent or min(silent) < 1.0 or _constant(journal, config):
        return None
    reward = journal.now("reward/mean")
    return (
        f"in {steps} steps in a row (guards.steps) rewards did not differ within any group, so "
        f"nothing was learned (reward/mean {reward:.3g}): the task is solved, or too hard for "
        "any of group_size responses to succeed; mix in other prompts, raise group_size, or use "
        "max_replacements"
    )


def _reward_collapse(journal: Journal, config: RunConfig) -> str | None:
    recent = journal.last("reward/mean", config.guards.steps)
    if not recent:
        return None
    best, spread = journal.best["reward/mean"], journal.best.get("reward/std", 0.0)
    if not math.isfinite(spread):
        return None  # that of a single reward: nothing says how far chance goes
    floor = min(journal.low["reward/mean"], 0.0)
    mean = sum(recent) / len(recent)
    error = spread / math.sqrt(config.prompts_per_step * config.group_size)
    kept = (mean - floor) / (best - floor) if best > floor else 1.0
    if kept >= config.guards.min_reward_frac or best - mean <= _SURE * error:
        return None
    return (
        f"the mean reward of the last {len(recent)} steps is {mean:.3g} and was {best:.3g}: less "
        f"than guards.min_reward_frac={config.guards.min_reward_frac:g} of it is left; lower "
        "learner.learning_rate, raise kl_coef, or go back to an earlier checkpoint"
    )


def _entropy_collapse(journal: Journal, config: RunConfig) -> str | None:
    steps, limit = config.guards.steps, config.guards.min_entropy
    entropies, rewards = journal.last("policy/entropy", steps), journal.last("reward/mean", steps)
    if not entropies or not rewards or max(entropies) >= limit:
        return None
    if sum(rewards) / len(rewards) >= 0.9 * config.eval.success_reward:
        return None  # sure and right is what training is for
    return (
        f"the policy's entropy was below guards.min_entropy={limit:g} nats a token for {steps} "
        f"steps (now {entropies[-1]:.2g}) at a mean reward of {rewards[-1]:.3g}: responses are all "
        "alike and nothing new is tried; raise sampling.temperature or the objective's upper "
        "clip, or lower learner.learning_rate"
    )


def _truncation(journal: Journal, config: RunConfig) -> str | None:
    limit = config.guards.max_truncated_frac
    fractions = journal.last("response/truncated_frac", config.guards.steps)
    if not fractions or min(fractions) <= limit:
        return None
    return (
        f"{fractions[-1]:.0%} of the responses are cut off at sampling.max_response_tokens="
        f"{config.sampling.max_response_tokens}, for {len(fractions)} steps more than "
        f"guards.max_truncated_frac={limit:g}: their rewards judge answers that never ended; raise "
        "max_response_tokens, or look whether the policy ever emits its end token"
    )


def _memory_growth(journal: Journal, config: RunConfig) -> str | None:
    window, limit = config.guards.window, config.guards.max_memory_growth_mib
    growing = []
    for name in (name for name in journal.high if name.startswith("memory/")):
        values = journal.last(name, window)
        half = len(values) // 2
        if half < 2:
            continue
        slopes = [_slope_mib(values[:half]), _slope_mib(values[half:])]
        if min(slopes) > limit:
            process = name.removeprefix("memory/").removesuffix("_gib")
            growing.append(f"{process} by {slopes[1]:.0f} MiB a step to {values[-1]:.2f} GiB")
    if not growing:
        return None
    return (
        f"memory grew through the last {window} steps (guards.window): {'; '.join(growing)}; more "
        f"than guards.max_memory_growth_mib={limit:g} a step: a leak will end the run; look for "
        "what the named process keeps (a task or verifier of one's own?), or resume from a "
        "checkpoint now and then"
    )


def _slope_mib(gib: Sequence[float]) -> float:
    return linear_regression(range(len(gib)), gib).slope * 1024


GUARDS: dict[str, Guard] = {
    "first_ratio": _first_ratio,
    "logprob_gap": _logprob_gap,
    "logprob_drift": _logprob_drift,
    "constant_verifier": _constant_verifier,
    "no_signal": _no_signal,
    "reward_collapse": _reward_collapse,
    "entropy_collapse": _entropy_collapse,
    "truncation": _truncation,
    "memory_growth": _memory_growth,
    "low_disk": low_disk,
}
"""Looked at after every step, in this order; `guards.<name>` says what each does."""
