"""One vLLM engine that samples groups, and serves only weights that it has proved."""

import asyncio
import logging
import os
import re
import socket
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from actors.fingerprint import check_arrival
from actors.intake import Intake, make_intake
from actors.network import use_interface
from actors.slumber import Slumber
from rlpost.errors import ActorError, ConfigError, DeadlineError, LostError
from rlpost.models import load_tokenizer
from rlpost.paths import check_seen
from rlpost.placing.sharing import shared_ranks
from rlpost.schema import RunConfig
from rlpost.stalls.stack_signal import answer_signal
from rlpost.stalls.stacks import tasks
from rlpost.types import Group, Prompt, Sampling, Trajectory

log = logging.getLogger(__name__)

_HEALTH_S = 1.0


@contextmanager
def _explained() -> Generator[None]:
    """Say why vLLM's engine, a process of its own, died: its last words are in our log file."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        raise LostError(f"vLLM's engine died: {_last_words()}") from None


def _last_words() -> str:
    """Return the last error that this process and its children wrote to stderr."""
    path = Path("/proc/self/fd/2").readlink()
    errors: list[str] = []
    if path.is_file():
        written = path.read_text(errors="replace")
        errors = re.findall(r"^(?:.*\] )?(\w*(?:Error|Exception): .+)$", written, re.MULTILINE)
    said = [line for line in errors if "EngineDeadError" not in line]
    cause = said[-1] if said else "it said nothing, as when it is killed or memory runs out"
    return f"{cause} (log: {path})"


def _refusal(error: ValueError) -> str:
    """Return what vLLM has against a recipe; pydantic, which checks for it, says much around it."""
    said = re.search(r"Value error, (.+?)(?: \[type=|$)", str(error), re.MULTILINE)
    rule = said.group(1).rstrip(".") if said else str(error)
    return f"vLLM refuses this recipe: {rule}; see its fields rollout and model"


def _versions(spans: Any) -> tuple[int, ...]:
    """Return each token's version from vLLM's own record of which weights sampled it."""
    versions: list[int] = []
    for span in spans:
        versions += [int(span.version)] * (span.end - span.start)
    return tuple(versions)


def _check_head_size(head_size: int) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    possible = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in possible:
        raise ConfigError(
            f"the model's attention heads have size {head_size} and vLLM's CPU attention has "
            f"{possible}: use another model, or a GPU with rollout.num_gpus=1"
        )


class RolloutWorker:
    """Samples from the policy with vLLM.

    Use: `start(folder)`, then for each version of the weights `start_weight_update()`,
    `update_weights(...)` per bucket and `finish_weight_update(version, fingerprints)`; between
    updates any number of overlapping `generate(...)`. Before the first proved update, nothing is
    served. A worker that shares its GPUs sleeps from its start, and again from `rest()`, until the
    next update.
    """

    def __init__(self, config: RunConfig, index: int) -> None:
        import ray

        answer_signal()
        use_interface(config.ray.interface, ray.util.get_node_ip_address())
        # The import takes longest of all that a run waits for: it begins with the actor.
        import_module("vllm.v1.engine.async_llm")

        self.config = config
        self.index = index
        self.name = f"rollout-{index}"
        self.version = -1
        self.serving = asyncio.Event()
        self.engine: Any = None
        self.tokenizer: Any = None
        self.intake: Intake
        self.slumber: Slumber | None = None
        self.memory: Any = None
        self.taking = asyncio.Lock()

    @property
    def where(self) -> str:
        """This worker and its machine, as messages name them."""
        return f"{self.name} on {socket.gethostname()}"

    async def start(self, model_folder: str, gpus: Sequence[str] = ()) -> None:
        """Load vLLM with the model folder's weights, which only shape it: none is served yet.

        `gpus` are those of others that it shares; without any, it has what Ray has given it.
        """
        check_seen(Path(model_folder), "run_dir or model.path")
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.engine_arguments import engine_arguments

        config = self.config
        arguments = engine_arguments(config, self.index, model_folder)
        try:
            plan = AsyncEngineArgs(**arguments).create_engine_config()
        except ValueError as error:
            raise ConfigError(_refusal(error)) from error
        if config.rollout.num_gpus == 0:
            _check_head_size(plan.model_config.get_head_size())
        self.engine = AsyncLLM.from_vllm_config(plan, disable_log_stats=True)
        if config.rollout.pipeline_parallel_size > 1 and not config.rollout.num_gpus:
            await self.engine.collective_rpc("prepare_pipeline")
        self.tokenizer = load_tokenizer(config)
        self.intake = make_intake(self.engine, self.where, config)
        if shared_ranks(config, self.index):
            self.slumber = Slumber(self.engine, config)
            await self.rest()

    async def rest(self) -> bool:
        """Give up shared GPUs until there are new weights; return whether vLLM says it sleeps."""
        assert self.slumber is not None, "only a worker that shares GPUs rests"
        self.serving.clear()
        with _explained():
            return await self.slumber.fall()

    @property
    def asleep(self) -> bool:
        """Whether the learner has the GPUs."""
        return self.slumber is not None and self.slumber.asleep

    async def generate(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Group:
        """Sample one group from the current weights.

        Raises:
            DeadlineError: no proved weights came within `rollout.timeout_s`.
        """
        limit_s = self.config.rollout.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self.serving.wait()
        except TimeoutError:
            asleep = ", asleep while the learner has its GPUs" if self.asleep else ""
            raise DeadlineError(
                f"{self.name} waited {limit_s:g} s for proved weights{asleep} and got none; "
                "see the learner's log, or raise rollout.timeout_s"
            ) from None
        with _explained():
            output = await self._sample(prompt, group_size, sampling)
        trajectories = tuple(self._trajectory(prompt, one) for one in output.outputs)
        return Group(prompt=prompt, trajectories=trajectories)

    async def _sample(self, prompt: Prompt, group_size: int, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            n=group_size,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_response_tokens,
            seed=sampling.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,  # token by token it costs more than a small model itself
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        async for output in self.engine.generate(
            {"prompt_token_ids": list(prompt.token_ids)},
            parameters,
            uuid.uuid4().hex,
            lora_request=self.intake.request(),
        ):
            final = output
        if final is None or len(final.outputs) != group_size:
            got = 0 if final is None else len(final.outputs)
            raise ActorError(f"{self.name}: vLLM returned {got} responses of {group_size}")
        return final

    def _trajectory(self, prompt: Prompt, output: Any) -> Trajectory:
        token_ids = tuple(output.token_ids)
        if tuple(output.logprobs.token_ids) != token_ids:
            raise ActorError(
                f"{self.name}: vLLM returned logprobs of tokens that it did not sample"
            )
        # Nothing but an end token stops a response, and it is no part of the text.
        shown = token_ids[:-1] if output.finish_reason == "stop" else token_ids
        return Trajectory(
            prompt_ids=prompt.token_ids,
            token_ids=token_ids,
            loss_mask=(True,) * len(token_ids),
            behavior_logprobs=tuple(output.logprobs.logprobs),
            weight_versions=_versions(output.weight_versions),
            text=self.tokenizer.decode(shown, skip_special_tokens=True),
            finish_reason=output.finish_reason or "unknown",
            worker=self.name,
        )

    async def pulse(self) -> None:
        """Give a sign of life: of this process and of vLLM's engine."""
        with _explained():
            asking = asyncio.ensure_future(self.engine.is_paused())
            while not (await asyncio.wait({asking}, timeout=_HEALTH_S))[0]:
                await self.engine.check_health()  # a question that it died over stays unanswered
            asking.result()

    async def situation(self) -> tuple[str, str]:
        """Say what is sampled here with which weights, and where its tasks wait."""
        sampled = self.engine.output_processor.get_num_unfinished_requests() if self.engine else 0
        waiting = "sleeps and served" if self.asleep else "is on hold and would serve"
        serving = "serves" if self.serving.is_set() else waiting
        told = f"{serving} weights of version {self.version}, {sampled} requests in vLLM"
        return told, tasks(asyncio.get_running_loop())

    def weight_version(self) -> int:
        """Return the version of the proved weights, or -1 before the first."""
        return self.version

    async def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect vLLM to the learner."""
        with _explained():
            await self.intake.connect(init_info)

    async def start_weight_update(self) -> None:
        """Stop serving and prepare vLLM for new weights."""
        self.serving.clear()
        with _explained():
            if self.slumber is not None and self.slumber.asleep:
                await self.slumber.stir()
            else:
                # A cleared cache makes vLLM compute anew, with the new weights, what a response
                # holds so far: its next tokens' logprobs are then those of these weights alone.
                mode = self.config.rollout.in_flight.value
                await self.engine.pause_generation(mode=mode, clear_cache=True)
            await self.intake.start()

    async def update_weights(self, update_info: Mapping[str, Any], buffer: Any = None) -> None:
        """Hand one bucket to vLLM; `buffer` holds its bytes if the learner is on another host."""
        info = dict(update_info)
        async with self.taking:  # the next bucket may be here already, for the same memory
            if buffer is not None:
                from actors.publish import SharedMemory

                self.memory = self.memory or SharedMemory()
                self.memory.write_bytes(memoryview(buffer))
                info["path"] = self.memory.path
            with _explained():
                await self.intake.take(info)

    async def finish_weight_update(self, version: int, fingerprints: Mapping[str, int]) -> None:
        """Prove the weights that arrived, then serve them.

        Raises:
            WeightSyncError: a tensor is missing, or is not the one that was sent.
        """
        with _explained():
            weights = f"weights of version {version} in {self.where}"
            for arrived in await self.intake.finish():
                check_arrival(weights, fingerprints, arrived)
            self.version = version
            await self.engine.update_weight_version(str(version))
            if self.slumber is not None and self.slumber.asleep:
                await self.slumber.rise()
            await self.engine.resume_generation()
        self.serving.set()

    async def close(self) -> None:
        """Stop vLLM and its processes."""
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
