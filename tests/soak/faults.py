"""Strike runs of several shapes with faults for hours, round after round, and report each.

    python tests/soak/faults.py --hours 2 --out FOLDER [--shapes adapter] [-- override...]

A round is one `rlpost chaos` run of a small task: in turn one learner rank in `mode=sync`, two with
ZeRO 2, `mode=async`, and a LoRA adapter on what one undisturbed step has trained. Each has 20
faults of every kind in 60 steps. What a round lost, by its own audit, by a hang or by processes
left over, is a failure, and the exit code is 1 then. `report.json` has every round and their sum:
the faults of each kind that were planned, carried out, missed and not reached, and the losses.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
from tally import Tally, as_text, read_tally

from rlpost.chaos import plan_faults, read_words
from rlpost.config import load

REPOSITORY = Path(__file__).parents[2]
RLPOST = Path(sys.executable).with_name("rlpost")
RECIPE = [
    "recipe=quickstart",
    "objective=mhpo",
    "steps=60",
    "eval.every=20",
    "kl_coef=0.001",
    "checkpoint.every=1",
    "ray.num_cpus=8",
    "rollout.num_workers=2",
    "reward.num_workers=2",
    "supervision.heartbeat_s=1",
    "supervision.heartbeat_timeout_s=15",
    "chaos.num_faults=20",
    "chaos.kinds=kill,freeze,stall,kill_engine,freeze_engine",
]
SHAPES = {
    "sync": [],
    "two ranks": ["learner.num_ranks=2", "learner.zero_stage=2"],
    "async": ["mode=async", "max_staleness=2", "old_logprobs=behavior"],
    "adapter": [
        "model.path={base}/export",
        "warmstart.steps=0",
        "model.lora.rank=16",
        "model.lora.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
        "model.lora.transfer=adapter",
        "learner.learning_rate=0.003",
    ],
}
BASE = ["recipe=quickstart", "objective=mhpo", "steps=1", "eval.every=0", "ray.num_cpus=8"]
LIMIT_S = 1800.0  # a round; 20 faults of 30 s each and the steps take half of it
VANISHING_S = 30.0


def run(words, log):
    """Run one round; return its exit code, None for a hang, and what outlived it."""
    command = [str(RLPOST), "chaos", *words]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
        driver, descendants, began = psutil.Process(process.pid), set(), time.monotonic()
        while process.poll() is None and time.monotonic() - began < LIMIT_S:
            with contextlib.suppress(psutil.Error):
                descendants.update(driver.children(recursive=True))
            time.sleep(0.2)
        code = process.poll()
        process.kill()
        process.wait()
    left = psutil.wait_procs(list(descendants), timeout=VANISHING_S)[1]
    return code, [one.name() for one in left if one.is_running()]


def main() -> int:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    base = asked.out / "base"
    subprocess.run([RLPOST, "train", *BASE, f"run_dir={base}"], check=True, timeout=LIMIT_S)
    deadline, rounds = time.monotonic() + asked.hours * 3600, []
    total = Tally(faults=Counter(), num_lost=0, back_s=())
    for number, shape in enumerate(itertools.cycle(asked.shapes)):
        if time.monotonic() > deadline:
            break
        folder, began = asked.out / f"round{number:03d}", time.monotonic()
        shaped = [word.format(base=base) for word in SHAPES[shape]]
        words = [*RECIPE, *shaped, *asked.overrides, f"chaos.seed={number}", f"run_dir={folder}"]
        plan, overrides = read_words(words)
        planned = plan_faults(plan, load(None, overrides))
        code, left = run(words, asked.out / f"round{number:03d}.txt")
        tally = read_tally(folder, planned)
        total += tally
        minutes = round((time.monotonic() - began) / 60, 1)
        told = {"shape": shape, "code": code, "left": left, "min": minutes, **tally.as_json()}
        rounds.append(told)
        report = {"rounds": rounds, "all": total.as_json()}
        (asked.out / "report.json").write_text(json.dumps(report, indent=1))
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()
    failed = [one for one in rounds if one["code"] != 0 or one["left"]]
    sys.stdout.write(f"{as_text(total)}\n{len(rounds)} rounds, {len(failed)} failed\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
