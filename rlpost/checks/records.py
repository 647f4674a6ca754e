"""Checkpoints, trackers and evaluations."""

import re
from collections.abc import Iterator

from rlpost.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """Yield what could not be written, sent or measured."""
    yield from _checkpoint(config)
    yield from _tracking(config)


def _checkpoint(config: RunConfig) -> Iterator[str]:
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


def _tracking(config: RunConfig) -> Iterator[str]:
    if config.tracking.wandb.mode not in ("online", "offline"):
        yield f"tracking.wandb.mode must be online or offline, got {config.tracking.wandb.mode}"
    if config.eval.every and config.eval.num_prompts < 1:
        yield f"eval.num_prompts must be at least 1, got {config.eval.num_prompts}: or eval.every=0"
