"""A signal that a process answers with its stacks; imports next to nothing, for small processes."""

import faulthandler
import os
import signal
from functools import cache

SIGNAL = signal.SIGUSR2
MEMORY = "rlpost-stacks"  # the name of the memory that they are written to


@cache
def answer_signal() -> int:
    """From now on write the stacks of all threads into a memory file whenever `SIGNAL` comes.

    The handler is C: it answers also while Python waits for a library or a lock. Others find the
    file, whose descriptor is returned, and by it that the signal is safe to send, in `/proc`.
    """
    memory = os.memfd_create(MEMORY)
    faulthandler.register(SIGNAL, file=memory, all_threads=True)
    return memory
