"""Each command says what it takes, before anything is loaded."""

import re

import pytest

from rlpost.cli import _RUN, main
from rlpost.cluster.registry import NAMES
from rlpost.usage import COMMANDS


def test_help_names_every_command_and_its_examples_are_of_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  ([a-z]+) {2,}\w", said, re.MULTILINE) == list(COMMANDS)
    assert set(_RUN) == set(COMMANDS)
    assert set(re.findall(r"^  rlpost (\w+) ", said + " ", re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("command", [name for name, one in COMMANDS.items() if not one.by_hydra])
@pytest.mark.parametrize("words", [["--help"], ["cluster=slurm", "-h"]])
def test_a_command_says_what_it_takes(command, words, capsys):
    assert main([command, *words]) == 0
    assert capsys.readouterr().out.startswith(f"usage: rlpost {command} ")


def test_the_usage_of_submit_names_every_target():
    assert f"cluster={'|'.join(NAMES)} " in COMMANDS["submit"].words
