"""Pods without privileges, and secrets that are named and never written."""

import re

from kuberay_rendering import COMBINATIONS, IMAGE, rendered

from rlpost.cli import main


def containers(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "containers":
                yield from value
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def test_no_container_is_root_or_privileged_or_without_limits():
    for overrides, words in COMBINATIONS:
        job = rendered(overrides=overrides, words=words)["rayjob.yaml"]
        found = list(containers(job))
        assert len(found) >= 5
        for container in found:
            security = container["securityContext"]
            assert security["runAsNonRoot"]
            assert not security["privileged"]
            assert not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["image"] == IMAGE["image"]
        assert not re.search("hostNetwork|hostIPC|hostPID|hostPath|latest", str(job))


def test_secrets_are_named_and_never_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    words = [f"cluster.{name}={value}" for name, value in IMAGE.items()]
    words += ["recipe=gsm8k_8gpu", "cluster=kuberay", f"out={tmp_path}"]
    assert main(["submit", *words, "cluster.secret_env.HF_TOKEN=hub/token"]) == 0
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "hf_abc" not in text
    assert "name: hub" in text
    for leak in (
        "cluster.env.HF_TOKEN=hf_abcdefghijklmnop",
        "cluster.env.OTHER=hf_abcdefghijklmnop",
        "cluster.secret_env.HF_TOKEN=hf_abcdefghijklmnop",
        "+task.parameters.key=hf_abcdefghijklmnop",
        "+task.parameters.api_key=anything",
    ):
        capsys.readouterr()
        assert main(["submit", *words, leak]) == 2, leak
        assert "hf_abc" not in capsys.readouterr().err
