"""Secrets kept out of what a run writes: values of the environment, and fields named as secrets."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
_MIN_LENGTH = 8  # a shorter value may stand in any text by chance
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEYS?|KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(?:_ID)?$"
    r"|SECRET|PASSWORD|PASSWD|(?:ACCESS|PRIVATE|API)_?KEY",
    re.IGNORECASE,
)
_SECRET_FIELD = re.compile(
    r"^token$|(?:auth|access|api|secret|bearer|hf)_?token$"  # not eos_token and its like
    r"|(?:api|access|private|secret)_?key$|secret$|password$|passwd$|passphrase$|credentials?$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(?:PATH|FILE|DIR|URL)$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Say whether a variable of this name holds a secret, and not the place of one."""
    return bool(_SECRET_VARIABLE.search(name)) and not _PLACE.search(name)


def secrets_of(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables whose names say that they are secrets, the longest values first."""
    found = {
        name: value
        for name, value in (os.environ if environment is None else environment).items()
        if is_secret_name(name) and len(value) >= _MIN_LENGTH
    }
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Put `${oc.env:NAME}`, which a recipe may say too, where the value of a secret stands."""
    for name, value in secrets_of(environment).items():
        if value in text:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def redacted(node: Any, environment: Mapping[str, str] | None = None, field: str = "") -> Any:
    """Return plain values, as of a recipe, without secrets.

    A text that holds the value of a secret variable names the variable instead, as the recipe may
    have done; a field whose own name is that of a secret is hidden.
    """
    if isinstance(node, Mapping):
        return {key: redacted(value, environment, str(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [redacted(value, environment, field) for value in node]
    if not isinstance(node, str):
        return node
    told = redact(node, environment)
    return HIDDEN if told == node and node and _SECRET_FIELD.search(field) else told


def redacted_word(word: str) -> str:
    """Return a word of a command line, `field=value`, as a page may show it."""
    field, separator, value = word.partition("=")
    return field + separator + str(redacted(value, field=field.rpartition(".")[2]))


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines hold no secret of the environment."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with its traceback if any."""
        return redact(super().format(record))
