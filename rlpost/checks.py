"""Combinations that no machine can run, refused before anything starts."""

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rlpost.choices import (
    Advantage,
    Correction,
    LoraTransfer,
    Offload,
    OldLogprobs,
    Reduction,
    WeightBackend,
)
from rlpost.errors import ConfigError
from rlpost.placing import sharing
from rlpost.placing.fitting import needed, terms
from rlpost.placing.seats import ROLES, seats
from rlpost.schema import RunConfig

Problems = Iterator[str]
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # vLLM 0.32
MAX_ADAPTER_RANK = 512  # vLLM 0.32


def check(config: RunConfig) -> None:
    """Raise ConfigError for the first impossible combination."""
    for rule in RULES:
        for problem in rule(config):
            raise ConfigError(problem)


def _positive(config: RunConfig) -> Problems:
    counts = {
        "steps": config.steps,
        "prompts_per_step": config.prompts_per_step,
        "group_size": config.group_size,
        "epochs": config.epochs,
        "minibatches": config.minibatches,
        "rollout.num_workers": config.rollout.num_workers,
        "rollout.tensor_parallel_size": config.rollout.tensor_parallel_size,
        "rollout.pipeline_parallel_size": config.rollout.pipeline_parallel_size,
        "rollout.max_num_seqs": config.rollout.max_num_seqs,
        "reward.num_workers": config.reward.num_workers,
        "reward.num_processes": config.reward.num_processes,
        "learner.num_ranks": config.learner.num_ranks,
        "learner.micro_batch_size": config.learner.micro_batch_size,
        "supervision.attempts": config.supervision.attempts,
        "sampling.max_prompt_tokens": config.sampling.max_prompt_tokens,
        "sampling.max_response_tokens": config.sampling.max_response_tokens,
    }
    for name, value in counts.items():
        if value < 1:
            yield f"{name} must be at least 1, got {value}"
    amounts = {
        "learner.learning_rate": config.learner.learning_rate,
        "reward.timeout_s": config.reward.timeout_s,
        "rollout.kv_cache_gib": config.rollout.kv_cache_gib,
        "supervision.window_s": config.supervision.window_s,
        "supervision.heartbeat_s": config.supervision.heartbeat_s,
        "supervision.heartbeat_timeout_s": config.supervision.heartbeat_timeout_s,
    }
    for name, value in amounts.items():
        if not value > 0:
            yield f"{name} must be positive, got {value}"
    budget, longest = config.learner.micro_batch_tokens, config.max_model_len
    if budget is not None and budget < longest:
        yield (
            f"learner.micro_batch_tokens={budget} must hold the longest sequence of {longest} "
            "tokens (sampling.max_prompt_tokens + sampling.max_response_tokens): raise it, or use "
            "null for micro-batches of learner.micro_batch_size sequences"
        )
    least, most = config.rollout.min_workers, config.rollout.num_workers
    if least is not None and not 1 <= least <= most:
        yield f"rollout.min_workers={least} must be from 1 to rollout.num_workers={most}"
    if config.supervision.max_restarts < 0:
        yield (
            "supervision.max_restarts must be 0 (the first loss ends the run) or more, got "
            f"{config.supervision.max_restarts}"
        )
    if config.kl_coef < 0:
        yield f"kl_coef must be 0 or more, got {config.kl_coef}: 0 switches the penalty off"


def _batch(config: RunConfig) -> Problems:
    if config.group_size < 2 and config.advantage is not Advantage.reinforce_baseline:
        yield (
            f"group_size={config.group_size} leaves advantage={config.advantage.value} nothing to "
            "compare with: use group_size of 2 or more"
        )
    batch = config.prompts_per_step * config.group_size
    cuts = config.minibatches * config.learner.num_ranks
    if batch % cuts:
        yield (
            f"prompts_per_step={config.prompts_per_step} x group_size={config.group_size} = "
            f"{batch} trajectories must be divisible by minibatches={config.minibatches} x "
            f"learner.num_ranks={config.learner.num_ranks} = {cuts}"
        )
    warm = config.warmstart
    if warm.steps and warm.batch_size % config.learner.num_ranks:
        yield (
            f"warmstart.batch_size={warm.batch_size} must be divisible by "
            f"learner.num_ranks={config.learner.num_ranks}"
        )


def _scheduling(config: RunConfig) -> Problems:
    factor, most = config.oversampling, config.staleness_bound + 1
    if config.max_staleness < 0:
        yield f"max_staleness must be 0 or more, got {config.max_staleness}: 0 samples as sync does"
    if factor is not None and not 1 < factor <= most:
        yield (
            f"oversampling={factor:g} must be above 1 and at most {most}, which is max_staleness + "
            f"1 in mode=async and 1 in mode=sync (here mode={config.mode.value}): what is left "
            "over is trained on in a later step; raise max_staleness, or use null"
        )
    if config.max_replacements < 0:
        yield f"max_replacements must be 0 (none) or more, got {config.max_replacements}"
    if config.max_replacements and config.group_size < 2:
        yield (
            f"max_replacements={config.max_replacements} replaces groups whose rewards are all "
            "equal, and group_size=1 leaves no other: use max_replacements=0"
        )


def _sampling(config: RunConfig) -> Problems:
    sampling = config.sampling
    if not sampling.temperature > 0:
        yield (
            f"sampling.temperature must be positive while training, got {sampling.temperature}: "
            "greedy samples of a group are all alike; eval.temperature=0 is for evaluation"
        )
    if (sampling.top_p < 1 or sampling.top_k > 0) and not sampling.allow_biased:
        yield (
            f"sampling.top_p={sampling.top_p} and sampling.top_k={sampling.top_k} make the "
            "sampled distribution differ from the learner's: use top_p=1 and top_k=0, or accept "
            "the bias with sampling.allow_biased=true"
        )


def _context(config: RunConfig) -> Problems:
    sampling, longest = config.sampling, config.rollout.max_model_len
    needed = sampling.max_prompt_tokens + sampling.max_response_tokens
    arithmetic = (
        f"sampling.max_prompt_tokens={sampling.max_prompt_tokens} + "
        f"sampling.max_response_tokens={sampling.max_response_tokens} = {needed}"
    )
    if longest is not None and longest < needed:
        yield f"rollout.max_model_len={longest} is shorter than {arithmetic}: raise it, or use null"
    positions = config.model.scratch.max_position_embeddings
    if config.model.path is None and positions < config.max_model_len:
        yield f"model.scratch.max_position_embeddings={positions} is below {arithmetic}: raise it"


def _model(config: RunConfig) -> Problems:
    path, scratch, lora = config.model.path, config.model.scratch, config.model.lora
    if path is not None and path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            yield f"model.path={path}: no such model folder (config.json is not in it)"
    if path is None and scratch.hidden_size % scratch.num_heads:
        yield (
            f"model.scratch.hidden_size={scratch.hidden_size} must be divisible by "
            f"model.scratch.num_heads={scratch.num_heads}"
        )
    if path is None and scratch.num_heads % scratch.num_kv_heads:
        yield (
            f"model.scratch.num_heads={scratch.num_heads} must be divisible by "
            f"model.scratch.num_kv_heads={scratch.num_kv_heads}"
        )
    size = scratch.hidden_size // scratch.num_heads
    if path is None and config.rollout.num_gpus == 0 and size not in CPU_HEAD_SIZES:
        yield (
            f"model.scratch.hidden_size={scratch.hidden_size} / model.scratch.num_heads="
            f"{scratch.num_heads} = {size} and vLLM's CPU attention has {CPU_HEAD_SIZES}: change "
            "either"
        )
    if lora.rank < 0:
        yield f"model.lora.rank must be 0 (train all weights) or more, got {lora.rank}"
    if lora.transfer is LoraTransfer.adapter and not 1 <= lora.rank <= MAX_ADAPTER_RANK:
        yield (
            "model.lora.transfer=adapter needs model.lora.rank from 1 to "
            f"{MAX_ADAPTER_RANK}, got {lora.rank}: set the rank, or use merged"
        )


def _objective(config: RunConfig) -> Problems:
    correction = config.correction
    if not 0 < correction.low < correction.high < math.inf:
        yield (
            f"correction.low={correction.low} and correction.high={correction.high} must be "
            "positive, and low the smaller: try 0.5 and 2"
        )
    if not 0 < correction.cap < math.inf:
        yield f"correction.cap must be positive and finite, got {correction.cap}: try 2"
    behavior = config.old_logprobs is OldLogprobs.behavior
    if config.staleness_bound and not behavior and correction.kind is Correction.none:
        yield (
            f"mode=async with max_staleness={config.max_staleness} trains on samples of older "
            "weights, and nothing corrects for that: use old_logprobs=behavior, or name a "
            "correction: correction.kind=tis"
        )
    if behavior and correction.kind is not Correction.none:
        yield (
            f"old_logprobs=behavior lets the ratio start from vLLM, so correction.kind="
            f"{correction.kind.value} would correct nothing: use correction.kind=none, or "
            "old_logprobs=recompute"
        )
    if config.normalize_advantages and config.advantage is not Advantage.reinforce_baseline:
        yield (
            "normalize_advantages=true is for advantage=reinforce_baseline, got "
            f"advantage={config.advantage.value}: set it to false"
        )
    if config.objective.name == "custom":
        from rlpost.objectives import build_from

        build_from(config.objective)


def _learner(config: RunConfig) -> Problems:
    learner = config.learner
    if learner.zero_stage not in range(4):
        yield f"learner.zero_stage must be 0, 1, 2 or 3, got {learner.zero_stage}"
    if learner.offload_optimizer is Offload.cpu and learner.zero_stage == 0:
        yield "learner.offload_optimizer=cpu needs learner.zero_stage of 1 or more, got 0"
    if learner.offload_parameters is Offload.cpu and learner.zero_stage != 3:
        yield (
            f"learner.offload_parameters=cpu needs learner.zero_stage=3, got {learner.zero_stage}"
        )
    if config.reduction is Reduction.constant_length and config.sampling.max_response_tokens < 1:
        yield "reduction=constant_length needs sampling.max_response_tokens of 1 or more"


def _devices(config: RunConfig) -> Problems:
    """Compare what the actors ask for with this machine, when Ray is started on it."""
    if config.ray.address is not None:
        return
    if config.ray.nodes:
        yield (
            f"ray.nodes=[{','.join(config.ray.nodes)}] are those of a cluster, and ray.address is "
            "not set: set it, or leave ray.nodes out"
        )
    placed = seats(config, ROLES)
    cores = config.ray.num_cpus or os.cpu_count() or 1
    there = config.ray.num_gpus if config.ray.num_gpus is not None else num_gpus()
    if (gpus := needed(placed, "GPU")) > there:
        yield (
            f"the actors need {gpus:g} GPUs ({terms(placed, 'GPU')}) and this machine has {there}: "
            "ask for less, or set ray.address to a cluster"
        )
    if (cpus := needed(placed, "CPU")) > cores + 1e-6:
        yield (
            f"the actors need {cpus:g} CPUs ({terms(placed, 'CPU')}) and this machine has {cores}: "
            "lower <role>.num_cpus (it reserves, it does not limit), or use fewer ranks or workers"
        )


def _engine(config: RunConfig) -> Problems:
    rollout = config.rollout
    if rollout.num_gpus and max(1.0, rollout.num_gpus) != rollout.num_ranks:
        yield (
            f"rollout.num_gpus={rollout.num_gpus:g} must be rollout.tensor_parallel_size="
            f"{rollout.tensor_parallel_size} x rollout.pipeline_parallel_size="
            f"{rollout.pipeline_parallel_size} = {rollout.num_ranks}: an engine has a process on "
            "each of its GPUs"
        )


def num_gpus() -> int:
    """Return this machine's GPUs."""
    return sum(
        1 for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()
    )


def _weights(config: RunConfig) -> Problems:
    backend, num_gpus = config.weights.backend, config.rollout.num_gpus
    if backend in (WeightBackend.nccl, WeightBackend.ipc) and not num_gpus:
        yield f"weights.backend={backend.value} needs GPUs and rollout.num_gpus=0: use shm or auto"
    if backend is WeightBackend.shm and num_gpus:
        yield f"weights.backend=shm is for CPU and rollout.num_gpus={num_gpus:g}: use auto"


def _task(config: RunConfig) -> Problems:
    if config.task.kind not in ("reasoning_gym", "dataset", "custom"):
        yield (
            f"task.kind={config.task.kind}: no such kind; available: reasoning_gym, dataset, custom"
        )
    verifier = config.task.verifier
    if verifier not in ("reasoning_gym", "math", "exact") and ":" not in verifier:
        yield (
            f"task.verifier={verifier}: no such verifier; available: reasoning_gym, math, exact, "
            "or your own as package.module:function"
        )
    if not re.search(r"\{\w+\}", config.task.prompt_template):
        yield (
            f"task.prompt_template={config.task.prompt_template!r} must contain {{question}}, or "
            "another field of the task's items"
        )
    if config.task.system_prompt is not None and not config.task.chat_template:
        yield (
            "task.system_prompt has no place without task.chat_template=true: set that, or put the "
            "text into task.prompt_template"
        )
    if config.task.kind == "dataset":
        from rlpost.tasks.files import check_columns, check_pattern, read_rows, split_file

        check_pattern(config.data)
        for split in (config.data.split, config.data.eval_split):
            if split_file(config.data, split) is not None:
                rows = read_rows(config.data, split, limit=1)
                if not rows:
                    yield f"data.path={config.data.path}: split {split} is empty"
                check_columns(config.data, rows[0])
        if config.warmstart.steps and config.data.worked_answer_column is None:
            yield (
                f"warmstart.steps={config.warmstart.steps} needs data.worked_answer_column, which "
                "is null: name the column, or set warmstart.steps=0"
            )


def _checkpoint(config: RunConfig) -> Problems:
    checkpoint = config.checkpoint
    if checkpoint.every < 0:
        yield f"checkpoint.every must be 0 (none) or more, got {checkpoint.every}"
    if checkpoint.keep < 1:
        yield f"checkpoint.keep must be at least 1, got {checkpoint.keep}: use checkpoint.every=0"
    if checkpoint.url is not None and "://" in checkpoint.url:
        from fsspec import available_protocols

        protocol = re.split("::|://", checkpoint.url)[0]
        if protocol not in available_protocols():
            yield (
                f"checkpoint.url={checkpoint.url}: fsspec knows no protocol {protocol}; it knows "
                f"{', '.join(sorted(available_protocols()))}"
            )


def _tracking(config: RunConfig) -> Problems:
    if config.tracking.wandb.mode not in ("online", "offline"):
        yield f"tracking.wandb.mode must be online or offline, got {config.tracking.wandb.mode}"
    if config.eval.every and config.eval.num_prompts < 1:
        yield f"eval.num_prompts must be at least 1, got {config.eval.num_prompts}: or eval.every=0"


def _watchdog(config: RunConfig) -> Problems:
    if config.watchdog.after_s < 0:
        yield f"watchdog.after_s must be 0 (never) or more, got {config.watchdog.after_s}"


RULES: tuple[Callable[[RunConfig], Problems], ...] = (
    _positive,
    _batch,
    _scheduling,
    _objective,
    _sampling,
    _context,
    _model,
    _learner,
    _weights,
    sharing.problems,
    _engine,
    _devices,
    _task,
    _checkpoint,
    _tracking,
    _watchdog,
)
