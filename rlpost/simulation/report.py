"""What a simulation showed: who was busy, what a step waits for, and what would help."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rlpost.choices import Mode
from rlpost.schema import RunConfig
from rlpost.simulation.rates import Rates
from rlpost.simulation.running import Simulation

_PHASES = ("rollout", "reference", "batch", "learn", "publish", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A simulation in numbers, of the steps after the warm-up; `phases` are medians in seconds.

    `busy` are shares of the time; `batch_fill` is the share of an engine's slots that hold a
    sequence; `queued_mean` counts sequences that wait for a slot, a worker. `measured_step_s` is
    that of the run that the rates are from, where the simulation is of the same recipe.
    """

    num_workers: int
    num_ranks: int
    num_steps: int
    step_s: float
    slow_step_s: float
    phases: Mapping[str, float]
    tokens_trained_per_s: float
    busy: Mapping[str, float]
    batch_fill: float
    queued_mean: float
    queued_most: int
    ready_frac: float
    padding_frac: float
    staleness: Mapping[int, float]
    bottleneck: str
    remedy: str
    measured_step_s: float | None
    took_s: float
    rates: Rates

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def summarise(
    config: RunConfig,
    rates: Rates,
    simulation: Simulation,
    *,
    num_skipped: int,
    measured_step_s: float | None,
    took_s: float,
) -> Report:
    """Return the report of a simulation that took `took_s` real seconds."""
    steps = [values for values in simulation.steps if values["step"] > num_skipped]
    plain = [values for values in steps if "time/eval_s" not in values] or steps
    times = sorted(values["time/step_s"] for values in plain)
    work = simulation.work
    span_s = simulation.end.now_s - simulation.start.now_s
    engine_s = span_s * len(work)
    phases = {name: median(v.get(f"time/{name}_s", 0.0) for v in plain) for name in _PHASES}
    busy = _busy(config, simulation, span_s)
    total = sum(simulation.ages.values())
    queued = sum(one.waiting_s for one in work) / engine_s
    bottleneck, remedy = _bottleneck(config, phases, busy, queued)
    return Report(
        num_workers=config.rollout.num_workers,
        num_ranks=config.learner.num_ranks,
        num_steps=len(steps),
        step_s=median(times),
        slow_step_s=times[min(len(times) - 1, int(0.9 * len(times)))],
        phases=phases,
        tokens_trained_per_s=median(v["tokens/trained"] / v["time/step_s"] for v in plain),
        busy=busy,
        batch_fill=sum(one.sequence_s for one in work) / engine_s / config.rollout.max_num_seqs,
        queued_mean=queued,
        queued_most=max(one.most_waiting for one in work),
        ready_frac=median(v.get("queue/ready_frac", 0.0) for v in plain),
        padding_frac=median(v["batch/padding_frac"] for v in plain),
        staleness={age: count / total for age, count in sorted(simulation.ages.items())},
        bottleneck=bottleneck,
        remedy=remedy,
        measured_step_s=measured_step_s,
        took_s=took_s,
        rates=rates,
    )


def _busy(config: RunConfig, simulation: Simulation, span_s: float) -> dict[str, float]:
    start, end, work = simulation.start, simulation.end, simulation.work
    processes = config.reward.num_workers * config.reward.num_processes
    engine_s = span_s * len(work)
    shares = {
        "rollout workers": sum(one.busy_s for one in work) / engine_s,
        "learner": (end.learner_s - start.learner_s) / span_s,
        "verifiers": (end.verifiers_s - start.verifiers_s) / span_s / processes,
        "driver": (end.driver_s - start.driver_s) / span_s,
        "weight transfer": sum(one.paused_s for one in work) / engine_s,
    }
    if config.kl_coef > 0:
        shares["reference"] = (end.reference_s - start.reference_s) / span_s
    return shares


def _bottleneck(
    config: RunConfig, phases: Mapping[str, float], busy: Mapping[str, float], queued: float
) -> tuple[str, str]:
    """Return what the steps wait for most, and what would shorten them."""
    waits = {
        "rollout": phases["rollout"],
        "learner": phases["learn"],
        "reference": phases["reference"],
        "weight transfer": phases["publish"],
        "driver": phases["batch"] + phases["other"],
    }
    longest = max(waits, key=lambda name: waits[name])
    if longest == "rollout":
        return _rollout_bottleneck(config, busy, queued)
    idle = busy["rollout workers"] < 0.5
    learner = "more learner.num_ranks, or packing" + idle * "; fewer rollout workers would do"
    if config.mode is Mode.sync:
        learner = "mode=async lets sampling go on meanwhile; then more learner.num_ranks"
    return longest, {
        "learner": learner,
        "reference": "smaller or quicker reference model, or kl_coef=0",
        "weight transfer": "a quicker network, an adapter alone, or more prompts_per_step",
        "driver": "fewer trajectories a step: what the driver does for each adds up",
    }[longest]


def _rollout_bottleneck(
    config: RunConfig, busy: Mapping[str, float], queued: float
) -> tuple[str, str]:
    if busy["verifiers"] > 0.9:
        return "verifiers", "more reward.num_workers or reward.num_processes"
    if queued > 0.5:
        return (
            "rollout workers, whose slots are full",
            "more rollout.num_workers, or a larger rollout.max_num_seqs",
        )
    if config.mode is Mode.sync:
        return (
            "the longest responses of a step",
            "mode=async: the next steps' responses fill the batch meanwhile",
        )
    if busy["rollout workers"] > 0.9:
        return "rollout workers", "more rollout.num_workers"
    return (
        "the longest responses of a step",
        "oversampling, or a larger max_staleness: stragglers then go on into later steps",
    )


def as_text(report: Report) -> str:
    """Return the report as a person reads it."""
    title = f"{report.num_workers:,} rollout workers, {report.num_ranks:,} learner ranks; "
    title += f"{report.num_steps} steps after the warm-up, simulated in {report.took_s:.1f} s"
    step = f"{_seconds(report.step_s)} (median), {_seconds(report.slow_step_s)} (90%)"
    if report.measured_step_s:
        step += f"; measured {_seconds(report.measured_step_s)}"
    batches = f"{report.batch_fill:.0%} of the engines' slots in use, {report.queued_mean:.1f} "
    batches += f"sequences waiting a worker, {report.queued_most} at most"
    trained = f"{report.tokens_trained_per_s:,.0f} tokens/s; padding {report.padding_frac:.1%}"
    rows = {
        "step": step,
        "  of which": ", ".join(f"{k} {_seconds(v)}" for k, v in report.phases.items() if v > 0),
        "trained": trained,
        "busy": ", ".join(f"{name} {share:.0%}" for name, share in report.busy.items()),
        "batches": batches,
        "queue": f"{report.ready_frac:.0%} of what is under way is ready when a step begins",
        "staleness": _ages(report.staleness),
        "bottleneck": f"{report.bottleneck}: {report.remedy}",
    }
    return f"{title}\n\n" + "".join(f"{name:<12}{text}\n" for name, text in rows.items())


def _ages(staleness: Mapping[int, float]) -> str:
    versions: Sequence[str] = [f"{age}: {share:.0%}" for age, share in staleness.items()]
    return ", ".join(versions) + " (versions: share of trajectories)"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
