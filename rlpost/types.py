"""What travels between the parts of rlpost; plain data, so that a verifier needs no torch.

The learner's tensors are in `rlpost.batching`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question of a task, with what its verifier needs.

    `id` is unique within the task and stable between runs; `answer` and `metadata` are the
    verifier's; `worked_answer` is the text to imitate in a warm start, where the task has one.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    answer: str | None = None
    worked_answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a response is drawn; `temperature=0` is greedy, `seed` makes one request repeatable."""

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier said: the reward, its named parts, and how the verification ended.

    `status` is `ok`, `timeout` or `error`; `reward` is None unless it is `ok`.
    """

    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    status: str = "ok"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sampled response to a prompt, exactly as the rollout worker produced it.

    `token_ids` follow `prompt_ids`; `loss_mask` is True where the policy chose the token;
    `behavior_logprobs` are those of the distribution sampled from; `weight_versions` name, token
    by token, the weights that sampled it. `dropped` is why it is not trained on, empty if it is.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    behavior_logprobs: tuple[float, ...]
    weight_versions: tuple[int, ...]
    text: str
    finish_reason: str
    worker: str = ""
    reward: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    dropped: str = ""

    def __post_init__(self) -> None:
        lengths = {
            len(self.token_ids),
            len(self.loss_mask),
            len(self.behavior_logprobs),
            len(self.weight_versions),
        }
        assert len(lengths) == 1, f"per-token fields of a trajectory differ in length: {lengths}"

    def scored(self, verdict: Verdict) -> Self:
        """Return this trajectory with the verdict's reward."""
        return replace(self, reward=verdict.reward, reward_parts=verdict.parts)

    @property
    def truncated(self) -> bool:
        """Whether the response was cut off by its length limit."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories sampled for one prompt.

    On the driver's clock, which counts seconds from no particular moment: it was asked for at
    `asked_s`, complete at `sampled_s`, and scored at `scored_s`; 0 where that is not known.
    """

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    asked_s: float = field(default=0.0, compare=False)
    sampled_s: float = field(default=0.0, compare=False)
    scored_s: float = field(default=0.0, compare=False)

    @property
    def trained(self) -> tuple[Trajectory, ...]:
        """Those that are not dropped."""
        return tuple(t for t in self.trajectories if not t.dropped)
