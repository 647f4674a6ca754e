"""An objective that takes its learner rank with it, as one that needs too much memory does."""

import os
import signal

from torch import distributed


def vanish(logprobs, old_logprobs, advantages, loss_mask):
    """Kill this process if it is a learner rank: the driver tries objectives too."""
    if distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGKILL)
    return -logprobs * advantages
