"""The step: sample, score, learn, publish. Written on roles alone; knows nothing of Ray."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

import torch

from rlpost import advantages
from rlpost.batching import BatchPlan, RankBatch, Sample, build_batches
from rlpost.buffer import EpisodeBuffer, buffer_plan
from rlpost.choices import Advantage, Mode, Reduction
from rlpost.episodes import Episode, gathered, scored, trained
from rlpost.errors import StalenessError, WeightSyncError
from rlpost.evaluation import Evaluator
from rlpost.guards import Guards
from rlpost.kl import kl
from rlpost.metrics import Metrics
from rlpost.objectives import build_from
from rlpost.roles import Learner, Reference, Rollouts, Verifiers
from rlpost.schema import RunConfig
from rlpost.stalls.progress import Progress
from rlpost.timing import PhaseTimer, clock
from rlpost.types import Group, Prompt, Sampling, Trajectory

log = logging.getLogger(__name__)


class Prompts(Protocol):
    """Where training prompts come from."""

    def draw(self, count: int) -> list[Prompt]:
        """Return the next prompts of the run's order."""
        ...

    def recall(self, ids: Collection[str]) -> dict[str, Prompt]:
        """Return prompts that were drawn before, by id."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return the position in the order."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a position."""
        ...


class Recorder(Protocol):
    """Where results go: files, trackers, the console."""

    def phase(self, name: str) -> None:
        """Say what is going on."""
        ...

    def record(self, step: int, values: dict[str, float], groups: Sequence[Group]) -> None:
        """Keep one step's metrics and rollouts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The roles that a controller drives; `reference` is None when nothing needs it."""

    prompts: Prompts
    rollouts: Rollouts
    verifiers: Verifiers
    learner: Learner
    reference: Reference | None


Vitals = Callable[[], Awaitable[Mapping[str, float]]]
"""Measures how the run's processes are: `memory/<process>_gib`, `workers/<role>`, `faults/lost`."""


async def nothing_measured() -> Mapping[str, float]:
    """Measure no process."""
    return {}


class Controller:
    """Runs group-relative reinforcement learning.

    Sampling and learning take turns, or, in `mode=async`, go on at once: the episodes of later
    steps are begun as early as the bound on staleness allows (see `rlpost.buffer`).

    Use: `await start()`, or `await resume(state)` with what `state_dict()` returned after a step,
    then `await step(n)` for the steps that follow, and `await close()` however it ends; `version`
    counts publications.
    """

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        evaluator: Evaluator,
        recorder: Recorder,
        build: Callable[[Sequence[Sample], BatchPlan, int], list[RankBatch]] = build_batches,
        *,
        guards: Guards | None = None,
        vitals: Vitals = nothing_measured,
        progress: Progress | None = None,
    ) -> None:
        """`build` cuts a step's samples into what the learner's ranks train on.

        `guards` knows what was seen before the run; `vitals` measures its processes; `progress` is
        told of phases and episodes.
        """
        self.config = config
        self.guards = guards or Guards(config)
        self.vitals = vitals
        self.progress = progress or Progress()
        self.parts = parts
        self.evaluator = evaluator
        self.recorder = recorder
        self.build = build
        self.version = -1
        self.buffer = EpisodeBuffer(parts.prompts.draw, self._episode, buffer_plan(config))
        reduction = config.reduction.value
        if config.reduction is Reduction.auto:
            reduction = build_from(config.objective).default_reduction
        self.plan = BatchPlan(
            num_minibatches=config.minibatches,
            num_ranks=parts.learner.num_ranks,
            micro_batch_size=config.learner.micro_batch_size,
            micro_batch_tokens=config.learner.micro_batch_tokens,
            packing=config.learner.packing,
            reduction=reduction,
            max_response_tokens=config.sampling.max_response_tokens,
        )

    async def start(self) -> dict[str, float]:
        """Publish the first weights, evaluate them, and record both as step 0."""
        timer = PhaseTimer()
        values = await self._publish(timer)
        values |= await self._evaluate(0, timer)
        values |= timer.values()
        values |= self.guards.look(0, values)
        self.recorder.record(0, values, ())
        self.guards.enforce()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return, as JSON, what a run needs beside its learner to go on after this step."""
        return {
            "version": self.version,
            "prompts": self.parts.prompts.state_dict(),
            "buffer": self.buffer.state_dict(),
        }

    async def resume(self, state: Mapping[str, Any]) -> None:
        """Publish a restored learner's weights and take up what was under way."""
        self.version = state["version"] - 1
        await self._publish(PhaseTimer())
        self.parts.prompts.load_state_dict(state["prompts"])
        held = state["buffer"]
        ids = {one["prompt"] for one in (*held["slots"], *held["replaced"])}
        self.buffer.load_state_dict(held, self.parts.prompts.recall(ids))

    async def close(self) -> None:
        """End the episodes that nobody waits for any more."""
        await self.buffer.close()

    async def step(self, step: int) -> dict[str, float]:
        """Take a batch, train on it, publish the new weights; return the step's metrics."""
        timer = PhaseTimer()
        metrics = Metrics()
        self.progress.step = step
        with self._phase("rollout", timer):
            self.buffer.begin(self.version)
            metrics.mean("queue/ready_frac", self.buffer.num_ready, self.buffer.num_waiting)
            episodes, replaced = await self.buffer.take(step)
            groups = gathered(episodes, replaced, self._least, metrics)
        with self._phase("reference", timer):
            references = await self._reference(groups)
        with self._phase("batch", timer):
            samples = self._samples(groups, references, metrics)
            plan = replace(self.plan, version=self.version)
            batches = self.build(samples, plan, _seed(self.config.seed, "batch", step))
        with self._phase("learn", timer):
            metrics.merge(await self.parts.learner.update(batches, step))
        values = metrics.values() | await self._publish(timer)
        if self.config.mode is not Mode.sync:
            self.buffer.begin(self.version)
        values |= await self._evaluate(step, timer)
        with self._phase("guards", timer):
            values |= await self.vitals()
        values |= timer.values()
        values["throughput/tokens_per_s"] = values["tokens/trained"] / values["time/step_s"]
        values |= self.guards.look(step, values)
        self.recorder.record(step, values, groups)
        self.progress.mark(f"step {step} is recorded")
        self.guards.enforce()
        return values

    def _phase(self, name: str, timer: PhaseTimer) -> AbstractContextManager[None]:
        self.recorder.phase(name)
        self.progress.enter(name)
        return timer.phase(name)

    async def _episode(self, prompt: Prompt, step: int) -> Episode:
        """Sample one group and score it as soon as it is complete."""
        settings = self.config.sampling
        sampling = Sampling(
            max_response_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=_seed(self.config.seed, prompt.id, step),
        )
        now = clock()
        asked_s = now()
        group = await self.parts.rollouts.generate(prompt, self.config.group_size, sampling)
        sampled_s = now()
        verdicts = await self.parts.verifiers.verify(prompt, group.trajectories)
        group = replace(group, asked_s=asked_s, sampled_s=sampled_s, scored_s=now())
        self.progress.mark(f"the episode of prompt {prompt.id} of step {step} ended")
        return scored(group, verdicts, self.config.reward.on_timeout)

    @property
    def _least(self) -> int:
        """How many trajectories a group needs to be compared within."""
        return 1 if self.config.advantage is Advantage.reinforce_baseline else 2

    async def _reference(self, groups: Sequence[Group]) -> list[tuple[float, ...] | None]:
        trajectories = trained(groups)
        if self.parts.reference is None:
            return [None] * len(trajectories)
        return list(await self.parts.reference.logprobs(trajectories))

    def _samples(
        self,
        groups: Sequence[Group],
        references: Sequence[tuple[float, ...] | None],
        metrics: Metrics,
    ) -> list[Sample]:
        """Turn rewards into advantages and note what the batch looks like."""
        trajectories = trained(groups)
        rewards = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
        group_ids = torch.tensor([i for i, g in enumerate(groups) for _ in g.trained])
        self._note_batch(groups, trajectories, rewards, metrics)
        rewards = rewards - self._kl_in_reward(trajectories, references)
        values = advantages.compute(
            self.config.advantage.value,
            rewards,
            group_ids,
            normalize=self.config.normalize_advantages,
        )
        return [
            Sample(trajectory=trajectory, advantage=advantage, ref_logprobs=reference)
            for trajectory, advantage, reference in zip(
                trajectories, values.tolist(), references, strict=True
            )
        ]

    def _kl_in_reward(
        self,
        trajectories: Sequence[Trajectory],
        references: Sequence[tuple[float, ...] | None],
    ) -> torch.Tensor:
        """Return each trajectory's KL penalty where the recipe takes it from the reward."""
        penalties = torch.zeros(len(trajectories), dtype=torch.float64)
        if self.config.kl.where.value != "reward":
            return penalties
        for index, (trajectory, reference) in enumerate(zip(trajectories, references, strict=True)):
            if reference is not None:
                sampled = torch.tensor([trajectory.behavior_logprobs], dtype=torch.float64)
                frozen = torch.tensor([reference], dtype=torch.float64)
                mask = torch.tensor([trajectory.loss_mask])
                divergence = kl(self.config.kl.estimator.value, sampled, frozen, mask)
                penalties[index] = self.config.kl_coef * divergence.sum()
        return penalties

    def _note_batch(
        self,
        groups: Sequence[Group],
        trajectories: Sequence[Trajectory],
        rewards: torch.Tensor,
        metrics: Metrics,
    ) -> None:
        count = float(len(trajectories))
        metrics.mean("reward/mean", float(rewards.sum()), count)
        metrics.mean("reward/std", float(rewards.std()), 1.0)
        for group in filter(lambda group: group.trained, groups):
            silent = len({trajectory.reward for trajectory in group.trained}) == 1
            metrics.mean("group/zero_advantage_frac", float(silent), 1.0)
        for trajectory in trajectories:
            num_tokens = float(len(trajectory.token_ids))
            metrics.mean("response/length_mean", num_tokens, 1.0)
            metrics.mean("response/truncated_frac", float(trajectory.truncated), 1.0)
            oldest = min(trajectory.weight_versions, default=self.version)
            staleness = float(self.version - oldest)
            if staleness > self.config.staleness_bound:
                raise StalenessError(
                    f"a token of version {oldest} would be trained on at version {self.version}, "
                    f"and at most {self.config.staleness_bound} versions are allowed "
                    f"(mode={self.config.mode.value}, max_staleness): {trajectory.worker} did not "
                    "serve what was published"
                )
            metrics.mean("staleness/mean", staleness, 1.0)
            mixed = len(set(trajectory.weight_versions)) > 1
            metrics.mean("staleness/mixed_frac", float(mixed), 1.0)
            metrics.maximum("staleness/max", staleness)
            for name, value in trajectory.reward_parts.items():
                metrics.mean(f"reward/{name}", value, 1.0)

    async def _publish(self, timer: PhaseTimer) -> dict[str, float]:
        """Publish the learner's weights and make sure that every worker serves them."""
        with self._phase("publish", timer):
            values = dict(await self.parts.learner.publish(self.version + 1))
            self.version += 1
            for worker, version in (await self.parts.rollouts.weight_versions()).items():
                if version != self.version:
                    raise WeightSyncError(
                        f"{worker} serves weights of version {version} after version "
                        f"{self.version} was published: it missed a transfer"
                    )
        return values | {"clock/published_s": clock()()}

    async def _evaluate(self, step: int, timer: PhaseTimer) -> dict[str, float]:
        every = self.config.eval.every
        if not every or (step % every and step != self.config.steps):
            return {}
        with self._phase("eval", timer):
            return await self.evaluator.run()


def _seed(*parts: object) -> int:
    """Return a 31-bit seed that depends on all parts, the same in every process."""
    digest = blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
