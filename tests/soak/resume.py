"""Kill a run's driver again and again, and compare its end with that of a run left alone.

    python tests/soak/resume.py --kills 10 --out FOLDER [override]...

Of the kills, one comes amid the writing of a checkpoint, one right after a checkpoint at the end of
an epoch of the data, one as the last step is over, and the others at random moments, start-up
included. Each life continues with `resume=auto`. Prints what happened and exits with 1 unless
parameters and metrics, but for times, have the same bits and no process outlived its driver for
long.
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

REPOSITORY = Path(__file__).parents[2]
KILLED = REPOSITORY / "tests" / "integration" / "killed.py"
STEPS = 12
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


def live(words, moment, kill_after_s=None):
    """Run a driver until it ends or is killed; return what is to be told of it."""
    command = [sys.executable, str(KILLED), moment[0], str(moment[1]), *words]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    driver, descendants = psutil.Process(process.pid), set()
    while process.poll() is None:
        age_s = time.monotonic() - began
        if age_s > LIMIT_S or (kill_after_s is not None and age_s > kill_after_s):
            process.kill()
        with contextlib.suppress(psutil.Error):
            descendants.update(driver.children(recursive=True))
        time.sleep(0.1)
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


def told(run_dir):
    """Return a run's metrics without times, and the checksum of its parameters."""
    lines = []
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({k: v for k, v in line.items() if not k.endswith("_s") and k[:5] != "time/"})
    weights = (run_dir / "export" / "model.safetensors").read_bytes()
    return lines, hashlib.sha256(weights).hexdigest()


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


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
    randomly = asked.kills - len(chosen)
    plan = [("at random", None)] * randomly
    plan.insert(randomly // 3, chosen[0])
    plan.insert(2 * randomly // 3 + 1, chosen[1])
    plan.append(chosen[2])
    lives = []
    for number, moment in enumerate(plan, start=1):
        timed = moment[1] is None
        after_s = rng.uniform(0.05, 1.0) * whole["ran_s"] if timed else None
        life = live(
            [*words, f"run_dir={broken}", "resume=auto"], ("never", 0) if timed else moment, after_s
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
    checks = {
        "parameters have the same bits": weights[0] == weights[1],
        "metrics have the same bits": metrics[0] == metrics[1],
        "no process was left": not any(life["left"] for life in lives),
        "the last lives ended well": [life["code"] for life in lives[-2:]] == [0, 0],
        "finished is said": "finished already" in lives[-1]["printed"],
        "killed with SIGKILL": any(life["code"] == -signal.SIGKILL for life in lives),
    }
    for name, holds in checks.items():
        say(f"{'yes' if holds else 'NO '} {name}")
    say(f"steps recorded: {[line['step'] for line in metrics[1]]}")
    say(f"new in /dev/shm: {sorted(grown) or 'nothing'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
