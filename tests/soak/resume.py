"""Kill a run's driver again and again, and compare its end with that of a run left alone.

    python tests/soak/resume.py --kills 10 --out FOLDER [override]...

The first kill comes amid the writing of a checkpoint, the second right after a checkpoint at the
end of an epoch of the data, the last as the last step is over, and the others at random moments:
every third of them while the run starts up, the others once it takes steps. Each life continues
with `resume=auto`. Prints what happened and exits with 1 unless parameters and metrics, but for
times, have the same bits and no process outlived its driver for long. With `mode=async`
bits depend on timing: there each prompt has to be trained on as often.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
KILLED = REPOSITORY / "tests" / "integration" / "killed.py"
STEPS = 24
# An epoch of the data is four steps: 96 prompts of the quick start's task.
RECIPE = [
    "recipe=quickstart",
    f"steps={STEPS}",
    "task.parameters.num_train=96",
    "checkpoint.every=1",
    "eval.every=4",
    "tracking.tensorboard=true",
]
VANISHING_S = 30.0
LIMIT_S = 900.0


def live(words, moment, kill_after_s=None, watched=None):
    """Run a driver until it ends or is killed; return what is to be told of it.

    The time until it is killed counts from the moment at which the file `watched` grows, if given.
    """
    command = [sys.executable, str(KILLED), moment[0], str(moment[1]), *words]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    driver, descendants = psutil.Process(process.pid), set()
    size, armed = size_of(watched), began if watched is None else None
    while process.poll() is None:
        now = time.monotonic()
        if armed is None:
            size, before = size_of(watched), size
            armed = now if size > before else None
        due = kill_after_s is not None and armed is not None and now - armed > kill_after_s
        if due or now - began > LIMIT_S:
            process.kill()
        with contextlib.suppress(psutil.Error):
            descendants.update(driver.children(recursive=True))
        time.sleep(0.02)
    ended = time.monotonic()
    left = psutil.wait_procs(list(descendants), timeout=VANISHING_S)[1]
    printed = process.stdout.read()
    said = [text for text in printed.splitlines() if "continuing after" in text or "anew" in text]
    return {
        "code": process.returncode,
        "ran_s": round(ended - began, 1),
        "vanished_s": round(time.monotonic() - ended, 1),
        "processes": len(descendants),
        "left": [one.name() for one in left if one.is_running()],
        "said": said[0].split("INFO ")[-1] if said else "",
        "printed": printed,
    }


def size_of(path):
    return path.stat().st_size if path and path.exists() else 0


def told(run_dir):
    """Return a run's metrics without times, and the checksum of its parameters."""
    lines = []
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({k: v for k, v in line.items() if not k.endswith(("_s", "_gib"))})
    weights = (run_dir / "export" / "model.safetensors").read_bytes()
    return lines, hashlib.sha256(weights).hexdigest()


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def trained(run_dir):
    """Return the prompts of all steps, one for each group that was trained on."""
    found = []
    for path in sorted((run_dir / "rollouts").glob("step_*.parquet")):
        rows = pq.read_table(path, columns=["group", "prompt_id", "dropped"]).to_pylist()
        found += [
            prompt
            for _, prompt in sorted(
                {(r["group"], r["prompt_id"]) for r in rows if not r["dropped"]}
            )
        ]
    return found


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir()}


def main() -> int:
    """Run all lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    rng, before = random.Random(asked.seed), shared_memory()
    straight, broken = asked.out / "straight", asked.out / "broken"
    words = [*RECIPE, *asked.overrides]
    whole = live([*words, f"run_dir={straight}"], ("never", 0))
    say(f"uninterrupted: {whole['ran_s']} s, exit code {whole['code']}")
    chosen = [("checkpoint", 2), ("committed", 4), ("committed", STEPS)]
    plan = [*chosen[:2], *[("at random", None)] * (asked.kills - len(chosen)), chosen[2]]
    lives = []
    for number, moment in enumerate(plan, start=1):
        timed, starting = moment[1] is None, number % 3 == 1
        after_s = rng.uniform(0.05, 0.6) * whole["ran_s"] if starting else rng.uniform(0.0, 1.5)
        life = live(
            [*words, f"run_dir={broken}", "resume=auto"],
            ("never", 0) if timed else moment,
            after_s if timed else None,
            None if starting else broken / "metrics.jsonl",
        )
        lives.append(life)
        where = f"after {life['ran_s']} s" if timed else f"{moment[0]} of step {moment[1]}"
        say(
            f"kill {number}: {where}; exit code {life['code']}; {life['processes']} processes "
            f"gone in {life['vanished_s']} s; {life['said']}",
        )
    for _ in range(2):  # to its end, and once more when there is nothing left to do
        lives.append(live([*words, f"run_dir={broken}", "resume=auto"], ("never", 0)))
        say(f"{lives[-1]['said']}; exit code {lives[-1]['code']}")
    (asked.out / "printed.txt").write_text("\n\n".join(life["printed"] for life in lives))
    metrics, weights = zip(told(straight), told(broken), strict=True)
    grown = shared_memory() - before
    prompts = trained(straight), trained(broken)
    exact = {
        "parameters have the same bits": weights[0] == weights[1],
        "metrics have the same bits": metrics[0] == metrics[1],
        "prompts have the same order": prompts[0] == prompts[1],
    }
    checks = {
        **({} if "mode=async" in asked.overrides else exact),
        "each prompt was trained on as often": sorted(prompts[0]) == sorted(prompts[1]),
        "no process was left": not any(life["left"] for life in lives),
        "the last lives ended well": [life["code"] for life in lives[-2:]] == [0, 0],
        "finished is said": "finished already" in lives[-1]["printed"],
        "all were killed": all(life["code"] == -signal.SIGKILL for life in lives[:-2]),
    }
    for name, holds in checks.items():
        say(f"{'yes' if holds else 'NO '} {name}")
    say(f"steps recorded: {[line['step'] for line in metrics[1]]}")
    say(f"new in /dev/shm: {sorted(grown) or 'nothing'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
