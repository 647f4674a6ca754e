"""The step: sample, score, learn, publish. Written on roles alone; knows nothing of Ray."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from rlpost.batching import BatchPlan, RankBatch, Sample, batch_plan, build_batches
from rlpost.buffer import EpisodeBuffer, buffer_plan
from rlpost.choices import Advantage, Mode
from rlpost.episodes import Episode, gathered, scored, trained
from rlpost.errors import WeightSyncError
from rlpost.evaluation import Evaluator
from rlpost.guards import Guards
from rlpost.metrics import Metrics
from rlpost.roles import Learner, Prompts, Recorder, Reference, Rollouts, Verifiers
from rlpost.samples import References, take_samples
from rlpost.schema import RunConfig
from rlpost.stalls.progress import Progress
from rlpost.timing import PhaseTimer, clock
from rlpost.types import Group, Prompt, Sampling


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
        self.plan = batch_plan(config, parts.learner.num_ranks)

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
            samples = take_samples(groups, references, self.config, self.version, metrics)
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

    async def _reference(self, groups: Sequence[Group]) -> References:
        trajectories = trained(groups)
        if self.parts.reference is None:
            return [None] * len(trajectories)
        return await self.parts.reference.logprobs(trajectories)

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
