"""The real controller on a modelled cluster, for some steps of virtual time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlpost.controller import Controller, Parts
from rlpost.evaluation import Evaluator
from rlpost.schema import RunConfig
from rlpost.simulation.clock import run, virtual_loop
from rlpost.simulation.engine import Work, difference
from rlpost.simulation.learning import Driver, SimulatedLearner, SimulatedReference
from rlpost.simulation.rates import Rates, Shapes
from rlpost.simulation.sampling import SimulatedPrompts, SimulatedRollouts, SimulatedVerifiers
from rlpost.types import Group

Progress = Callable[[int, float], None]
Record = Callable[[int, dict[str, float], Sequence[Group]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the parts had done at a moment of virtual time."""

    now_s: float
    engines: tuple[Work, ...]
    learner_s: float
    verifiers_s: float
    reference_s: float
    driver_s: float


@dataclass(slots=True, kw_only=True)
class Simulation:
    """What a simulation saw: each step's metrics, how old trained trajectories were, and work.

    `ages` counts trajectories by staleness; it and `work`, of each engine, are of the steps after
    the warm-up, which lasted `seconds` of virtual time.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    ages: dict[int, int] = field(default_factory=dict)
    start: Snapshot
    end: Snapshot

    @property
    def work(self) -> list[Work]:
        """The work of each engine after the warm-up."""
        pairs = zip(self.end.engines, self.start.engines, strict=True)
        return [difference(end, start) for end, start in pairs]


class _Recorder:
    """Keeps metrics and ages, and spends what writing them would."""

    def __init__(self, driver: Driver, num_skipped: int, record: Record | None) -> None:
        self.driver = driver
        self.also = record
        self.num_skipped = num_skipped
        self.steps: list[dict[str, float]] = []
        self.ages: dict[int, int] = {}

    def phase(self, name: str) -> None:
        """Show nothing."""

    def record(self, step: int, values: dict[str, float], groups: Sequence[Group]) -> None:
        """Keep one step."""
        self.driver.spend(self.driver.rates.between_steps_s)
        if self.also is not None:
            self.also(step, values, groups)
        self.steps.append({"step": float(step), **values})
        if step <= self.num_skipped:
            return
        for group in groups:
            for trajectory in group.trained:
                age = step - 1 - trajectory.weight_versions[0]  # versions only rise
                self.ages[age] = self.ages.get(age, 0) + 1


def simulate(
    config: RunConfig,
    rates: Rates,
    shapes: Shapes,
    *,
    num_skipped: int,
    progress: Progress | None = None,
    record: Record | None = None,
) -> Simulation:
    """Run `config.steps` steps of a recipe; the first `num_skipped` are warm-up.

    `progress` is told of each step and of the virtual time at its end; `record` is given what a
    real run would write to disk.
    """
    return run(_simulate(config, rates, shapes, num_skipped, progress, record))


async def _simulate(
    config: RunConfig,
    rates: Rates,
    shapes: Shapes,
    num_skipped: int,
    progress: Progress | None,
    record: Record | None,
) -> Simulation:
    rollouts = SimulatedRollouts(config, rates)
    verifiers = SimulatedVerifiers(config, rates)
    learner = SimulatedLearner(config, rates, rollouts)
    reference = SimulatedReference(rates) if config.kl_coef > 0 else None
    driver = Driver(rates)
    recorder = _Recorder(driver, num_skipped, record)
    parts = Parts(
        prompts=SimulatedPrompts(shapes, config, config.seed),
        rollouts=rollouts,
        verifiers=verifiers,
        learner=learner,
        reference=reference,
    )
    held_out = SimulatedPrompts(shapes, config, config.seed + 1).draw(config.eval.num_prompts)
    evaluator = Evaluator(
        "simulated", held_out, rollouts, verifiers, config.eval, config.sampling.max_response_tokens
    )
    controller = Controller(config, parts, evaluator, recorder, driver.build_batches)

    def snapshot() -> Snapshot:
        return Snapshot(
            now_s=virtual_loop().time(),
            engines=tuple(engine.work() for engine in rollouts.engines),
            learner_s=learner.busy_s,
            verifiers_s=verifiers.busy_s,
            reference_s=reference.busy_s if reference else 0.0,
            driver_s=driver.busy_s,
        )

    try:
        await controller.start()
        start = snapshot()
        for step in range(1, config.steps + 1):
            await controller.step(step)
            if step == num_skipped:
                start = snapshot()
            if progress is not None:
                progress(step, virtual_loop().time())
        return Simulation(steps=recorder.steps, ages=recorder.ages, start=start, end=snapshot())
    finally:
        await controller.close()
