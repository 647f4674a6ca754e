"""A checkpoint is whole or it is not used: damage of any kind, disks that fill up, what is kept."""

import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from safetensors.torch import save_file

from rlpost.checkpoints import manifest
from rlpost.checkpoints import store as module
from rlpost.checkpoints.manifest import Manifest, entries
from rlpost.checkpoints.store import CheckpointStore, files_under, local_copy
from rlpost.errors import CheckpointError

NUM_DAMAGES = 50


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path):
    urls = {
        "folder": str(tmp_path / "checkpoints"),
        "file": f"file://{tmp_path}/checkpoints",
        "memory": f"memory://{uuid4().hex}/checkpoints",
    }
    return CheckpointStore(urls[request.param])


def write(store, step, *, size=64, metrics=None):
    """Write a checkpoint with the files of a real one, as three writers would."""
    rng = torch.Generator().manual_seed(step)
    tensors = {f"layer.{i}": torch.randn(size, generator=rng) for i in range(4)}
    with store.writing(step) as writing:
        found = []
        for part in ("learner/rank_0", "export", "driver"):
            with files_under(f"{writing.url}/{part}") as folder:
                if part == "learner/rank_0":
                    (folder / "deepspeed").mkdir()
                    torch.save(
                        {"module": tensors, "step": step}, folder / "deepspeed" / "states.pt"
                    )
                    (folder / "rng.json").write_text(json.dumps(random.Random(step).getstate()))
                elif part == "export":
                    save_file(tensors, folder / "model.safetensors")
                    (folder / "config.json").write_text('{"hidden_size": 64}')
                else:
                    (folder / "state.json").write_text(json.dumps({"step": step}))
                    (folder / "metrics.jsonl").write_text('{"step": 0}\n' * (step + 1))
                found += [entry.under(part) for entry in entries(folder)]
        versions = manifest.library_versions()
        writing.commit(
            Manifest(step=step, files=found, metrics=metrics or {"loss": 0.5}, versions=versions)
        )


def test_what_is_written_is_found_verified_and_read_back(store):
    assert store.newest() is None
    write(store, 3)
    write(store, 12)
    assert store.steps() == [3, 12]
    found = store.newest()
    assert (found.step, found.metrics) == (12, {"loss": 0.5})
    assert found.versions["torch"] == manifest.library_versions()["torch"]
    with local_copy(store.place(12), "driver") as folder:
        assert json.loads((folder / "state.json").read_text()) == {"step": 12}


def damaged(data, rng, kind):
    """Return data cut short, or with one bit another."""
    place = rng.randrange(len(data))
    if kind == "truncated":
        return data[:place]
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_any_damage_is_detected_and_the_checkpoint_before_is_taken(tmp_path, kind, caplog):
    store = CheckpointStore(str(tmp_path))
    write(store, 1)
    write(store, 2)
    newest = tmp_path / "step_000002"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert {"manifest.json", "states.pt", "model.safetensors"} <= {path.name for path in files}
    rng, hit = random.Random(kind), set()
    # Large and small files alike; every file at least once, the manifest too.
    for number in range(NUM_DAMAGES):
        path = files[number % len(files)]
        hit.add(path)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng, kind))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.newest().step == 1
        assert "CHECKPOINT OF STEP 2 IS DAMAGED" in caplog.text
        assert path.name in caplog.text
        said = "altered|manifest" if kind == "flipped" else r"has \d+ bytes, not \d+|manifest"
        with pytest.raises(CheckpointError, match=said):
            store.verify(2)
        path.write_bytes(whole)
        assert store.newest().step == 2
    assert hit == set(files)


def test_every_single_byte_of_a_manifest_counts(tmp_path):
    write(CheckpointStore(str(tmp_path)), 1)
    whole = (tmp_path / "step_000001" / "manifest.json").read_bytes()
    assert manifest.read(whole).step == 1
    for place in range(len(whole)):
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            manifest.read(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            manifest.read(whole[:place])


def test_a_missing_file_and_a_missing_manifest_are_damage(store):
    write(store, 1)
    write(store, 2)
    store.files.rm(f"{store.root}/step_000002/export/config.json")
    with pytest.raises(CheckpointError, match=r"export/config\.json is missing"):
        store.verify(2)
    assert store.newest().step == 1
    store.files.rm(f"{store.root}/step_000001/manifest.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is complete"):
        store.newest()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    store = CheckpointStore(str(tmp_path))
    write(store, 1)
    found = store.read(1)
    outside = manifest.FileEntry(path="../secret", size_bytes=0, checksum="")
    text = Manifest(step=1, files=[*found.files, outside]).to_json()
    (tmp_path / "step_000001" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"outside the checkpoint: \.\./secret"):
        store.verify(1)


def test_a_writer_that_fails_or_does_not_commit_leaves_the_others(store):
    write(store, 1)
    with (
        pytest.raises(KeyError),
        store.writing(2) as writing,
        files_under(f"{writing.url}/driver") as folder,
    ):
        (folder / "state.json").write_text(str({}["nothing"]))
    assert store.newest().step == 1


def test_a_killed_writer_leaves_nothing_that_is_taken_and_is_cleaned_up(tmp_path):
    store = CheckpointStore(str(tmp_path))
    write(store, 1)
    script = (
        "import os, signal, sys\n"
        "from rlpost.checkpoints.store import CheckpointStore, files_under\n"
        "with CheckpointStore(sys.argv[1]).writing(2) as w, files_under(w.url + '/d') as f:\n"
        "    (f / 'x').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert store.newest().step == 1
    store.forget_after(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_the_newest_and_the_best_are_kept(store):
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: None, 5: 0.3, 6: 0.2}
    for step, score in scores.items():
        write(store, step, metrics={} if score is None else {"score": score})
        store.prune(2, "score")
    assert store.steps() == [3, 5, 6]
    store.prune(1, "score", largest=False)
    assert store.steps() == [6]


def test_what_is_newer_than_the_step_continued_from_is_set_aside(store):
    for step in (1, 2, 3):
        write(store, step)
    store.forget_after(1)
    assert store.steps() == [1]
    assert store.files.exists(f"{store.root}/set_aside_step_000003/manifest.json")
    write(store, 2)
    store.forget_after(1)  # once more, over the one set aside before
    assert store.steps() == [1]


def test_a_nearly_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    store = CheckpointStore(str(tmp_path))
    store.check_room()
    write(store, 1)
    store.check_room()
    size = store.read(1).size_bytes
    usage = shutil.disk_usage(tmp_path)._replace(free=size)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"nearly full: .* newest checkpoint, of step 1, is"):
        store.check_room()


def test_a_disk_that_fills_up_while_writing_leaves_the_checkpoint_before(tmp_path):
    store = CheckpointStore(str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    disk = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")],
        check=False,
        capture_output=True,
    )
    mounted = disk.returncode == 0
    # Where nothing can be mounted, a limit on the size of a file gives the same kind of error.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        write(store, 1, size=1000)
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))
        with pytest.raises((CheckpointError, OSError, RuntimeError)):
            write(store, 2, size=200_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.newest().step == 1
        assert store.steps() == [1]
        write(store, 2, size=1000)
        assert store.newest().step == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if mounted:
            subprocess.run(["umount", str(tmp_path / "disk")], check=True)
    assert os.listdir(tmp_path / "disk") == [] or not mounted


def test_a_copy_that_was_altered_on_its_way_is_refused():
    store = CheckpointStore(f"memory://{uuid4().hex}")
    write(store, 1)
    place = f"{store.root}/step_000001/driver/state.json"
    store.files.pipe_file(place, store.files.cat_file(place).replace(b"1", b"2"))
    with (
        pytest.raises(CheckpointError, match=r"driver/state\.json has been altered"),
        local_copy(store.place(1), "driver"),
    ):
        pass
    assert Path(place).name == "state.json"
