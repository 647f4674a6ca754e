"""A verifier for a Slurm job that is to be warned of its time limit before its last step."""

import os
import time


def share(response, answer, metadata):
    """Return the share of letters among the response's characters, slowly in a job's first life."""
    if not os.environ.get("SLURM_RESTART_COUNT"):
        time.sleep(0.5)
    return sum(character.isalnum() for character in response) / max(1, len(response))
