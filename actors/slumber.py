"""How a vLLM engine gives its GPUs up while the learner uses them, and gets them back."""

from typing import Any

from rlpost.errors import LostError
from rlpost.schema import RunConfig


class Slumber:
    """Sleep of an engine that shares its GPUs: without weights and KV cache, it only answers.

    On a CPU nothing is given up but the cores: the engine's scheduler stands still.

    Use: `await fall()`; before new weights `await stir()`, after them `await rise()`.
    """

    def __init__(self, engine: Any, config: RunConfig) -> None:
        self.engine = engine
        # An adapter that comes alone needs the weights under it, which nobody sends again.
        self.level = 1 if config.model.lora.by_itself else 2
        self.asleep = False

    async def fall(self) -> bool:
        """Give up the GPUs; return whether vLLM says that it sleeps.

        Raises:
            LostError: vLLM could not, as after an update that was broken off.
        """
        try:
            # What nobody waits for any more is kept for its caller to call off, and not answered.
            await self.engine.sleep(level=self.level, mode="keep")
        except Exception as error:
            raise LostError(f"vLLM could not be put to sleep: {error}") from error
        self.asleep = True
        return await self.engine.is_sleeping()

    async def stir(self) -> None:
        """Make room for weights; nothing is sampled yet."""
        await self.engine.wake_up(tags=["weights"])

    async def rise(self) -> None:
        """Make room for the KV cache too, and sample again."""
        await self.engine.wake_up(tags=["kv_cache"])
        self.asleep = False
