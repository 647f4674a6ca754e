"""One DeepSpeed rank of the learner group."""

import gc
import logging
import os
import random
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.doors import Address, Door, closed
from actors.network import address_of, interface_of, limit_waiting, use_interface
from actors.policy_source import Part, PolicySource
from actors.publish import Receiver
from actors.snapshot import Snapshots, restore
from actors.ways import Ways
from rlpost.batching import MicroBatch, RankBatch
from rlpost.checkpoints.manifest import FileEntry
from rlpost.choices import Dtype, Offload, OldLogprobs
from rlpost.guards.finite import FiniteWatch, check_norm
from rlpost.learning import (
    Phase,
    TokenPolicy,
    first_ratio,
    mismatch_metrics,
    policy_loss,
    zero_stage,
)
from rlpost.metrics import Metrics
from rlpost.models import load_policy, load_tokenizer, save_policy
from rlpost.objectives import build_from
from rlpost.paths import check_seen
from rlpost.placing.sharing import num_sharing
from rlpost.schema import RunConfig
from rlpost.stalls.stack_signal import answer_signal

log = logging.getLogger(__name__)


class LearnerRank:
    """Holds its part of the policy and of the optimiser.

    Use, on every rank alike: `open_door()` and `connect(...)` once; `load(folder, phase)` for each
    phase; then `update(batch, step)`, and `attach(receivers)` followed by `publish(version)` where
    rollout workers listen. `snapshot(url)`, then `written()`, and `export` write to disk;
    `restore(url)` after `load` continues from a snapshot.
    """

    def __init__(self, config: RunConfig, rank: int) -> None:
        answer_signal()
        # Both take long to import: it begins with the actor.
        import_module("deepspeed")
        import_module("transformers")

        self.config = config
        self.rank = rank
        self.name = f"learner-{rank}"
        self.engine: Any = None
        self.policy: Any = None
        self.phase: Phase | None = None
        self.ways: Ways | None = None
        self.door: Door | None = None
        self.meeting: socket.socket | None = None
        self.snapshots = Snapshots()

    def open_door(self) -> Address:
        """Choose the interface of the collectives, and let peers try to reach this rank by it."""
        import ray

        node = ray.util.get_node_ip_address()
        use_interface(self.config.ray.interface, node)
        chosen = self.config.ray.interface
        host = address_of(chosen) if chosen else node
        self.door = Door(host or node, chosen or interface_of(node))
        return self.door.address

    def closed(self, doors: Sequence[Address]) -> list[tuple[Address, str]]:
        """Return which peers cannot be reached from here, and why."""
        return closed(doors)

    def address(self) -> tuple[str, int]:
        """Return where the group will meet: this rank's address and a port held there."""
        import ray

        address = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.meeting = socket.create_server((address, 0), family=family)
        return address, self.meeting.getsockname()[1]

    def connect(self, address: str, port: int) -> None:
        """Join the process group of all ranks."""
        learner = self.config.learner
        os.environ.update(
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
            RANK=str(self.rank),
            WORLD_SIZE=str(learner.num_ranks),
            LOCAL_RANK="0",
        )
        torch.set_num_threads(learner.num_threads)
        import deepspeed

        if not learner.num_gpus:
            # Its reduction through shared memory would be compiled here, for minutes; gloo serves.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        limit_waiting(learner.collective_timeout_s)
        backend = "nccl" if learner.num_gpus else "gloo"
        # Left to itself, torch's store would listen on every interface of the machine.
        store = torch.distributed.TCPStore(
            address,
            port,
            learner.num_ranks,
            is_master=self.rank == 0,
            timeout=timedelta(seconds=learner.start_timeout_s),
            master_listen_fd=self.meeting.detach() if self.meeting else None,
        )
        torch.distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=learner.num_ranks
        )
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

    def check_run_dir(self, run_dir: str) -> None:
        """Refuse a run directory that this rank would write to, and nobody else would read."""
        check_seen(Path(run_dir), "run_dir")

    def load(self, folder: str, phase: Phase) -> None:
        """Load the policy from a folder, with a fresh optimiser and schedule for the phase."""
        import deepspeed
        import transformers

        check_seen(Path(folder), "run_dir or model.path")
        self._release()
        config = self.config
        random.seed(phase.seed)
        torch.manual_seed(phase.seed)
        self.policy = load_policy(config, folder)
        module = TokenPolicy(self.policy, phase.temperature, packing=config.learner.packing)
        settings = deepspeed_config(config)
        if config.learner.zero_stage == 3:
            shard(module, settings)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=phase.learning_rate,
            betas=(config.learner.adam_beta1, config.learner.adam_beta2),
            eps=config.learner.adam_eps,
            weight_decay=config.learner.weight_decay,
        )
        schedule = transformers.get_scheduler(
            "constant_with_warmup" if phase.lr_schedule.value == "constant" else phase.lr_schedule,
            optimizer,
            num_warmup_steps=phase.warmup_updates,
            num_training_steps=phase.num_updates,
        )
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=schedule,
            config=settings,
        )
        if config.learner.packing:
            module.check_packing()
        self.phase = phase
        self.watch = FiniteWatch(trained)
        self.objective = build_from(phase.objective)
        self._make_room()

    def _release(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
            self.engine = self.policy = self.ways = None
            gc.collect()

    def update(self, batch: RankBatch, step: int) -> Metrics:
        """Train on this rank's share of a step and return its metrics."""
        phase = self._phase()
        minibatches = [
            tuple(micro.to(self.engine.device) for micro in minibatch)
            for minibatch in batch.minibatches
        ]
        metrics = Metrics()
        # The first update's own forward pass is of the weights that the step starts from.
        several = phase.epochs * len(minibatches) > 1
        recompute = several and phase.old_logprobs is OldLogprobs.recompute
        old = [self._old_logprobs(m, metrics) for m in minibatches] if recompute else None
        for epoch in range(phase.epochs):
            for index, minibatch in enumerate(minibatches):
                first = epoch == index == 0
                self._backward(minibatch, old[index] if old else None, step, metrics, first=first)
                self._step(metrics, step)
        self._make_room()
        return metrics

    def _make_room(self) -> None:
        """Leave what is cached and not used to an engine that wakes up on this GPU."""
        if num_sharing(self.config):
            torch.cuda.empty_cache()

    def _old_logprobs(self, minibatch: Sequence[MicroBatch], metrics: Metrics) -> list[Tensor]:
        """Return the logprobs of the weights that the step starts from."""
        with torch.no_grad():
            old = [self._forward(micro)[0] for micro in minibatch]
        for logprobs, micro in zip(old, minibatch, strict=True):
            metrics.merge(mismatch_metrics(logprobs, micro))
        return old

    def _forward(self, micro: MicroBatch) -> tuple[Tensor, Any]:
        return self.engine(micro.token_ids, micro.attention_mask, micro.loss_mask)

    def _backward(
        self,
        minibatch: Sequence[MicroBatch],
        old: list[Tensor] | None,
        step: int,
        metrics: Metrics,
        *,
        first: bool,
    ) -> None:
        """Accumulate the minibatch's gradient over micro-batches and ranks.

        `first` says that the weights are those that the step starts from. Without `old`, the old
        policy is what the phase says: vLLM's, or this forward pass.
        """
        phase = self._phase()
        world_size = self.config.learner.num_ranks
        share = 1.0 / (len(minibatch) * world_size)
        for index, micro in enumerate(minibatch):
            self.engine.set_gradient_accumulation_boundary(index == len(minibatch) - 1)
            logprobs, entropy = self._forward(micro)
            if first and old is None:
                metrics.merge(mismatch_metrics(logprobs.detach(), micro))
            if phase.old_logprobs is OldLogprobs.behavior:
                old_logprobs = micro.behavior_logprobs
            else:
                old_logprobs = old[index] if old else logprobs.detach()
            loss, parts = policy_loss(
                logprobs, entropy, old_logprobs, micro, self.objective, phase, step
            )
            if first:
                metrics.merge(first_ratio(logprobs.detach(), old_logprobs, micro))
            # DeepSpeed averages gradients over ranks; our weights already make losses add.
            self.engine.backward(loss * world_size)
            self.watch.look(micro, logprobs, float(loss.detach()))
            metrics.merge(parts)
            metrics.mean("policy/loss", float(loss.detach()), share)
            metrics.sum("tokens/trained", float(micro.loss_mask.sum()))
            size, real = micro.attention_mask.numel(), float(micro.attention_mask.sum())
            processed = real if self.config.learner.packing else size
            metrics.mean("batch/padding_frac", processed - real, processed)

    def _step(self, metrics: Metrics, step: int) -> None:
        """Let the optimiser use the gradient, if it is one on every rank."""
        folder = Path(self.config.run_dir) / "nonfinite"
        self.watch.enforce(step, self.rank, folder, self._decode)
        norm = self._grad_norm_before_step()
        if norm is not None:
            check_norm(norm, step)
        learning_rate = self.engine.get_lr()[0]
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
            check_norm(norm, step)
        metrics.mean("policy/grad_norm", norm, 1.0)
        # Objectives differ in scale: over M(1) their norms compare.
        if scale := self.objective.on_policy_multiplier:
            metrics.mean("policy/grad_norm_scaled", norm / scale, 1.0)
        metrics.mean("policy/learning_rate", learning_rate, 1.0)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return load_tokenizer(self.config).decode(token_ids)

    def _grad_norm_before_step(self) -> float | None:
        """Return the norm before clipping where DeepSpeed does not keep it: without ZeRO."""
        if zero_stage(self.config) > 0:
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def pulse(self) -> None:
        """Give a sign of life."""

    def attach(self, receivers: Sequence[Receiver]) -> None:
        """Open the way to these rollout workers, and to no others."""
        alone = self.config.model.lora.by_itself
        source = self._source(Part.adapter if alone else Part.merged)
        adapted = self._adapted() if alone else None
        self.ways = Ways(self.config, receivers, source, self.rank, adapted)

    def _source(self, part: Part = Part.merged) -> PolicySource:
        return PolicySource(self.policy, self.config.weights.bucket_mib * 2**20, part)

    def _adapted(self) -> dict[str, Any]:
        """Return what proves to vLLM that it holds the weights that the adapter was made for."""
        base = self._source(Part.base)
        for _ in base.iter_groups():
            pass
        return {"dtype_name": self.config.model.dtype.value, "base": base.fingerprints}

    def publish(self, version: int) -> tuple[dict[str, float], dict[str, str]]:
        """Put the present weights into every rollout worker, proved; see `actors.ways`."""
        assert self.ways is not None, "attach() comes before publish()"
        return self.ways.publish(version)

    def snapshot(self, url: str) -> None:
        """Copy this rank's state into memory and begin to write it under `url`.

        Rank 0 writes the policy as a transformers folder too, into `export`.
        """
        state = self._whole()
        export = (lambda folder: self._save(state, folder)) if self.rank == 0 else None
        self.snapshots.take(self.engine, self.rank, url, export)

    def written(self) -> list[FileEntry] | None:
        """Return the files of the last snapshot, or None while they are being written."""
        return self.snapshots.written()

    def restore(self, url: str) -> None:
        """Continue from a snapshot: optimiser, schedule, weights and random numbers."""
        restore(self.engine, self.rank, self.config.learner.num_ranks, url)
        self._make_room()

    def export(self, folder: str) -> None:
        """Write the policy, merged and whole, as a transformers folder; rank 0 writes."""
        state = self._whole()
        if self.rank == 0:
            self._save(state, Path(folder))

    def _whole(self) -> dict[str, Tensor]:
        """Return a copy of the policy on rank 0, nothing on the others, which help to gather it."""
        state: dict[str, Tensor] = {}
        for names, tensors in self._source().iter_buckets():
            if self.rank == 0:
                state.update(
                    zip(names, (tensor.to("cpu", copy=True) for tensor in tensors), strict=True)
                )
        return state

    def _save(self, state: dict[str, Tensor], folder: Path) -> None:
        save_policy(self.policy, state, load_tokenizer(self.config), folder)

    def _phase(self) -> Phase:
        assert self.phase is not None, "load() comes before update()"
        return self.phase


def shard(module: torch.nn.Module, settings: Mapping[str, Any]) -> None:
    """Leave each rank its part of every tensor, one after the other.

    DeepSpeed itself would first put the whole policy on each rank's device, which it need not fit.
    """
    import deepspeed

    device = deepspeed.accelerator.get_accelerator().current_device_name()
    deepspeed.zero.Init(module=module, config_dict_or_path=settings)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Accumulation is ours (`set_gradient_accumulation_boundary`), so DeepSpeed's count is 1 and it
    divides by nothing. Gradients are added up in float32, in which as many micro-batches as one
    likes sum to the same.
    """
    learner = config.learner
    zero: dict[str, Any] = {"stage": zero_stage(config)}
    if learner.offload_optimizer is Offload.cpu:
        zero["offload_optimizer"] = {"device": "cpu"}
    if learner.offload_parameters is Offload.cpu:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": learner.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": zero,
        # Once a step it costs little; ZeRO 2 and 3 send each micro-batch's gradient, in its dtype.
        **({"communication_data_type": "fp32"} if zero["stage"] < 2 else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.model.dtype is Dtype.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }
