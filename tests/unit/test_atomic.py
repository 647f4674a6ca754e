import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlpost.atomic import atomic_file, atomic_folder, remove_leftovers, write_text


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "seed: 1\n")
    write_text(tmp_path / "config.yaml", "seed: 2\n")
    assert (tmp_path / "config.yaml").read_text() == "seed: 2\n"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_text(path, "old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_folder_is_invisible_until_complete(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step_000010"
    with atomic_folder(path) as folder:
        (folder / "rank_0").mkdir()
        (folder / "rank_0" / "weights").write_bytes(b"abc")
        assert not path.exists()
    assert (path / "rank_0" / "weights").read_bytes() == b"abc"
    assert os.listdir(path.parent) == ["step_000010"]


def test_an_exception_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "export") as folder:
            (folder / "model").write_bytes(b"half")
            raise RuntimeError("rank 1 died")

    with pytest.raises(RuntimeError, match="rank 1 died"):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileExistsError, match=r"export exists already: remove it"):
        atomic_folder(path).__enter__()
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "new").touch()
        assert (path / "old").exists()
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["export"]


WRITER = """
import sys
from pathlib import Path
from rlpost.atomic import atomic_folder

with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_is_told_from_a_live_one(tmp_path: Path) -> None:
    path = tmp_path / "step_000020"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        assert remove_leftovers(tmp_path) == []
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not path.exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".incomplete-step_000020-")
    assert remove_leftovers(tmp_path) == [leftover]
    assert os.listdir(tmp_path) == []
