"""Numbers that make sense only above or below others."""

from collections.abc import Iterator

from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what is too small or too large."""
    yield from _counts(config)
    yield from _amounts(config)
    yield from _bounds(config)


def _counts(config: RunConfig) -> Iterator[str]:
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


def _amounts(config: RunConfig) -> Iterator[str]:
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


def _bounds(config: RunConfig) -> Iterator[str]:
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
    if config.watchdog.after_s < 0:
        yield f"watchdog.after_s must be 0 (never) or more, got {config.watchdog.after_s}"
