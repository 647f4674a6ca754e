"""The file for the driver's stacks, should its interpreter halt; test_watchdog.py halts one."""

import subprocess
import sys

from rlpost.stalls.halting import HaltRecorder

KILLED = """
import os, signal, sys
from pathlib import Path
from rlpost.stalls.halting import HaltRecorder
with HaltRecorder(Path(sys.argv[1]), 60.0):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_driver_leaves_says_that_it_is_nothing_and_goes_with_the_next(tmp_path):
    path = tmp_path / "stalls" / "driver_halted.txt"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60, check=False)
        assert path.read_text().splitlines() == [
            "The driver's stacks follow if its interpreter halts. Nothing below: it has not."
        ]
    with HaltRecorder(path, 60.0) as recorder:
        assert not recorder.written()
    assert not path.parent.exists()
