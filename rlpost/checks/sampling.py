"""How responses are drawn, and whether they fit the context."""

from collections.abc import Iterator

from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what would bias samples, or cut them off."""
    yield from _distribution(config)
    yield from _context(config)


def _distribution(config: RunConfig) -> Iterator[str]:
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


def _context(config: RunConfig) -> Iterator[str]:
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
