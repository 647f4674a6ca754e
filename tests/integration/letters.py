"""A verifier for short runs: it tells the answers of an untrained policy apart."""

from collections.abc import Mapping
from typing import Any


def share(response: str, answer: str | None, metadata: Mapping[str, Any]) -> float:
    """Return the share of letters and digits among the response's characters."""
    return sum(character.isalnum() for character in response) / max(1, len(response))


def words(split):
    """Return questions of which one is asked in both splits, but for its spelling."""
    shown = ["sun", "moon", "Two  STARS", "sky"] * 8
    asked = ["two stars", "rain", "snow", "wind"]
    return [{"question": text, "answer": text} for text in (shown if split == "train" else asked)]
