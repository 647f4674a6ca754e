"""What is found out about a run that stands still, and the report that tells it."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Thread

from rlpost.buffer import EpisodeBuffer
from rlpost.stalls import stacks
from rlpost.stalls.progress import Mark, Progress

THREAD = "watchdog"
_MAX_SHOWN = 8  # prompts by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report, in Markdown.

    `summary` is what of it belongs on the console too; `halted` names parts that cannot go on.
    """

    text: str
    summary: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()


Witness = Callable[[], Section]


def ask(witnesses: Mapping[str, Witness], limit_s: float) -> dict[str, Section]:
    """Ask all at once, each in a thread of its own; whoever has not answered in time is told."""
    answers: dict[str, Section] = {}

    def answer(title: str, witness: Witness) -> None:
        try:
            answers[title] = witness()
        except Exception as error:  # noqa: BLE001 - one that fails must not silence the others
            answers[title] = _silent(f"{title}: {type(error).__name__}: {error}")

    threads = [Thread(target=answer, args=pair, daemon=True) for pair in witnesses.items()]
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {t: _silent(f"{t}: no answer within {limit_s:g} s") for t in witnesses}
    return late | dict(answers)


def _silent(text: str) -> Section:
    return Section(text=text, summary=(text,))


def report(progress: Progress, last: Mark, sections: Mapping[str, Section]) -> tuple[str, str]:
    """Return the report and its summary for the console; `last` is what advanced last."""
    now, phase = progress.now(), progress.phase
    title = f"nothing has advanced for {now - last.at_s:.0f} s"
    where = (
        f"Step {progress.step}, phase {phase.what} since {now - phase.at_s:.0f} s; what advanced "
        f"last, {now - last.at_s:.0f} s ago: {last.what}."
    )
    lines = [line for section in sections.values() for line in section.summary]
    parts = [f"# {title.capitalize()}", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC. {where}"]
    parts.append("\n".join(f"- {line}" for line in lines))
    # The short ones first: whoever reads on is looking for something.
    for heading, section in sorted(sections.items(), key=lambda pair: len(pair[1].text)):
        parts.append(f"## {heading}\n\n{section.text}")
    return "\n\n".join(part for part in parts if part) + "\n", "\n  ".join([title, where, *lines])


def waits(progress: Progress) -> Section:
    """Tell what the driver waits for, and since when."""
    groups = defaultdict(list)
    for wait in progress.waits():
        groups[wait.part, wait.what].append(wait)
    now = progress.now()
    rows, summary = [], []
    for (part, what), found in groups.items():
        since_s, limit_s = now - found[0].since_s, found[0].limit_s
        rows.append((part, what, str(len(found)), f"{since_s:.1f} s", f"{limit_s:g} s"))
        count = f"{len(found)} x {what}, the first" if len(found) > 1 else what
        summary.append(f"waiting for {part}: {count} since {since_s:.0f} s of at most {limit_s:g}")
    if not rows:
        nothing = "no actor is waited for: the driver itself is at work, or stuck"
        return Section(text=nothing, summary=(nothing,))
    text = table(("part", "what", "how often", "the first since", "at most"), rows)
    return Section(text=text, summary=tuple(summary))


def queues(buffer: EpisodeBuffer) -> Section:
    """Tell what the driver's buffer of episodes holds."""
    slots = list(buffer.slots)
    by_step = defaultdict(list)
    for slot in slots:
        by_step[slot.step].append(slot)
    rows = []
    for step, found in sorted(by_step.items()):
        running = [slot for slot in found if slot.rank is None]
        begun = Counter(slot.version for slot in running)
        names = [slot.prompt.id for slot in running[:_MAX_SHOWN]]
        more = f" and {len(running) - _MAX_SHOWN} more" if len(running) > _MAX_SHOWN else ""
        versions = ", ".join(f"{count} at {version}" for version, count in sorted(begun.items()))
        ended = str(len(found) - len(running))
        rows.append((str(step), ended, str(len(running)), versions, ", ".join(names) + more))
    held = f"{len(slots)} episodes have begun and are not trained on; weights of version "
    headings = ("step", "ended", "under way", "begun at version", "prompts under way")
    return Section(text=f"{held}{buffer.version} are served.\n\n{table(headings, rows)}")


def driver(loop: asyncio.AbstractEventLoop) -> Section:
    """Tell where the driver's tasks and threads are."""
    return Section(text=f"{block(stacks.tasks(loop))}\n\n{block(stacks.threads(asking=THREAD))}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str) -> str:
    """Return text as it is."""
    return f"```text\n{text.rstrip()}\n```"
