"""Files that several hosts' processes open: named by whole paths, and missed with a reason."""

from pathlib import Path

from rlpost.errors import ConfigError
from rlpost.schema import RunConfig


def make_absolute(config: RunConfig) -> None:
    """Name the run's files by whole paths: elsewhere a process has another working directory."""
    config.run_dir = str(Path(config.run_dir).absolute())
    if config.checkpoint.url is not None and "://" not in config.checkpoint.url:
        config.checkpoint.url = str(Path(config.checkpoint.url).absolute())
    config.model.path = _absolute_folder(config.model.path)
    config.model.tokenizer_path = _absolute_folder(config.model.tokenizer_path)


def _absolute_folder(name: str | None) -> str | None:
    """Return a folder's whole path; what is no folder here is a name on a hub, and stays."""
    folder = Path(name or "").expanduser()
    return str(folder.absolute()) if name and folder.is_dir() else name


def check_seen(folder: Path, field: str) -> None:
    """Refuse to go on where this host does not see a folder that the driver's host has.

    Raises:
        ConfigError: it is not there; the caller says on which host.
    """
    if folder.is_absolute() and not folder.is_dir():
        raise ConfigError(
            f"this host does not see {folder}, which the driver's host has: {field} must lie on a "
            "file system that every host mounts at the same path"
        )
