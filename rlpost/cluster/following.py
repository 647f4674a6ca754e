"""A job's output as it grows."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlpost.errors import ConfigError

_LOOK_S = 1.0


def grown(path: Path, over: Callable[[], bool], ask_s: float = 10.0) -> Iterator[str]:
    """Yield a file's text, and what is added to it until the job is over.

    Whether it is, is asked every `ask_s` seconds.
    """
    position, ended, asked = 0, False, float("-inf")
    while True:
        if time.monotonic() - asked >= ask_s:
            ended, asked = over(), time.monotonic()
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                added = file.read()
            position += len(added)
            if added:
                yield added.decode(errors="replace")
        if ended:
            return
        time.sleep(_LOOK_S)


def whole(path: Path) -> Iterator[str]:
    """Yield a file's text as it is now.

    Raises:
        ConfigError: there is no such file here, or not yet.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} is not there: the job has not begun, or look on a machine that sees it"
        )
    yield path.read_text(encoding="utf-8", errors="replace")


def printed(words: Sequence[str]) -> Iterator[str]:
    """Yield the lines that a command prints, for as long as it goes on."""
    with subprocess.Popen(  # noqa: S603 - a scheduler's command, and words of ours
        words, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
