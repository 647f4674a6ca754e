"""`rlpost chaos`: trains as a recipe says while faults strike its actors; tells what was lost."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from ray.exceptions import RayActorError, RayTaskError

from actors.actor import PULSE
from actors.launch import Cast, running
from actors.programs import on_ray
from actors.training import train_with
from actors.workshop import Workshop, as_yaml
from rlpost.chaos import ChaosPlan, Fault, allowing, audit, plan_faults
from rlpost.checkpoints.resuming import find_start
from rlpost.errors import ActorError
from rlpost.placing.seats import ROLES
from rlpost.reporting.console import Console, View
from rlpost.schema import RunConfig

FILE = "chaos.jsonl"
_STALL_S = 2
_LIMIT_S = 60.0  # an actor that loads its libraries is struck when it is through


class Striker:
    """A view that does more than look: as a phase begins, it strikes the actors that are due.

    What it does is kept in `chaos.jsonl`, and once more, with the reason, where it could not.
    """

    def __init__(self, view: View, cast: Cast, faults: Sequence[Fault], run_dir: str) -> None:
        self.view = view
        self.cast = cast
        self.folder = Path(run_dir)
        self._due = {(fault.step, fault.phase): fault for fault in faults}
        self._step = 1
        self._striking: set[asyncio.Task[None]] = set()
        self.num_missed = 0  # faults that could not be carried out

    def phase(self, name: str) -> None:
        """Show the phase, and strike in it."""
        self.view.phase(name)
        if (fault := self._due.pop((self._step, name), None)) is not None:
            task = asyncio.ensure_future(self._strike(fault))
            self._striking.add(task)
            task.add_done_callback(self._striking.discard)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show a finished step."""
        self.view.step(step, values)
        self._step = step + 1

    def message(self, text: str) -> None:
        """Show a line of text."""
        self.view.message(text)

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.delay_s)
        actor = next(actor for actor in self.cast.actors if actor.name == fault.actor)
        self.message(f"chaos: step {fault.step}, {fault.phase}: {fault.kind} {fault.actor}")
        record = {
            "unix_s": round(time.time(), 3),
            "step": fault.step,
            "phase": fault.phase,
            "actor": fault.actor,
            "life": actor.life,
            "kind": fault.kind,
        }
        self._note(record)
        method = actor.handle.__ray_call__
        if not actor.overlapping:
            method = method.options(concurrency_group=PULSE)
        try:
            async with asyncio.timeout(_LIMIT_S):
                await asyncio.wrap_future(method.remote(struck, fault.kind).future())
        except (RayActorError, TimeoutError):
            pass  # whoever is struck does not answer
        except RayTaskError as error:
            self.num_missed += 1
            self._note(record | {"missed": str(error.cause)})
            self.message(f"chaos: {fault.kind} {fault.actor} was not carried out: {error.cause}")

    def _note(self, record: Mapping[str, Any]) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def struck(_: Any, kind: str) -> None:
    """Do what a kind of fault means to the process that calls this.

    Raises:
        ActorError: there is no engine to strike.
    """
    own = os.getpid()
    targets = _engines() if kind.endswith("_engine") else [own]
    if not targets:
        raise ActorError("vLLM's engine is not there")
    if kind == "stall":  # by a child of a child, which leaves no zombie here
        awake = f"(sleep {_STALL_S}; kill -CONT {own}) &"
        subprocess.run(["/bin/sh", "-c", awake], check=True)  # noqa: S603 - our own words
    for pid in targets:
        os.kill(pid, signal.SIGKILL if kind.startswith("kill") else signal.SIGSTOP)


def _engines() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it may just have ended
            if "EngineCore" in " ".join(child.cmdline() or [child.name()]):
                found.append(child.pid)
    return found


def chaos(config: RunConfig, plan: ChaosPlan) -> int:
    """Train with faults; return the exit code: 0 if nothing was lost."""
    config = allowing(plan, config)
    faults = plan_faults(plan, config)
    find_start(config, as_yaml(config))
    failed: list[str] = []

    async def program(config: RunConfig, preparing: Awaitable[Workshop]) -> None:
        failed.extend(await _train(config, preparing, faults))

    return on_ray(config, program) or int(bool(failed))


async def _train(
    config: RunConfig, preparing: Awaitable[Workshop], faults: Sequence[Fault]
) -> list[str]:
    """Return what does not hold of the run."""
    async with running(config, ROLES) as cast:
        with Console(total_steps=config.steps, title=f"{len(faults)} faults") as view:
            striker = Striker(view, cast, faults, config.run_dir)
            await train_with(cast, config, preparing, striker)
            claims = audit(config)
            done = f"{len(faults) - striker.num_missed} of {len(faults)} faults carried out"
            view.message(f"{done}, {cast.incidents.num_losses} actors lost")
            for claim in claims:
                word = "holds" if claim.holds else "DOES NOT HOLD"
                view.message(f"{word}: {claim.text}{f' ({claim.detail})' * bool(claim.detail)}")
            view.message(f"run directory: {config.run_dir}")
    return [claim.text for claim in claims if not claim.holds]
