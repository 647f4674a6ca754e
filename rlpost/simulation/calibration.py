"""Rates from a run's own records: the engine's by a fit to each group, the others as medians."""

import heapq
from collections.abc import Sequence
from itertools import combinations
from statistics import median

import numpy as np

from rlpost.schema import RunConfig
from rlpost.simulation.engine import EngineRates
from rlpost.simulation.learning import forward_only_passes
from rlpost.simulation.rates import Rates
from rlpost.simulation.records import Line, RecordedGroup, Records

_ROUNDS = 10
_LEAST_S = 1e-7
_SMALL_GAP = 0.01  # in median latencies


def calibrate(config: RunConfig, records: Records) -> Rates:
    """Return the rates at which a run went after its warm-up; `config` is the run's own."""
    engine, request_s = fit_engine(config, records)
    size, transfer_s = records.median("weights/size_bytes"), records.median("weights/sync_s")
    return Rates(
        decode_base_s=engine.decode_base_s,
        decode_per_sequence_s=engine.decode_per_sequence_s,
        prefill_per_token_s=engine.prefill_per_token_s,
        request_s=request_s,
        verify_s=_verify_s(config, records),
        learner_tokens_per_s=_learner_rate(config, records),
        reference_tokens_per_s=_reference_rate(records),
        publish_s=max(0.0, records.median("time/publish_s") - transfer_s),
        weight_bytes=size,
        weight_bytes_per_s=size / transfer_s,
        driver_per_trajectory_s=_driver_rate(records),
        between_steps_s=_between_steps_s(records),
    )


def fit_engine(config: RunConfig, records: Records) -> tuple[EngineRates, float]:
    """Return the engine's rates, and the seconds of a request beside them.

    A group's responses took request_s + decode steps x base + tokens x per_sequence + prefilled
    tokens x prefill, where tokens are those of all sequences that its engine held meanwhile. The
    fit is of least distances, so that rates are those of an ordinary moment. A prefilled token is
    taken to cost no more than a decoded one: runs with equal prompts hardly tell it from others.
    """
    rows: list[tuple[float, ...]] = []
    for worker in sorted({group.worker for group in records.timed_groups}):
        rows += _engine_rows(config, records, worker)
    table = np.array(rows)
    counts, wanted = table[:, :-1], table[:, -1]
    trust = np.ones(len(wanted))
    found = np.zeros(counts.shape[1])
    for _ in range(_ROUNDS):
        found = _nonnegative(counts * trust[:, None], wanted * trust)
        gaps = np.abs(wanted - counts @ found)
        # Weights that turn squares into distances: a hiccup counts for no more than one group.
        trust = 1 / np.sqrt(np.maximum(gaps, _SMALL_GAP * np.median(wanted)))
    request_s, base, sampling, prefill = found.tolist()
    rates = EngineRates(
        decode_base_s=max(base, _LEAST_S),
        decode_per_sequence_s=prefill + sampling,
        prefill_per_token_s=prefill,
    )
    return rates, request_s


def _engine_rows(config: RunConfig, records: Records, worker: str) -> list[tuple[float, ...]]:
    """Return 1, steps, tokens, these and prefilled ones, and seconds of an engine's groups."""
    groups = sorted(
        (g for g in records.timed_groups if g.worker == worker), key=lambda g: g.asked_s
    )
    starts, ends = _service(groups, config.rollout.max_num_seqs)
    lengths = np.array([length for group in groups for length in group.shape.lengths])
    owner = np.array([i for i, group in enumerate(groups) for _ in group.shape.lengths])
    begun = starts[owner]
    finished = begun + (ends - starts)[owner] * lengths / _longest(groups)[owner]
    tokens = _Ramps(begun, finished, lengths)
    prompts = np.array([group.shape.prompt_tokens for group in groups], dtype=np.float64)
    opens = np.array([line["clock/published_s"] - line["time/publish_s"] for line in records.lines])
    pauses = np.array([line["weights/sync_s"] for line in records.lines])
    paused = _Ramps(opens, opens + pauses, pauses)
    share = np.clip((opens[:, None] - begun) / np.maximum(finished - begun, _LEAST_S), 0.0, 1.0)
    held = np.where((share > 0) & (share < 1), prompts[owner] + share * lengths, 0.0).sum(axis=1)
    times = np.concatenate([starts, opens + pauses])  # new weights: what is held is recomputed
    prefilled = _Ramps(times, times, np.concatenate([prompts, held]))
    table = np.stack(
        [
            np.ones(len(groups)),
            _longest(groups),
            tokens.between(starts, ends),
            tokens.between(starts, ends) + prefilled.between(starts, ends),
            ends - starts - paused.between(starts, ends),
        ],
        axis=1,
    )
    steady = [group.step > records.num_skipped for group in groups]
    return [tuple(row) for row in table[steady].tolist()]


def _longest(groups: Sequence[RecordedGroup]) -> np.ndarray:
    return np.array([float(max(group.shape.lengths)) for group in groups])


def _service(groups: Sequence[RecordedGroup], num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when each group's last response entered the engine's batch, and when it ended.

    Slots free up as the responses that hold them end, each at its share of its group's time.
    """
    free = [float("-inf")] * num_slots
    starts = []
    for group in groups:
        lengths = sorted(group.shape.lengths)
        entered = [max(group.asked_s, heapq.heappop(free)) for _ in lengths[:num_slots]]
        start = min(max(entered), group.sampled_s)
        starts.append(start)
        for length in lengths[:num_slots]:
            heapq.heappush(free, start + (group.sampled_s - start) * length / lengths[-1])
    return np.array(starts), np.array([group.sampled_s for group in groups])


class _Ramps:
    """The sum of amounts that each grow evenly over an interval of its own."""

    def __init__(self, starts: np.ndarray, ends: np.ndarray, amounts: np.ndarray) -> None:
        ends = np.maximum(ends, starts + _LEAST_S)
        slopes = amounts / (ends - starts)
        times = np.concatenate([starts, ends])
        order = np.argsort(times, kind="stable")
        self._times = times[order]
        slope = np.cumsum(np.concatenate([slopes, -slopes])[order])
        self._sums = np.concatenate([[0.0], np.cumsum(np.diff(self._times) * slope[:-1])])

    def between(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return what is added between two moments."""
        return self._at(ends) - self._at(starts)

    def _at(self, moments: np.ndarray) -> np.ndarray:
        return np.interp(moments, self._times, self._sums)


def _nonnegative(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the coefficients of the best fit in least squares, none of them negative."""
    count = table.shape[1]
    best, least = np.zeros(count), float(wanted @ wanted)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            part = table[:, chosen]
            found = np.linalg.lstsq(part, wanted, rcond=None)[0]
            rest = wanted - part @ found
            if (found >= 0).all() and rest @ rest < least * (1 - 1e-6):
                best, least = np.zeros(count), float(rest @ rest)
                best[list(chosen)] = found
    return best


def _of_steps(records: Records) -> list[tuple[Line, list[RecordedGroup]]]:
    """Return each step's metrics with the groups that its files hold."""
    by_step: dict[int, list[RecordedGroup]] = {}
    for group in records.steady_groups:
        by_step.setdefault(group.step, []).append(group)
    return [(line, by_step[line["step"]]) for line in records.steady]


def _driver_rate(records: Records) -> float:
    """Return the driver's seconds a trajectory, in batches and advantages."""
    return median(
        line["time/batch_s"] / sum(group.num_trained for group in groups)
        for line, groups in _of_steps(records)
    )


def _learner_rate(config: RunConfig, records: Records) -> float:
    """Return a rank's tokens a second, padding included, through forward and backward passes."""
    passes = (config.epochs + forward_only_passes(config)) / config.learner.num_ranks
    return median(
        passes * _num_tokens(groups) / (1 - line["batch/padding_frac"]) / line["time/learn_s"]
        for line, groups in _of_steps(records)
    )


def _reference_rate(records: Records) -> float:
    """Return the reference policy's tokens a second; 0 where there is none."""
    if records.median("time/reference_s") < 1e-3:
        return 0.0
    return median(
        _num_tokens(groups) / line["time/reference_s"] for line, groups in _of_steps(records)
    )


def _num_tokens(groups: Sequence[RecordedGroup]) -> float:
    """Return the tokens that are trained on, with their prompts."""
    return sum(
        group.num_trained * (group.shape.prompt_tokens + sum(lengths) / len(lengths))
        for group in groups
        for lengths in [group.shape.lengths]
    )


def _verify_s(config: RunConfig, records: Records) -> float:
    """Return the seconds of one verification: of a group behind the one that was scored before."""
    processes = config.reward.num_workers * config.reward.num_processes
    taken, before = [], float("-inf")
    for group in sorted(records.timed_groups, key=lambda group: group.scored_s):
        alone = group.scored_s - max(group.sampled_s, before)
        before = group.scored_s
        if group.step > records.num_skipped:
            taken.append(
                alone * min(processes, len(group.shape.lengths)) / len(group.shape.lengths)
            )
    return sum(taken) / len(taken)


def _between_steps_s(records: Records) -> float:
    """Return the seconds from the end of a step to its record's, and the next one's beginning."""
    lines = {line["step"]: line for line in records.lines}
    return median(
        max(0.0, line["unix_s"] - lines[step - 1]["unix_s"] - line["time/step_s"])
        for step, line in lines.items()
        if step > records.num_skipped and step - 1 in lines
    )
