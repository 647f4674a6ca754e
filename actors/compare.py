"""Several objectives over several seeds, on as many casts of actors as there is room for."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from actors.driver import run
from actors.ending import Ending
from actors.launch import running
from actors.placement import room
from actors.programs import STARTING
from actors.training import train_with
from actors.workshop import Workshop, as_yaml
from rlpost.errors import ConfigError
from rlpost.placing.seats import ROLES, seats
from rlpost.reporting.comparison import Comparison, finished
from rlpost.reporting.comparison_page import write_page
from rlpost.reporting.console import Board
from rlpost.schema import RunConfig

log = logging.getLogger(__name__)

_MAY_DIFFER = ("objective", "seed", "run_dir")


def compare(
    comparison: Comparison, configure: Callable[[str, int], RunConfig], command: str
) -> int:
    """Run what is not finished yet, then write the page; return the exit code.

    Raises:
        ConfigError: a run's folder holds another configuration, or runs need different actors.
    """
    configs: list[RunConfig] = []
    for label, seed, run_dir in comparison.runs():
        config = configure(label, seed)
        config.run_dir = str(run_dir.absolute())
        configs.append(config)
    _refuse_different(configs)
    pending = [c for c in configs if not finished(Path(c.run_dir), c, as_yaml(c))]
    log.info("%d of %d runs are finished already", len(configs) - len(pending), len(configs))
    if pending:
        log.info(STARTING)
        with Ending() as ending:
            code = run(pending[0], ending, lambda: _train_all(pending))
        if code:
            return code
    page = write_page(comparison, configs[0], command)
    log.info("written: %s, with its pictures and curves.csv beside it", page)
    return 0


def _refuse_different(configs: Sequence[RunConfig]) -> None:
    """Actors are made once: what makes them must be the same for all runs."""
    first = vars(configs[0])
    for config in configs[1:]:
        for field, value in vars(config).items():
            if field not in _MAY_DIFFER and value != first[field]:
                raise ConfigError(
                    f"{config.run_dir}: {field} differs from that of {configs[0].run_dir}, and "
                    f"compared runs may differ in {', '.join(_MAY_DIFFER)} only: set {field} alike"
                )


async def _train_all(configs: Sequence[RunConfig]) -> None:
    """Run all, as many at once as there is room for; the first failure ends the others."""
    waiting = iter(configs)
    num_casts = min(len(configs), room(seats(configs[0], ROLES)))
    with Board(total_runs=len(configs)) as board:
        lanes = [asyncio.ensure_future(_train_some(waiting, board)) for _ in range(num_casts)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


async def _train_some(waiting: Iterator[RunConfig], board: Board) -> None:
    """Run one after another on one cast until none waits."""
    first = next(waiting, None)
    if first is None:
        return
    async with running(first, ROLES) as cast:
        for config in chain([first], waiting):
            with board.run("/".join(Path(config.run_dir).parts[-2:]), config.steps) as view:
                shutil.rmtree(config.run_dir, ignore_errors=True)  # what an interruption left
                preparing = asyncio.to_thread(Workshop, config)
                history = await train_with(cast, config, preparing, view)
                view.message(_last_words(history))


def _last_words(history: Sequence[dict[str, float]]) -> str:
    name = next((key for key in history[-1] if key.endswith("pass@1")), "reward/mean")
    return f"{name} {history[0].get(name, 0.0):.3f} -> {history[-1][name]:.3f}"
