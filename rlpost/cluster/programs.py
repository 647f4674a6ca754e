"""The schedulers' own commands, run with a time limit."""

import subprocess
from collections.abc import Sequence

from rlpost.errors import ConfigError, DeadlineError, ResourceError

_LIMIT_S = 60.0


def output_of(words: Sequence[str], *, given: str | None = None) -> str:
    """Run a command with a text as its input and return what it prints.

    Raises:
        ConfigError: this machine does not have the command.
        ResourceError: it failed; the message is its own.
        DeadlineError: it did not answer.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a scheduler's command, and words of ours
            words, input=given, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{words[0]} is not on this machine's PATH: go to one from which jobs are submitted, "
            "or write files with out=FOLDER and submit them there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{words[0]} did not answer within {_LIMIT_S:g} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or "nothing"
        raise ResourceError(f"{words[0]} ended with {done.returncode} and said: {said}")
    return done.stdout
