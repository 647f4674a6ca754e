"""Commands of the documents are taken on two cores, and links lead somewhere."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from rlpost.chaos import read_words as chaos_words
from rlpost.cluster.command import read_words as submit_words
from rlpost.config import load
from rlpost.reporting.comparison import read_command
from rlpost.simulation.command import read_words as simulate_words
from rlpost.usage import overview
from rlpost.words import split_words

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for folder in (".", "benchmarks", "cluster", "docker", "docs", "docs/studies", "recipes")
    for path in (REPOSITORY / folder).glob("*.md")
)
COMMAND = re.compile(r"^\s*rlpost (\w+) (.*recipe=[a-z].*)$", re.MULTILINE)
OWN = re.compile(r"[A-Z]{4,}|\.\.\.|path/to|\$\{")  # words that a reader puts his own for
OVERRIDES = {
    "train": list,
    "warmstart": list,
    "eval": list,
    "plan": lambda words: split_words(words, "plan.")[1],
    "chaos": lambda words: chaos_words(words)[1],
    "compare": lambda words: read_command(words)[1],
    "simulate": lambda words: simulate_words(words).overrides,
    "submit": lambda words: submit_words(words).overrides,
}


def commands():
    """Return the commands with a recipe, each once, by their text."""
    texts = [*(path.read_text(encoding="utf-8") for path in DOCUMENTS), overview()]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(texts))
    lines = {(name, re.split(r"\s+#", rest)[0]) for name, rest in COMMAND.findall(whole)}
    return sorted((name, line) for name, line in lines if not any(map(OWN.search, given(line))))


def given(line):
    """Return the words that set something."""
    return [word for word in shlex.split(line) if "=" in word]


@cache
def loaded(*words):
    return load(None, words)


@pytest.mark.parametrize(("name", "line"), commands())
def test_a_command_is_taken(name, line):
    words = given(line)
    if "--multirun" in line:
        words = [word.partition(",")[0] for word in words]
    elsewhere = name in ("plan", "simulate", "submit") or "gpu" in line
    address = f"ray.address={'planned' if elsewhere else 'null'}"
    assert loaded(address, "ray.num_cpus=2", "run_dir=runs/mine", *OVERRIDES[name](words)).steps


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", path.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
