"""What a learner rank computes, without knowing who drives it: logprobs, loss, metrics."""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlpost.batching import MicroBatch
from rlpost.kl import kl
from rlpost.logprobs import token_logprobs
from rlpost.metrics import Metrics
from rlpost.objective_configs import objective_configs
from rlpost.objectives import ObjectiveInputs
from rlpost.schema import LrSchedule, ObjectiveConfig, RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of training with one objective and one learning-rate schedule.

    `num_updates` is the number of optimiser updates that the schedule spans.
    """

    name: str
    objective: ObjectiveConfig
    temperature: float
    kl_coef: float
    kl_estimator: str
    epochs: int
    learning_rate: float
    lr_schedule: LrSchedule
    warmup_updates: int
    num_updates: int
    num_steps: int


def training_phase(config: RunConfig) -> Phase:
    """Return the reinforcement-learning phase of a run."""
    in_loss = config.kl.where.value == "loss"
    return Phase(
        name="train",
        objective=config.objective,
        temperature=config.sampling.temperature,
        kl_coef=config.kl_coef if in_loss else 0.0,
        kl_estimator=config.kl.estimator.value,
        epochs=config.epochs,
        learning_rate=config.learner.learning_rate,
        lr_schedule=config.learner.lr_schedule,
        warmup_updates=config.learner.warmup_updates,
        num_updates=config.steps * config.epochs * config.minibatches,
        num_steps=config.steps,
    )


def warmstart_phase(config: RunConfig) -> Phase:
    """Return the supervised phase: `reinforce` with advantage 1 is the negative log-likelihood."""
    warmstart = config.warmstart
    return Phase(
        name="warmstart",
        objective=objective_configs["reinforce"](),
        temperature=1.0,
        kl_coef=0.0,
        kl_estimator="k3",
        epochs=1,
        learning_rate=warmstart.learning_rate,
        lr_schedule=warmstart.lr_schedule,
        warmup_updates=warmstart.warmup_updates,
        num_updates=warmstart.steps,
        num_steps=warmstart.steps,
    )


class TokenPolicy(nn.Module):
    """A causal language model that answers with the logprobs of given tokens.

    The LM head computes logprobs chunk by chunk inside its own `forward`, so that DeepSpeed
    gathers a sharded head for it as for any other module.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        head = model.get_output_embeddings()
        head.forward = MethodType(_head_logprobs, head)

    def forward(
        self, token_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logprobs and entropy `[B, T]`, aligned with `token_ids`, 0 where not trained."""
        decoder = getattr(self.model, self.model.base_model_prefix)
        hidden = decoder(
            input_ids=token_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        return head(hidden, token_ids, loss_mask, self.temperature)


def _head_logprobs(
    head: nn.Linear, hidden: Tensor, token_ids: Tensor, loss_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return token_logprobs(
        hidden,
        head.weight,
        token_ids,
        bias=head.bias,
        temperature=temperature,
        loss_mask=loss_mask,
    )


def policy_loss(
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    batch: MicroBatch,
    objective: Any,
    phase: Phase,
    step: int,
) -> tuple[Tensor, Metrics]:
    """Return a micro-batch's share of the minibatch loss, and its metrics."""
    output = objective(
        ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            advantages=batch.advantages,
            loss_mask=batch.loss_mask,
            weights=batch.weights,
        ),
        step=step,
    )
    loss, metrics = output.loss, output.metrics
    num_tokens = float(batch.loss_mask.sum())
    if phase.kl_coef > 0:
        assert batch.ref_logprobs is not None, "a KL penalty needs reference logprobs"
        divergence = kl(phase.kl_estimator, logprobs, batch.ref_logprobs, batch.loss_mask)
        loss = loss + phase.kl_coef * (divergence * batch.weights).sum()
        metrics.mean("policy/kl_ref", float(divergence.detach().sum()), num_tokens)
    metrics.mean("policy/entropy", float(entropy.detach().sum()), num_tokens)
    drift = kl("k3", old_logprobs, logprobs.detach(), batch.loss_mask)
    metrics.mean("policy/kl_old", float(drift.sum()), num_tokens)
    return loss, metrics


def mismatch_metrics(old_logprobs: Tensor, batch: MicroBatch) -> Metrics:
    """Return how far the learner is from vLLM on the weights that sampled the batch."""
    metrics = Metrics()
    mask = batch.loss_mask
    gap = torch.where(mask, old_logprobs - batch.behavior_logprobs, 0.0)
    num_tokens = float(mask.sum())
    divergence = kl("k3", batch.behavior_logprobs, old_logprobs, mask)
    metrics.mean("mismatch/kl", float(divergence.sum()), num_tokens)
    metrics.mean("mismatch/logprob_gap_mean", float(gap.abs().sum()), num_tokens)
    if num_tokens:
        metrics.maximum("mismatch/logprob_gap_max", float(gap.abs().max()))
        metrics.maximum("mismatch/ratio_max", float(gap.clamp(max=40.0).exp().max()))
    return metrics
