"""What a job's overrides may be, and the command that they make."""

import re
from collections.abc import Sequence

from rlpost.cluster.settings import ClusterConfig
from rlpost.errors import ConfigError
from rlpost.redaction import redacted_word
from rlpost.simulation.rates import PREFIX

_OURS = ("run_dir", "resume", "ray.address", "ray.nodes", "ray.token_auth")
_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)


def check_overrides(overrides: Sequence[str], cluster: ClusterConfig) -> None:
    """Refuse what the cluster decides, and what is a secret.

    Raises:
        ConfigError: for the first such word.
    """
    for word in overrides:
        name = word.partition("=")[0].lstrip("+~")
        if name in _OURS:
            raise ConfigError(
                f"{name} is decided by the cluster and cannot be set here: run_dir follows "
                f"{PREFIX}name, leave it out"
            )
        if redacted_word(word) != word:
            raise ConfigError(
                f"{name} holds a secret, and a job's command is kept: let a recipe say "
                f"${{oc.env:NAME}}, and {cluster.secret_remedy}"
            )


def check_plain(overrides: Sequence[str]) -> None:
    """Refuse words that a shell would change.

    Raises:
        ConfigError: for the first such word.
    """
    for word in overrides:
        if not _PLAIN.fullmatch(word):
            raise ConfigError(
                f"{word}: letters, digits and @%+=:,./[]_- reach the job unchanged, others pass "
                "through shells: put this value into a recipe that the job can read"
            )


def train(overrides: Sequence[str], run_dir: str) -> list[str]:
    """Return the command of a job, but for where its Ray is."""
    return ["rlpost", "train", *overrides, f"run_dir={run_dir}", "resume=auto"]
