"""What a recipe makes of vLLM: the arguments of a rollout worker's engine."""

from typing import Any

from vllm.config.weight_transfer import WeightTransferConfig

from actors.intake import adapter_arguments
from actors.weights import engine_name
from rlpost.placing.sharing import shared_ranks, weight_backend
from rlpost.schema import RunConfig


def engine_arguments(config: RunConfig, worker: int, model_folder: str) -> dict[str, Any]:
    """Return the arguments of the engine of a rollout worker."""
    rollout = config.rollout
    backend = weight_backend(config, worker)
    return {
        "model": model_folder,
        "dtype": (rollout.dtype or config.model.dtype).value,
        "max_model_len": config.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "pipeline_parallel_size": rollout.pipeline_parallel_size,
        # Left to itself, vLLM would look for its GPUs in Ray, which has given them all away.
        "distributed_executor_backend": "mp" if rollout.num_ranks > 1 else "uni",
        "enforce_eager": rollout.enforce_eager,
        "seed": config.seed,
        "trust_remote_code": config.model.trust_remote_code,
        "generation_config": "vllm",  # nothing but our own Sampling shapes the distribution
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from
        "enable_prefix_caching": True,
        "weight_transfer_config": WeightTransferConfig(backend=engine_name(backend)),
        "worker_extension_cls": "actors.weights.WorkerExtension",
        **adapter_arguments(config.model.lora),
        **_memory(config, worker),
    }


def _memory(config: RunConfig, worker: int) -> dict[str, Any]:
    rollout = config.rollout
    if rollout.num_gpus:
        return {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "enable_sleep_mode": bool(shared_ranks(config, worker)),
        }
    return {
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
        # A prompt prefilled in pieces makes vLLM rewind a seeded CPU generator, which cannot.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, config.max_model_len),
    }
