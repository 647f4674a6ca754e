"""What a learner rank computes, without knowing who drives it: logprobs, loss, metrics."""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlpost.batching import MicroBatch
from rlpost.choices import Correction, Dtype, LrSchedule, OldLogprobs
from rlpost.corrections import correction_weights
from rlpost.errors import ConfigError
from rlpost.kl import kl
from rlpost.logprobs import token_logprobs
from rlpost.metrics import Metrics
from rlpost.objective_configs import objective_configs
from rlpost.objectives import ObjectiveInputs
from rlpost.schema import CorrectionConfig, ObjectiveConfig, RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of training with one objective and one learning-rate schedule.

    `num_updates` is the number of optimiser updates that the schedule spans.
    """

    name: str
    seed: int
    objective: ObjectiveConfig
    temperature: float
    kl_coef: float
    kl_estimator: str
    correction: CorrectionConfig
    old_logprobs: OldLogprobs
    epochs: int
    learning_rate: float
    lr_schedule: LrSchedule
    warmup_updates: int
    num_updates: int
    num_steps: int


def zero_stage(config: RunConfig) -> int:
    """Return the ZeRO stage that DeepSpeed is given.

    It adds gradients of bfloat16 up in float32 with ZeRO 1 and more only.
    """
    return config.learner.zero_stage or int(config.model.dtype is Dtype.bfloat16)


def training_phase(config: RunConfig) -> Phase:
    """Return the reinforcement-learning phase of a run."""
    in_loss = config.kl.where.value == "loss"
    return Phase(
        name="train",
        seed=config.seed,
        objective=config.objective,
        temperature=config.sampling.temperature,
        kl_coef=config.kl_coef if in_loss else 0.0,
        kl_estimator=config.kl.estimator.value,
        correction=config.correction,
        old_logprobs=config.old_logprobs,
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
        seed=config.seed,
        objective=objective_configs["reinforce"](),
        temperature=1.0,
        kl_coef=0.0,
        kl_estimator="k3",
        correction=CorrectionConfig(),
        old_logprobs=OldLogprobs.recompute,
        epochs=1,
        learning_rate=warmstart.learning_rate,
        lr_schedule=warmstart.lr_schedule,
        warmup_updates=warmstart.warmup_updates,
        num_updates=warmstart.steps,
        num_steps=warmstart.steps,
    )


class TokenPolicy(nn.Module):
    """A causal language model that answers with the logprobs of given tokens.

    The LM head computes logprobs tile by tile inside its own `forward`, so that DeepSpeed
    gathers a sharded head for it as for any other module. With `packing`, the sequences go through
    the model end to end in one row, each with positions of its own; results are the same.
    """

    def __init__(self, model: Any, temperature: float, *, packing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.packing = packing
        head = model.get_output_embeddings()
        head.forward = MethodType(_head_logprobs, head)

    def forward(
        self, token_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return logprobs and entropy `[B, T]`, aligned with `token_ids`, 0 where not trained.

        Without a gradient there is no entropy (see `rlpost.logprobs`).
        """
        decoder = getattr(self.model, self.model.base_model_prefix)
        if self.packing:
            hidden = _packed(decoder, token_ids, attention_mask)
        else:
            # No mask: padding stands on the right, where nothing that counts looks, and plain
            # causal attention has the faster kernels.
            hidden = decoder(input_ids=token_ids, use_cache=False).last_hidden_state
        head = self.model.get_output_embeddings()
        return head(hidden, token_ids, loss_mask, self.temperature)

    @torch.no_grad()
    def check_packing(self) -> None:
        """Compare packed and padded results on a small batch.

        Raises:
            ConfigError: they differ: the model's attention does not see where a sequence begins.
        """
        device = next(self.parameters()).device
        ids = (torch.arange(14, device=device).reshape(2, 7) * 5 + 1) % 13
        attention_mask = torch.ones_like(ids, dtype=torch.bool)
        attention_mask[1, 4:] = False
        results = []
        for self.packing in (False, True):
            results.append(self(ids, attention_mask, attention_mask)[0])
        gap = float((results[1] - results[0]).abs().max())
        narrow = next(self.parameters()).dtype != torch.float32
        if not gap < (0.1 if narrow else 1e-4):
            raise ConfigError(
                f"learner.packing=true changes this model's logprobs by up to {gap:.2g}: its "
                "attention does not tell packed sequences apart; use learner.packing=false"
            )


def _packed(decoder: Any, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return hidden states `[B, T, H]`, 0 where padded, of sequences that share one row."""
    positions = attention_mask.cumsum(-1) - 1
    states = decoder(
        input_ids=token_ids[attention_mask][None],
        position_ids=positions[attention_mask][None],
        use_cache=False,
    ).last_hidden_state[0]
    hidden = states.new_zeros(*token_ids.shape, states.shape[-1])
    return hidden.masked_scatter(attention_mask[..., None], states)


def _head_logprobs(
    head: nn.Linear, hidden: Tensor, token_ids: Tensor, loss_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor | None]:
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
    metrics = Metrics()
    weights = batch.weights * _corrections(old_logprobs, batch, phase.correction, metrics)
    output = objective(
        ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            advantages=batch.advantages,
            loss_mask=batch.loss_mask,
            weights=weights,
        ),
        step=step,
    )
    loss = output.loss
    metrics.merge(output.metrics)
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


def _corrections(
    old_logprobs: Tensor, batch: MicroBatch, config: CorrectionConfig, metrics: Metrics
) -> Tensor:
    """Return the tokens' off-policy corrections, and note what they did."""
    mask = batch.loss_mask
    corrections = correction_weights(
        config.kind.value,
        old_logprobs,
        batch.behavior_logprobs,
        mask,
        cap=config.cap,
        low=config.low,
        high=config.high,
    )
    if config.kind is not Correction.none:
        num_tokens = float(mask.sum())
        metrics.mean("correction/weight_mean", float(corrections.sum()), num_tokens)
        dropped = float((mask & (corrections == 0)).sum())
        metrics.mean("correction/dropped_frac", dropped, num_tokens)
    return corrections


def mismatch_metrics(old_logprobs: Tensor, batch: MicroBatch) -> Metrics:
    """Return how far the learner is from vLLM on tokens that its own weights have sampled."""
    metrics = Metrics()
    mask = batch.fresh
    gap = torch.where(mask, old_logprobs - batch.behavior_logprobs, 0.0)
    num_tokens = float(mask.sum())
    trained = torch.where(batch.loss_mask, old_logprobs - batch.behavior_logprobs, 0.0)
    lag = float(trained.abs().sum())
    metrics.mean("staleness/logprob_gap_mean", lag, float(batch.loss_mask.sum()))
    divergence = kl("k3", batch.behavior_logprobs, old_logprobs, mask)
    metrics.mean("mismatch/kl", float(divergence.sum()), num_tokens)
    metrics.mean("mismatch/logprob_gap_mean", float(gap.abs().sum()), num_tokens)
    if num_tokens:
        metrics.maximum("mismatch/logprob_gap_max", float(gap.abs().max()))
        metrics.maximum("mismatch/ratio_max", float(gap.clamp(max=40.0).exp().max()))
    return metrics


def first_ratio(logprobs: Tensor, old_logprobs: Tensor, batch: MicroBatch) -> Metrics:
    """Return how far ratios are from 1 before the step's first update, on its weights' tokens."""
    metrics = Metrics()
    gap = (logprobs - old_logprobs).clamp(max=40.0).exp().sub(1.0).abs()
    total = float(torch.where(batch.fresh, gap, 0.0).sum())
    metrics.mean("policy/first_ratio_gap", total, float(batch.fresh.sum()))
    return metrics
