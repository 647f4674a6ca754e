"""The command `rlpost`; the only file of the core that imports the actors, and that late."""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlpost.errors import ConfigError, DataError, RlpostError, StoppedError
from rlpost.redaction import redact, redacted_word
from rlpost.schema import RunConfig
from rlpost.usage import COMMANDS, HELP, help_of, overview


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    2 is a user's mistake, 1 a failed run, 75 one to be continued with resume=auto.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in words or bool(os.environ.get("RLPOST_TRACEBACK"))
    words = [word for word in words if word != "--traceback"]
    try:
        return _dispatch(words)
    except RlpostError as error:
        if traceback:
            raise
        sys.stderr.write(f"rlpost: {redact(str(error))}\n")
        return _exit_code(error)
    except KeyboardInterrupt:
        sys.stderr.write("rlpost: interrupted\n")
        return 130
    finally:
        gc.freeze()  # else the interpreter's end searches all modules for garbage, for seconds


def _exit_code(error: RlpostError) -> int:
    if isinstance(error, StoppedError):
        return os.EX_TEMPFAIL
    return 2 if isinstance(error, ConfigError | DataError) else 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in HELP:
        sys.stdout.write(overview())
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return _complete(words)
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError(f"{command}: no such command; available: {known}; see rlpost --help")
    if HELP.intersection(rest) and not COMMANDS[command].by_hydra:
        sys.stdout.write(help_of(command))
        return 0
    return _RUN[command](rest)


def _programs(module: str = "programs") -> Any:
    """Import a module of the actors, after making sure that they are ours."""
    import actors

    if getattr(actors, "OWNER", None) != "rlpost":
        raise ConfigError(
            f"the package `actors` that Python finds is {actors.__file__}, not rlpost's: rename "
            "or move it, or run from another folder"
        )
    try:
        return import_module(f"actors.{module}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name} is missing: pip install 'rlpost[cpu]' or 'rlpost[gpu]'"
        ) from error


def _with_hydra(words: list[str], run: Callable[[RunConfig], int]) -> int:
    """Let Hydra read the command line, sweeps included, and run each configuration."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from rlpost.config import convert, recipes_dir, register_schemas, translated
    from rlpost.logs import set_up

    register_schemas()
    codes: list[int] = []
    failures: list[RlpostError] = []

    def job(composed: DictConfig) -> None:
        # Kept from Hydra, which would add lines of its own, and end a sweep at the first failure.
        try:
            config = convert(composed)
            set_up("driver")
            codes.append(run(config))
        except RlpostError as error:
            failures.append(error)

    program, sys.argv = sys.argv, ["rlpost", *_overrides_first(words)]
    # Hydra would print its own message and exit; ours names the field and the remedy.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(recipes_dir()), config_name="config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise translated(error) from error
    finally:
        sys.argv = program
    if failures:
        raise failures[0]
    return max(codes, default=0)


def _overrides_first(words: list[str]) -> list[str]:
    """Return overrides, then options: Hydra's parser takes no option between two overrides."""
    overrides = [w for w in words if not w.startswith("-") and ("=" in w or w.startswith("~"))]
    return overrides + [word for word in words if word not in overrides]


def _complete(words: list[str]) -> int:
    """Install Hydra's shell completion or answer it; Hydra does not know of commands."""
    line = os.environ.get("COMP_LINE", "")
    if any(word.startswith("query=") for word in words):
        before, typing = line.split()[1:], ""
        if before and not line.endswith(" "):
            typing = before.pop()
        if not before:
            sys.stdout.write(" ".join(name for name in COMMANDS if name.startswith(typing)) + "\n")
            return 0
        skipped = {
            "train": 1,
            "warmstart": 1,
            "plan": 1,
            "simulate": 1,
            "submit": 1,
            "chaos": 1,
            "eval": 2,
        }.get(before[0])
        if skipped is None or len(before) < skipped:
            return 0  # the shell then completes file names
        os.environ["COMP_LINE"] = " ".join(["rlpost", *before[skipped:], typing])
    return _with_hydra(words, lambda _: 0)


def _train(words: list[str]) -> int:
    return _with_hydra(words, lambda config: _programs().train(config))


def _warmstart(words: list[str]) -> int:
    return _with_hydra(words, lambda config: _programs().warmstart(config))


def _compare(words: list[str]) -> int:
    from rlpost.config import load
    from rlpost.logs import set_up
    from rlpost.reporting.comparison import overrides_of, read_command

    comparison, overrides = read_command(words)
    set_up("driver")

    def configure(label: str, seed: int) -> RunConfig:
        return load(None, [*overrides, *overrides_of(label, seed)])

    command = " ".join(["rlpost", "compare", *map(redacted_word, words)])
    configure(comparison.labels[0], 0)  # a mistake is told before the engines are imported
    return _programs("compare").compare(comparison, configure, command)


def _eval(words: list[str]) -> int:
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise ConfigError("rlpost eval needs a checkpoint first: rlpost eval CHECKPOINT recipe=...")
    checkpoint = Path(words[0])
    return _with_hydra(words[1:], lambda config: _programs().evaluate(config, checkpoint))


def _export(words: list[str]) -> int:
    if len(words) != 2:
        raise ConfigError(f"rlpost export takes CHECKPOINT and FOLDER, got {len(words)} words")
    return _programs().export(Path(words[0]), Path(words[1]))


def _report(words: list[str]) -> int:
    from rlpost.reporting.report import report

    sys.stdout.write(f"{report(words)}\n")
    return 0


def _plan(words: list[str]) -> int:
    from rlpost.planning.command import main as plan

    return plan(words)


def _chaos(words: list[str]) -> int:
    from rlpost.chaos import read_words

    plan, rest = read_words(words)
    return _with_hydra(rest, lambda config: _programs("chaos").chaos(config, plan))


def _simulate(words: list[str]) -> int:
    from rlpost.logs import set_up
    from rlpost.simulation.command import main as simulate

    set_up("simulation")
    return simulate(words)


def _submit(words: list[str]) -> int:
    from rlpost.cluster.command import main as submit

    return submit(words, _ray_jobs)


def _jobs(words: list[str]) -> int:
    from rlpost.cluster.jobs_command import main as jobs

    return jobs(words, _ray_jobs)


def _ray_jobs(address: str) -> Any:
    return _programs("jobs").JobServer(address)


def _objective(words: list[str]) -> int:
    folder, names = ".", []
    for word in words[1:]:
        if word.startswith("out="):
            folder = word.removeprefix("out=")
        else:
            names.append(word)
    if not words or words[0] != "plot" or not names:
        raise ConfigError(
            "rlpost objective takes plot and names: rlpost objective plot mhpo clip [out=FOLDER]"
        )
    from rlpost.reporting.plots import plot_objectives

    paths = plot_objectives(names, Path(folder))
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


def _doctor(words: list[str]) -> int:
    from rlpost.doctor import report

    text, healthy = report(as_json="--json" in words)
    sys.stdout.write(text + "\n")
    return 0 if healthy else 1


_RUN: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "warmstart": _warmstart,
    "export": _export,
    "compare": _compare,
    "report": _report,
    "plan": _plan,
    "simulate": _simulate,
    "submit": _submit,
    "chaos": _chaos,
    "jobs": _jobs,
    "objective": _objective,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
