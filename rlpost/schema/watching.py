"""What is watched while a run goes on, and what is done about it."""

from dataclasses import dataclass

from rlpost.choices import Action, OnStall


@dataclass(kw_only=True)
class GuardsConfig:
    """What is watched for while a run goes on, and what happens then; see docs/guards.md."""

    steps: int = 5  # in a row, before a collapse or a lack of signal counts as one
    window: int = 40  # steps over which a trend is looked for
    first_ratio: Action = Action.stop
    max_first_ratio_gap: float | None = None  # mean |ratio - 1|; null: 0.01 in float32, else 0.1
    logprob_gap: Action = Action.stop
    max_logprob_gap: float | None = None  # mean |learner - vLLM| of a token on equal weights
    logprob_drift: Action = Action.warn
    max_logprob_drift: float = 3.0  # factor by which the gap may grow within a window
    constant_verifier: Action = Action.warn
    no_signal: Action = Action.warn
    reward_collapse: Action = Action.warn
    min_reward_frac: float = 0.25  # of the best step's mean reward
    entropy_collapse: Action = Action.warn
    min_entropy: float = 0.01  # nats a token
    truncation: Action = Action.warn
    max_truncated_frac: float = 0.5
    biased_sampling: Action = Action.warn
    eval_overlap: Action = Action.warn
    memory_growth: Action = Action.warn
    max_memory_growth_mib: float = 20.0  # a process, a step, through a window
    low_disk: Action = Action.checkpoint
    min_free_gib: float = 1.0


@dataclass(kw_only=True)
class SupervisionConfig:
    """What is done about actors that die or hang; see docs/faults.md."""

    max_restarts: int = 10  # of all actors together within `window_s`; one more ends the run
    window_s: float = 3600.0
    attempts: int = 3  # of one request on other actors, or of learner groups at a first step
    heartbeat_s: float = 10.0  # between questions for a sign of life
    heartbeat_timeout_s: float = 120.0  # without one an actor is killed


@dataclass(kw_only=True)
class WatchdogConfig:
    """What happens when nothing in a run advances any more; see docs/watchdog.md."""

    after_s: float = 300.0  # without progress of any kind; 0 watches nothing
    action: OnStall = OnStall.warn
