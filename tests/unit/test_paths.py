"""Files of a run on several hosts."""

import pytest

from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.paths import check_seen


def test_a_cluster_gets_whole_paths_and_names_on_a_hub_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").mkdir()
    asked = ["run_dir=runs/a", "checkpoint.url=kept", "ray.address=auto"]
    config = load("quickstart", [*asked, "model.path=policy", "model.tokenizer_path=org/name"])
    assert config.run_dir == f"{tmp_path}/runs/a"
    assert config.checkpoint.url == f"{tmp_path}/kept"
    assert config.model.path == f"{tmp_path}/policy"
    assert config.model.tokenizer_path == "org/name"
    elsewhere = load("quickstart", ["ray.address=auto", "checkpoint.url=memory://kept"])
    assert elsewhere.checkpoint.url == "memory://kept"
    assert load("quickstart", ["run_dir=runs/a"]).run_dir == "runs/a"


def test_a_folder_that_a_host_does_not_see_is_told(tmp_path):
    check_seen(tmp_path, "run_dir")
    with pytest.raises(ConfigError, match=r"does not see .*/gone.*: run_dir must lie on a file"):
        check_seen(tmp_path / "gone", "run_dir")
