"""What the policy is asked: prompts, data, and how responses are drawn and evaluated."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class TaskConfig:
    """Where prompts and verdicts come from; `kind` is `reasoning_gym`, `dataset` or `custom`."""

    kind: str = "???"
    name: str | None = None  # the reasoning-gym generator, or a label
    path: str | None = None  # custom: package.module:function
    parameters: dict[str, Any] = field(default_factory=dict)
    verifier: str = "???"  # reasoning_gym | math | exact | package.module:function
    prompt_template: str = "{question}"  # {question}, and {any field} of the items' metadata
    system_prompt: str | None = None
    chat_template: bool = False  # render prompts through the tokenizer's chat template


@dataclass(kw_only=True)
class DataConfig:
    """The data set of a `dataset` task: a file, a folder of files, or a hub name."""

    path: str | None = None
    split: str = "train"
    eval_split: str = "test"
    question_column: str = "question"
    answer_column: str = "answer"
    worked_answer_column: str | None = None
    answer_pattern: str | None = None  # regular expression; group 1 of its last match is the answer
    num_train: int | None = None  # null: all
    shuffle: bool = True


@dataclass(kw_only=True)
class SamplingConfig:
    """How rollout responses are drawn while training."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    allow_biased: bool = False  # permit top_p < 1 or top_k > 0, which bias vLLM's logprobs


@dataclass(kw_only=True)
class EvalConfig:
    """Greedy (temperature 0) or sampled accuracy on held-out prompts; `every=0` is never."""

    every: int = 10
    num_prompts: int = 200
    num_samples: int = 1
    temperature: float = 0.0
    success_reward: float = 1.0  # a response counts as right from this reward on
