"""A training whose driver kills itself at a chosen moment: `killed.py MOMENT STEP [override]...`.

Moments: `checkpoint`, when all but the manifest of the step's checkpoint is written; `committed`,
just after it is complete; or the beginning of a phase of the step: `rollout`, `learn`, `publish`.
"""

import os
import signal
import sys

from actors import checkpointing
from actors.workshop import Recording
from rlpost.checkpoints.store import CheckpointStore, Writing
from rlpost.cli import main


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment, step):
    """Let the driver be killed at that moment."""
    if moment == "checkpoint":
        commit = Writing.commit

        def committing(self, content):
            return end() if content.step == step else commit(self, content)

        Writing.commit = committing
    elif moment == "committed":
        prune = CheckpointStore.prune

        def pruning(self, *arguments, **settings):
            return end() if self.steps()[-1] == step else prune(self, *arguments, **settings)

        checkpointing.CheckpointStore.prune = pruning
    else:
        phase, seen = Recording.phase, []

        def at(self, name):
            seen.append(name)
            if name == moment and seen.count(name) == step:
                end()
            phase(self, name)

        Recording.phase = at


if __name__ == "__main__":
    arrange(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(["train", *sys.argv[3:]]))
