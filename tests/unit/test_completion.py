"""Tab completes commands, groups and fields, in a real bash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SCRIPT = """
eval "$(rlpost -sc install=bash)"
words=($COMP_LINE)
COMP_CWORD=$(( ${#words[@]} - 1 ))
COMP_POINT=${#COMP_LINE}
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rlpost tr", {"train"}),
        ("rlpost train objective=m", {"objective=mhpo"}),
        ("rlpost train recipe=gsm8k learner.zero", {"learner.zero_stage="}),
        ("rlpost eval runs/a/export recipe=q", {"recipe=quickstart"}),
    ],
)
def test_tab_offers(line, offered):
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COMP_LINE": line},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert set(done.stdout.split()) == offered, done.stderr
