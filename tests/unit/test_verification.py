"""Verifiers, and what becomes of those that hang, die, print, read or eat memory."""

import asyncio
import subprocess
import sys
import time

import psutil
import pytest
from responses import response

from rlpost.errors import ConfigError, DataError
from rlpost.tasks.verification import VerifierPool
from rlpost.tasks.verifiers import math
from rlpost.types import Prompt

UNRULY = """
import subprocess, sys, time

def act(response, answer, metadata):
    if response == "sleep":
        time.sleep(metadata["seconds"])
    if response == "child":
        child = subprocess.Popen(["sleep", "60"])
        open(metadata["path"], "w").write(str(child.pid))
        time.sleep(60)
    if response == "shout":
        raise ValueError("x" * 200_000)
    if response == "leave":
        sys.exit(4)
    if response == "listen":
        return float(len(sys.stdin.read()))
    if response == "feast":
        return float(len(bytearray(64 * 2**30)))
    if response == "tuple":
        return float(isinstance(metadata["pair"], tuple))
    return float(response == answer)
"""


@pytest.fixture
def unruly(tmp_path, monkeypatch):
    (tmp_path / "unruly.py").write_text(UNRULY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "unruly:act"


def prompt(answer=None, **metadata):
    return Prompt(id="p", text="", token_ids=(1,), answer=answer, metadata=metadata)


def verdicts(verifier, question, texts, *, timeout_s=30.0, memory_gib=0.0):
    async def run():
        pool = VerifierPool(verifier, 1, timeout_s, memory_gib)
        await pool.start()
        try:
            return await pool.verify(question, [response(text) for text in texts])
        finally:
            await pool.close()

    return asyncio.run(run())


def test_a_long_complaint_an_exit_and_a_read_cost_only_their_own_item(unruly):
    result = verdicts(unruly, prompt("a"), ["a", "shout", "leave", "listen", "b", "a"])
    assert [v.status for v in result] == ["ok", "error", "error", "ok", "ok", "ok"]
    assert [v.reward for v in result] == [1.0, None, None, 0.0, 0.0, 1.0]
    assert result[1].detail.startswith("ValueError: xxx")
    assert "SystemExit: 4" in result[2].detail


def test_an_abandoned_answer_is_not_taken_for_the_next_items(unruly):
    async def run():
        pool = VerifierPool(unruly, 1, 30.0)
        await pool.start()
        slow = asyncio.create_task(pool.verify(prompt("sleep", seconds=0.5), [response("sleep")]))
        await asyncio.sleep(0.1)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        following = await pool.verify(prompt("right"), [response("wrong")])
        await pool.close()
        return following[0]

    assert asyncio.run(run()).reward == 0.0


def test_what_a_verifier_started_is_killed_with_it(unruly, tmp_path):
    path = tmp_path / "pid"
    [verdict] = verdicts(unruly, prompt(path=str(path)), ["child"], timeout_s=3.0)
    assert verdict.status == "timeout"
    # SIGKILL has been sent; when the kernel carries it out is the kernel's affair.
    limit = time.monotonic() + 30.0
    while alive(int(path.read_text())):
        assert time.monotonic() < limit, "the verifier's child outlived it by 30 s"
        time.sleep(0.01)


def alive(pid):
    """Whether a process runs; a zombie that nobody has reaped yet is dead too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_memory_has_a_limit_and_the_process_survives_it(unruly):
    result = verdicts(unruly, prompt("a"), ["feast", "a"], memory_gib=4.0)
    assert [v.status for v in result] == ["error", "ok"]
    assert "MemoryError" in result[0].detail


def test_tuples_reach_the_verifier_as_tuples(unruly):
    assert verdicts(unruly, prompt(pair=(1, 2)), ["tuple"])[0].reward == 1.0


def test_closing_answers_all_who_wait_and_starts_nothing(unruly):
    async def run():
        pool = VerifierPool(unruly, 1, 30.0)
        await pool.start()
        waiting = asyncio.create_task(pool.verify(prompt(seconds=30), [response("sleep")] * 5))
        await asyncio.sleep(0.2)
        await pool.close()
        result = await waiting
        assert all(process._process is None for process in pool._processes)
        return result

    assert [v.status for v in asyncio.run(run())] == ["error"] * 5


def test_a_verifier_that_cannot_load_is_named_with_the_cause(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text("raise KeyError('no licence')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"faulty:act.*no licence"):
        verdicts("faulty:act", prompt(), [])


def test_the_child_process_loads_no_torch_and_no_ray():
    code = (
        "import sys, rlpost.tasks.verify_process, rlpost.tasks.verifiers;"
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"so it is $\boxed{\frac12}$.", "0.5", 1.0),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 1.0),
        ("Answer: 1/2", r"\frac{1}{2}", 1.0),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", 1.0),
        (r"\boxed{\text{Monday}}", r"\text{Monday}", 1.0),
        (r"\boxed{x=5}", "5", 1.0),
        (r"\boxed{90^\circ}", "90", 1.0),
        ("It was 48+24 = 72.\n#### 1,080", "1080", 1.0),
        ("72 first, then #### 73", "72", 0.0),
        (r"\boxed{(1, 2)}", "(2, 1)", 0.0),
        (r"\boxed{", "5", 0.0),
        (r"{{{ \frac{1}{ \left(", "5", 0.0),
        ("", "5", 0.0),
    ],
)
def test_math_reads_what_models_write(response, answer, reward):
    assert math(response, answer, {}) == reward


@pytest.mark.parametrize("answer", [None, ""])
def test_math_without_an_answer_is_an_error_and_no_zero(answer):
    with pytest.raises(DataError):
        math("5", answer, {})
