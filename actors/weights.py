"""Weights into vLLM, on its own weight-transfer interface, and the proof of their arrival.

Three ways in: `shm` (ours: shared memory, one copy a host), vLLM's `nccl` and `ipc`. In each, the
learner fingerprints every tensor that it sends, the vLLM process fingerprints every tensor that it
loads, and the rollout worker serves only if the two agree name by name.

`register` is vLLM's plugin entry point: it makes the engines known in every vLLM process.
"""

import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from actors.ending import end_with_parent
from actors.fingerprint import fingerprint
from actors.intake import ADAPTER_ID
from actors.lending import Lender
from actors.notary import Notary
from rlpost.stalls.stack_signal import answer_signal


class FingerprintMixin:
    """Fingerprints what reaches the model's `load_weights`, whatever the transport."""

    model: Any

    def start_weight_update(self) -> None:
        """Forget the fingerprints of the update before."""
        self.fingerprints: dict[str, int] = {}
        super().start_weight_update()  # type: ignore[misc]  # the transport stands behind in the MRO

    def receive_weights(self, update_info: Any) -> None:
        """Receive one bucket, noting each tensor on its way into the model."""
        model = self.model
        load_weights = model.load_weights

        def load_and_note(weights: Iterable[tuple[str, Tensor]]) -> Any:
            with Notary(self.fingerprints) as notary:
                return load_weights(notary.noted(weights))

        model.load_weights = load_and_note
        try:
            super().receive_weights(update_info)  # type: ignore[misc]  # as above
        finally:
            del model.load_weights


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: each bucket names its file."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket: a file in shared memory, and where each tensor lies in it."""

    path: str
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class ShmTransport(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads the model from buckets that the learner writes to shared memory."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:  # noqa: ARG002 - vLLM's
        """Begin anew, with no file of a learner before."""
        self.lender = Lender()

    def start_weight_update(self) -> None:
        """Prepare vLLM's layer-by-layer reload of weights in checkpoint format."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Let vLLM process the layers that were loaded."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        # On CPU vLLM packs weights into each layer's kernel as they are loaded. A head tied to the
        # embedding is never loaded itself, and would go on with the packed weights of before.
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one bucket; unlike vLLM's own engines there is no accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Load the tensors of one bucket."""
        model: Any = self.model
        with self.lender.lend(update_info) as tensors:
            model.load_weights(tensors)

    def shutdown(self) -> None:
        """Let go of the learner's files."""
        self.lender = Lender()


class ShmEngine(FingerprintMixin, ShmTransport):
    """`shm` with fingerprints."""


class NcclEngine(FingerprintMixin, NCCLWeightTransferEngine):
    """vLLM's `nccl` with fingerprints."""


class IpcEngine(FingerprintMixin, IPCWeightTransferEngine):
    """vLLM's `ipc` with fingerprints."""


class WorkerExtension:
    """Extends vLLM's worker by calls that reach it through `collective_rpc`."""

    weight_transfer_engine: Any
    model_runner: Any
    model_config: Any
    load_config: Any

    def prepare_pipeline(self) -> None:
        """Make room for what comes from the ranks before, as vLLM itself does on GPUs only."""
        from vllm.distributed import get_pp_group

        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device="cpu"
            )

    def weight_fingerprints(self) -> dict[str, int]:
        """Return the fingerprints of the tensors that the last update loaded."""
        return self.weight_transfer_engine.fingerprints

    def base_fingerprints(self, dtype_name: str) -> dict[str, int]:
        """Return the fingerprints, in a dtype, of the files that vLLM loaded its model from."""
        from vllm.model_executor.model_loader import get_model_loader

        loader: Any = get_model_loader(self.load_config)
        model = self.model_runner.model
        dtype = getattr(torch, dtype_name)
        return {
            name: fingerprint(tensor.to(dtype))
            for name, tensor in loader.get_all_weights(self.model_config, model)
        }

    def start_adapter(self) -> None:
        """Begin a new adapter."""
        self.adapter: dict[str, Tensor] = {}

    def take_adapter(self, bucket: dict[str, Any]) -> None:
        """Copy some of its tensors out of shared memory."""
        with Lender().lend(ShmUpdateInfo(**bucket)) as tensors:
            self.adapter |= {name: tensor.clone() for name, tensor in tensors}

    def use_adapter(self, settings: dict[str, Any]) -> dict[str, int]:
        """Put the adapter in the place of the one before, and return its fingerprints."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        # Now: vLLM multiplies the scale into these very tensors.
        arrived = {name: fingerprint(tensor) for name, tensor in self.adapter.items()}
        held = self.model_runner.lora_manager
        adapter = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            self.adapter,
            PEFTHelper.from_dict(settings),
            device="cpu",
            dtype=held.lora_config.lora_dtype,
        )
        manager = held._adapter_manager  # noqa: SLF001 - vLLM itself only loads adapters from files
        manager.remove_adapter(ADAPTER_ID)
        manager.add_adapter(adapter)
        manager.activate_adapter(ADAPTER_ID)
        return arrived


ENGINES = {"rlpost_shm": ShmEngine, "rlpost_nccl": NcclEngine, "rlpost_ipc": IpcEngine}


def engine_name(backend: str) -> str:
    """Return the name under which a recipe's `weights.backend` is registered with vLLM."""
    return f"rlpost_{backend}"


def register() -> None:
    """Make the engines known to vLLM; called by vLLM in each of its processes."""
    answer_signal()
    if multiprocessing.parent_process() is not None:
        end_with_parent()
    for name, engine in ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:  # noqa: SLF001 - it has no query
            WeightTransferEngineFactory.register_engine(name, engine)
