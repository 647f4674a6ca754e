"""Secrets stay out of what is written."""

import logging

import pytest

from rlpost import logs
from rlpost.cli import main
from rlpost.redaction import HIDDEN, redact, redacted, redacted_word, secrets_of
from rlpost.tasks.verification import _environment

SECRETS = {
    "WANDB_API_KEY": "hush-wandb-0123",
    "HF_TOKEN": "hush-hf-0123",
    "AWS_SECRET_ACCESS_KEY": "hush-aws-0123",
    "AWS_ACCESS_KEY_ID": "hush-aws-id",
    "MY_SERVICE_TOKEN": "hush-hf-0123-longer",
    "PGPASSWORD": "hush-pg-0123",
    "RAY_AUTH_TOKEN": "hush-ray-0123",
}
OTHERS = {
    "TOKENIZERS_PARALLELISM": "false-as-they-say",
    "RAY_AUTH_TOKEN_PATH": "/home/me/.ray/auth_token",
    "KEYBOARD_LAYOUT": "german-nodeadkeys",
    "HF_HOME": "/home/me/.cache",
    "SHORT_TOKEN": "false",
}


@pytest.fixture
def environment(monkeypatch):
    for name, value in (SECRETS | OTHERS).items():
        monkeypatch.setenv(name, value)


def test_what_is_a_secret_is_told_by_its_name():
    assert secrets_of(SECRETS | OTHERS) == SECRETS


def test_a_text_names_the_variable_in_the_place_of_its_value(environment):
    said = redact("with hush-hf-0123-longer, hush-hf-0123 and german-nodeadkeys")
    assert said == "with ${oc.env:MY_SERVICE_TOKEN}, ${oc.env:HF_TOKEN} and german-nodeadkeys"


def test_a_recipe_keeps_the_interpolation_and_hides_what_was_typed(environment):
    config = {
        "task": {
            "parameters": {"key": "length", "api_key": "typed", "eos_token": "<|end|>", "n": 3},
            "urls": ["https://me:hush-pg-0123@host", "https://host"],
        },
        "model": {"tokenizer_path": "characters"},
        "sampling": {"max_response_tokens": 4},
    }
    assert redacted(config) == {
        "task": {
            "parameters": {"key": "length", "api_key": HIDDEN, "eos_token": "<|end|>", "n": 3},
            "urls": ["https://me:${oc.env:PGPASSWORD}@host", "https://host"],
        },
        "model": {"tokenizer_path": "characters"},
        "sampling": {"max_response_tokens": 4},
    }


def test_a_command_line_on_a_page_hides_them_too(environment):
    assert redacted_word("+task.parameters.password=abc") == f"+task.parameters.password={HIDDEN}"
    assert (
        redacted_word("+task.parameters.x=hush-hf-0123") == "+task.parameters.x=${oc.env:HF_TOKEN}"
    )
    assert redacted_word("objectives=[clip,mhpo]") == "objectives=[clip,mhpo]"


def test_logs_and_errors_hold_none(environment, capfd):
    kept = logging.getLogger().handlers[:]
    try:
        logs.set_up("driver")
        log = logging.getLogger("rlpost.test")
        log.warning("refused: %s", "https://host?key=hush-aws-0123")
        log.error("failed", exc_info=ValueError("hush-hf-0123"))
        for handler in logging.getLogger().handlers:
            handler.flush()
    finally:
        logging.getLogger().handlers[:] = kept
    assert main(["train", "recipe=quickstart", "task.kind=hush-aws-0123"]) == 2
    said = capfd.readouterr().err
    assert "key=${oc.env:AWS_SECRET_ACCESS_KEY}" in said
    assert "ValueError: ${oc.env:HF_TOKEN}" in said
    assert "task.kind=${oc.env:AWS_SECRET_ACCESS_KEY}: no such kind" in said
    assert "hush" not in said


def test_a_built_in_verifier_reads_no_secret_and_a_users_own_may(environment):
    assert not SECRETS.keys() & _environment("math").keys()
    assert SECRETS.keys() <= _environment("package.module:function").keys()
    assert _environment("math")["HF_HOME"] == OTHERS["HF_HOME"]


def test_a_field_for_a_secret_is_refused_as_unknown(capfd):
    assert main(["train", "recipe=quickstart", "+tracking.wandb.api_key=abc"]) == 2
    assert "unknown field tracking.wandb.api_key" in capfd.readouterr().err
