"""The stacks of this process should its interpreter itself halt, as in a library that keeps it."""

import faulthandler
from pathlib import Path
from typing import Self

_TITLE = "The driver's stacks follow if its interpreter halts. Nothing below: it has not.\n"


class HaltRecorder:
    """A file with this process's stacks, written in C when no sign of life comes for `after_s`.

    Use: `with HaltRecorder(path, after_s) as recorder:`, in it `alive()` often, and `rest()` before
    what may take longer. `path` must be open before the interpreter halts; it is there afterwards
    only if something was written, or with its title alone if the process was killed.
    """

    def __init__(self, path: Path, after_s: float) -> None:
        self.path = path
        self.after_s = after_s

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a")
        if not self.path.stat().st_size:
            self._file.write(_TITLE)
            self._file.flush()
        self._before = self.path.stat().st_size  # by an earlier part of the run
        self.alive()
        return self

    def alive(self) -> None:
        """Wait anew; there is one clock in a process, and whoever calls last has it."""
        faulthandler.dump_traceback_later(self.after_s, file=self._file)

    def rest(self) -> None:
        """Expect no sign of life until the next one."""
        faulthandler.cancel_dump_traceback_later()

    def written(self) -> bool:
        """Say whether the interpreter has halted since the block began."""
        return self.path.stat().st_size > self._before

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._file.close()
        if self.path.stat().st_size <= len(_TITLE):
            self.path.unlink()
            if not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()
