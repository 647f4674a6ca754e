"""Tasks and verification."""

import asyncio
import time

import pytest
from responses import response

from rlpost.characters import character_tokenizer
from rlpost.config import load
from rlpost.errors import ConfigError, DataError
from rlpost.tasks.build import build_source
from rlpost.tasks.interface import PromptStream, Renderer
from rlpost.tasks.verification import VerifierPool
from rlpost.types import Prompt

VERIFIERS = """
import os

def choose(response, answer, metadata):
    if response == "loop":
        while True:
            pass
    if response == "raise":
        raise ValueError("no opinion")
    if response == "die":
        os._exit(3)
    if response == "nan":
        return float("nan")
    print("noise on standard output")
    return {"form": 0.25, "truth": 1.0}
"""


def test_bad_verifiers_are_counted_and_contained(tmp_path, monkeypatch):
    (tmp_path / "my_verifiers.py").write_text(VERIFIERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def verify():
        pool = VerifierPool("my_verifiers:choose", num_processes=1, timeout_s=2.0)
        await pool.start()
        prompt = Prompt(id="p", text="", token_ids=(1,))
        texts = ["good", "loop", "good", "raise", "die", "nan", "good"]
        verdicts = await pool.verify(prompt, [response(text) for text in texts])
        await pool.close()
        return verdicts

    verdicts = asyncio.run(verify())
    statuses = [verdict.status for verdict in verdicts]
    assert statuses == ["ok", "timeout", "ok", "error", "error", "error", "ok"]
    assert [v.reward for v in verdicts if v.status == "ok"] == [1.25] * 3
    assert "no opinion" in verdicts[3].detail
    assert "process ended" in verdicts[4].detail


def test_characters_round_trip():
    tokenizer = character_tokenizer()
    text = "Spell: sun -> nus,\n  12.5 + {x} = ~"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def stream(config):
    return PromptStream(
        build_source(config).training(), Renderer(config, character_tokenizer()), config.seed
    )


def dataset_config(tmp_path, rows=10):
    for split, start in (("train", 0), ("test", rows - 2)):
        lines = [
            f'{{"question": "q{i}", "answer": "#### {i}"}}\n' for i in range(start, start + rows)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    return load("gsm8k", [f"data.path={tmp_path}"])


def test_an_epoch_shows_each_training_prompt_once_and_no_held_out_one(tmp_path):
    config = dataset_config(tmp_path)
    prompts = stream(config).draw(16)
    first, second = prompts[:8], prompts[8:]
    assert {p.text for p in first} == {f"q{i}\n" for i in range(8)}
    assert {p.id for p in first} == {p.id for p in second}
    assert [p.id for p in first] != [p.id for p in second]
    assert [p.answer for p in first] == [p.text.strip().removeprefix("q") for p in first]


def test_a_stream_continues_where_its_state_says(tmp_path):
    config = dataset_config(tmp_path)
    whole = [p.id for p in stream(config).draw(20)]
    part = stream(config)
    part.draw(11)
    resumed = stream(config)
    resumed.load_state_dict(part.state_dict())
    drawn = resumed.recall(whole[5:11])  # from before the epoch's end and after it
    assert drawn == {p.id: p for p in stream(config).draw(11) if p.id in whole[5:11]}
    with pytest.raises(DataError, match="prompt nothing was drawn before the checkpoint"):
        resumed.recall([*whole[5:11], "nothing"])
    assert [p.id for p in resumed.draw(9)] == whole[11:]


def test_generated_training_questions_are_never_held_out():
    config = load("quickstart", ["data.num_train=300", "eval.num_prompts=200"])
    source = build_source(config)
    held_out = {item.question for item in source.held_out(200)}
    assert len(held_out) == 200
    assert not held_out & {item.question for item in source.training()}


def test_a_bad_json_line_is_named(tmp_path):
    config = dataset_config(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{broken\n')
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: not JSON"):
        build_source(config).training()


def test_an_unknown_generator_is_refused():
    config = load("quickstart", ["task=reasoning_gym", "task.name=no_such_thing"])
    with pytest.raises(ConfigError, match="no_such_thing"):
        build_source(config).held_out(1)


def test_verification_of_many_is_not_one_time_limit_each():
    async def verify():
        pool = VerifierPool("exact", num_processes=1, timeout_s=5.0)
        await pool.start()
        prompt = Prompt(id="p", text="", token_ids=(1,), answer="x")
        started = time.monotonic()
        verdicts = await pool.verify(prompt, [response("x")] * 300)
        await pool.close()
        return verdicts, time.monotonic() - started

    verdicts, seconds = asyncio.run(verify())
    assert [v.reward for v in verdicts] == [1.0] * 300
    assert seconds < 300 * 5.0
