"""How a rollout worker takes weights into its vLLM: whole, or a LoRA adapter on weights it has."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from actors.fingerprint import check_arrival
from rlpost.errors import LostError
from rlpost.schema import LoraConfig, RunConfig

ADAPTER_ID = 1  # vLLM's number for the one adapter of a worker
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for


class Intake(Protocol):
    """Takes one update: `start`, `take` for each bucket, `finish`; `connect` comes once before."""

    async def connect(self, info: Mapping[str, Any]) -> None:
        """Prepare for the learner's updates."""
        ...

    async def start(self) -> None:
        """Begin an update."""
        ...

    async def take(self, bucket: Mapping[str, Any]) -> None:
        """Take one bucket."""
        ...

    async def finish(self) -> list[dict[str, int]]:
        """Put what was taken to use; return each vLLM process's fingerprints of it."""
        ...

    def request(self) -> Any:
        """Return what vLLM's requests must name to use the weights, or None."""
        ...


class WholeWeights:
    """All weights, through vLLM's weight transfer."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._under_way = False

    async def connect(self, info: Mapping[str, Any]) -> None:
        """Connect vLLM to the learner."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.engine.init_weight_transfer_engine(
            WeightTransferInitRequest(init_info=dict(info))
        )

    async def start(self) -> None:
        """Prepare vLLM for new weights, also where a learner died in the middle of an update.

        Raises:
            LostError: vLLM cannot leave that update.
        """
        interrupted, self._under_way = self._under_way, True
        if interrupted:
            # Nobody knows how far it came. What it brought is replaced by the next one.
            with suppress(Exception):
                await self.engine.finish_weight_update()
        try:
            await self.engine.start_weight_update()
        except Exception as error:
            if not interrupted:
                raise
            raise LostError(f"vLLM cannot leave an update that was broken off: {error}") from error

    async def take(self, bucket: Mapping[str, Any]) -> None:
        """Load one bucket."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.engine.update_weights(WeightTransferUpdateRequest(update_info=dict(bucket)))

    async def finish(self) -> list[dict[str, int]]:
        """Let vLLM process the weights; return the fingerprints of what it loaded."""
        await self.engine.finish_weight_update()
        self._under_way = False
        return await self.engine.collective_rpc("weight_fingerprints")

    def request(self) -> None:
        """Return None: the model itself is the policy."""


class AdapterWeights:
    """A LoRA adapter, in shared memory; the weights it adapts are compared once and stay.

    Raises, in `connect`:
        WeightSyncError: vLLM's model is not the one that the learner adapts.
    """

    def __init__(self, engine: Any, where: str, lora: LoraConfig) -> None:
        self.engine = engine
        self.where = where
        self.lora = lora

    async def connect(self, info: Mapping[str, Any]) -> None:
        """Compare the adapted model's weights with the learner's."""
        arguments = (info["dtype_name"],)
        for arrived in await self.engine.collective_rpc("base_fingerprints", args=arguments):
            check_arrival(f"the adapted model in {self.where}", info["base"], arrived)

    async def start(self) -> None:
        """Forget the adapter that was taken before; vLLM still has it."""
        await self.engine.collective_rpc("start_adapter")

    async def take(self, bucket: Mapping[str, Any]) -> None:
        """Copy one bucket's tensors."""
        await self.engine.collective_rpc("take_adapter", args=(dict(bucket),))

    async def finish(self) -> list[dict[str, int]]:
        """Let vLLM use the adapter; return its fingerprints."""
        settings = {
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "target_modules": list(self.lora.target_modules),
        }
        return await self.engine.collective_rpc("use_adapter", args=(settings,))

    def request(self) -> Any:
        """Return vLLM's name for the adapter."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(
            lora_name="policy", lora_int_id=ADAPTER_ID, lora_path="taken from rlpost"
        )


def make_intake(engine: Any, where: str, config: RunConfig) -> Intake:
    """Return the intake that a recipe asks for."""
    if config.model.lora.by_itself:
        return AdapterWeights(engine, where, config.model.lora)
    return WholeWeights(engine)


def adapter_arguments(lora: LoraConfig) -> dict[str, Any]:
    """Return the engine arguments that make room for the adapter, none where it comes merged."""
    if not lora.by_itself:
        return {}
    room = next(rank for rank in _RANKS if rank >= lora.rank)
    return {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room}
