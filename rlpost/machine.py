"""What this machine has, as far as no library has to be asked."""

from pathlib import Path


def gpus() -> list[str]:
    """Return the names of this machine's GPUs."""
    return sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
