"""What Ray, the actors and their processes tell about a run that stands still.

Each question has a limit of its own. Ray's head is asked, not its dashboard, which need not run.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.actor import Actor
from rlpost.stalls.processes import Sight, look_at
from rlpost.stalls.stall import Section, Witness, block, table

Actors = Callable[[], Sequence[Actor]]
_PART = re.compile("_group_|^node:")
_QUEUE_S = 3.0
_MAX_CAUSE = 500  # characters
_NODE_S = 20.0  # to start a process there, and for all that it looks at


def witnesses(actors: Actors, present: Actors) -> dict[str, Witness]:
    """Return who is asked: of `actors`, all that the run has, those `present` are to be there."""
    return {
        "Queues of the actors": lambda: _queues(present()),
        "Ray": lambda: _ray(actors(), present()),
        "Processes": lambda: processes(actors()),
    }


def _queues(actors: Sequence[Actor]) -> Section:
    """Ask the actors that serve many calls at once what waits in them."""
    asked = {actor.handle.situation.remote(): actor.name for actor in actors if actor.overlapping}
    ready, silent = _answered(asked, _QUEUE_S)
    answers = {asked[answer]: _answer(answer) for answer in ready}
    late = [asked[answer] for answer in silent]
    answers |= dict.fromkeys(late, (f"no answer within {_QUEUE_S:g} s", ""))
    rows = [(name, told) for name, (told, _) in sorted(answers.items())]
    tasks = [f"**{name}**, its tasks\n\n{block(where)}" for name, (_, where) in answers.items()]
    return Section(
        text="\n\n".join([table(("actor", "what it says"), rows), *tasks]),
        summary=(f"no answer from {', '.join(late)}",) if late else (),
    )


def _answered(asked: Mapping[Any, str], limit_s: float) -> tuple[list[Any], list[Any]]:
    """Return the answers that are there in time, and those that are not."""
    return ray.wait(list(asked), num_returns=len(asked), timeout=limit_s) if asked else ([], [])


def _answer(reference: Any) -> tuple[str, str]:
    try:
        return ray.get(reference)
    except Exception as error:  # noqa: BLE001 - whatever an actor fails with is its answer
        return _first_line(error), ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _ray(actors: Sequence[Actor], present: Sequence[Actor]) -> Section:
    """Tell what Ray could not place, which nodes are lost, and which actors are not alive."""
    told, halted = [], []
    for node in ray.nodes():
        if not node["Alive"]:
            reason = node.get("DeathReasonMessage") or "no reason given"
            told.append(f"node {node['NodeManagerAddress']} is lost: {reason}")
    for group in ray.util.placement_group_table().values():
        if group["state"] in ("PENDING", "RESCHEDULING"):
            bundles = list(group["bundles"].values())
            told.append(f"placement group {group['placement_group_id']} waits for {bundles}")
    states = _states()
    for actor in actors:
        entry = states.get(_id(actor), {})
        if entry.get("State", "unknown") != "ALIVE":
            cause = " ".join(str(entry.get("DeathCause", "")).split())[:_MAX_CAUSE]
            told.append(f"{actor.place} is {entry.get('State', 'unknown')} {cause}".strip())
            halted += [actor.name] if actor in present else []
    free, there = ray.available_resources(), ray.cluster_resources()
    rows = [
        (name, _amount(name, free.get(name, 0.0)), _amount(name, there[name]))
        for name in sorted(there)
        if not _PART.search(name)  # what placement groups have taken out of it
    ]
    pending = "\n".join(f"- {line}" for line in told) or "Nothing is pending or lost."
    text = f"{pending}\n\n{table(('resource', 'free', 'there'), rows)}"
    return Section(text=text, summary=tuple(told), halted=tuple(halted))


def _amount(resource: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB" if resource.endswith("memory") else f"{amount:g}"


def _states() -> Mapping[str, Any]:
    """Return what Ray's head knows of each actor; `ray.util.state` would ask the dashboard."""
    return actor_table()  # all of them, without an id


def _id(actor: Actor) -> str:
    return actor.handle._actor_id.hex()  # noqa: SLF001 - a handle has no other name for itself


def processes(actors: Sequence[Actor]) -> Section:
    """Look at the actors' processes and what they have started, on every node."""
    states = _states()
    nodes: dict[str, dict[str, int]] = defaultdict(dict)
    for actor in actors:
        entry = states.get(_id(actor), {})
        if entry.get("State") == "ALIVE":
            nodes[entry["Address"]["NodeID"]][actor.name] = entry["Pid"]
    here = ray.get_runtime_context().get_node_id()
    asked = {look_from(node, pids): node for node, pids in nodes.items() if node != here}
    sights = look_at(nodes.get(here, {}))
    ready, silent = _answered(asked, _NODE_S)
    unseen = dict.fromkeys(silent, f"no answer within {_NODE_S:g} s")
    for answer in ready:
        try:
            sights += ray.get(answer)
        except Exception as error:  # noqa: BLE001 - a node that is lost must not hide the others
            unseen[answer] = _first_line(error)
    told = [
        f"{', '.join(nodes[asked[answer]])} on node {asked[answer]}: {why}"
        for answer, why in unseen.items()
    ]
    return _section(sights, told)


def keep_stacks(actor: Actor, folder: Path) -> Path:
    """Write down where an actor's processes are, before it is ended, and return the file."""
    path = folder / f"{actor.name}-life{actor.life}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {actor.place} gave no sign of life\n\n{processes([actor]).text}\n")
    return path


def look_from(node: str, pids: Mapping[str, int]) -> Any:
    """Have processes looked at by a task on their node; return a reference to what it sees."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(look_at).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)
    return task.remote(pids)


def _section(sights: Sequence[Sight], unseen: Sequence[str]) -> Section:
    rows = [(s.name, str(s.pid), s.state, f"{s.load:.0%}", s.command) for s in sights]
    stacks = [f"**{s.name}**, process {s.pid}\n\n{block(s.stack)}" for s in sights]
    halted = [s for s in sights if s.halted]
    headings = ("part", "process", "state", "load", "command")
    return Section(
        text="\n\n".join([*unseen, table(headings, rows), *stacks]),
        summary=(
            *unseen,
            *(f"{s.name} (process {s.pid}) is {s.state}: {s.halted}" for s in halted),
        ),
        halted=tuple(s.name for s in halted),
    )
