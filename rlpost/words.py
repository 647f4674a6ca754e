"""Words of a command line that are no overrides of a recipe."""

from collections.abc import Sequence


def split_words(words: Sequence[str], prefix: str) -> tuple[dict[str, str], list[str]]:
    """Return what words as `prefix` + `field=value` set, and the other words."""
    given, rest = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.startswith(prefix):
            given[name.removeprefix(prefix)] = value
        else:
            rest.append(word)
    return given, rest
