"""What the command line says of itself."""

from dataclasses import dataclass

HELP = frozenset(("-h", "--help"))

_EXAMPLES = """examples:
  rlpost train recipe=quickstart objective=mhpo
  rlpost train recipe=quickstart objective=holder seed=1 rollout.num_workers=2 rollout.num_cpus=0.4
  rlpost train recipe=quickstart --multirun objective=clip,mhpo,holder seed=0,1,2
  rlpost train recipe=gsm8k data.path=path/to/gsm8k --cfg job
  rlpost eval runs/NAME/export recipe=quickstart
  rlpost warmstart recipe=quickstart run_dir=runs/warm
  rlpost export runs/NAME path/to/model
  rlpost compare recipe=quickstart objectives=[clip,mhpo,mhpo:dhp=false] seeds=3 out=runs/study
  rlpost report runs/NAME
  rlpost plan recipe=gsm8k_8gpu plan.node_cpus=96 plan.node_gpus=8
  rlpost simulate from=runs/NAME rollout.num_workers=64 mode=async
  rlpost submit recipe=gsm8k_8gpu cluster=kuberay cluster.image=my/rlpost:1.0 out=kube
  rlpost submit recipe=gsm8k_8gpu cluster=slurm cluster.folder=/shared/me/runs
  rlpost chaos recipe=quickstart checkpoint.every=1 chaos.num_faults=6
  rlpost objective plot mhpo clip holder mhpo:dhp=false out=pictures
  rlpost doctor

Overrides are Hydra's: field=value, group=option (recipe, task, objective), and Hydra's own options
(--cfg job, --multirun, --info). `rlpost train --cfg job` shows every field. Completion with Tab:
  eval "$(rlpost -sc install=bash)"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command does, and the words that it takes; of some Hydra tells the rest."""

    does: str
    words: str
    by_hydra: bool = False


COMMANDS = {
    "train": Command(
        does="train a policy as a recipe says", words="[field=value ...]", by_hydra=True
    ),
    "eval": Command(does="measure a checkpoint on a task", words="CHECKPOINT [field=value ...]"),
    "warmstart": Command(
        does="train on a task's worked answers only", words="[field=value ...]", by_hydra=True
    ),
    "export": Command(
        does="copy a checkpoint's policy as a transformers folder", words="CHECKPOINT FOLDER"
    ),
    "compare": Command(
        does="train with several objectives and seeds, and write a page that compares them",
        words="[field=value ...] objectives=[NAME,...] out=FOLDER [seeds=3]",
    ),
    "report": Command(
        does="write a page on a run, or on several", words="RUN_DIRECTORY ... [out=FILE.html]"
    ),
    "plan": Command(
        does="say what a job will do and need, and warn, before anything starts",
        words="[field=value ...] [plan.FIELD=value ...] [--json]",
    ),
    "simulate": Command(
        does="run the real controller on a modelled cluster",
        words="[field=value ...] [from=RUN_DIRECTORY] [cluster.FIELD=value ...] [--json]",
    ),
    "submit": Command(
        does="size a job from a recipe and send it, or write its files",
        words="[field=value ...] cluster=kuberay|slurm|ray|local [cluster.FIELD=value ...] "
        "[out=FOLDER | --render]",
    ),
    "jobs": Command(
        does="what was submitted from here: how it does, its log, its end",
        words="[list] | status NAME | logs NAME [follow=false] | stop NAME [checkpoint=true] | "
        "forget NAME",
    ),
    "chaos": Command(
        does="train while actors are killed and frozen on purpose, and say what was lost",
        words="[field=value ...] [chaos.FIELD=value ...]",
        by_hydra=True,
    ),
    "objective": Command(does="draw objectives", words="plot NAME[:field=value] ... [out=FOLDER]"),
    "doctor": Command(
        does="say what this machine can run, and what is wrong with a remedy", words="[--json]"
    ),
}


def usage(command: str) -> str:
    """Return the words of a command."""
    return f"rlpost {command} {COMMANDS[command].words}"


def help_of(command: str) -> str:
    """Return what `rlpost COMMAND --help` prints where Hydra has nothing to say."""
    text = f"usage: {usage(command)}\n\n{COMMANDS[command].does}\n"
    if "[field=value" in COMMANDS[command].words:
        text += "\n`rlpost train --help` lists the fields of a recipe.\n"
    return text


def overview() -> str:
    """Return what `rlpost --help` prints."""
    lines = [f"  {name:<10} {command.does}" for name, command in COMMANDS.items()]
    commands = "\n".join(lines)
    return f"""usage: rlpost COMMAND [field=value ...] [--traceback]

Post-train language models with group-relative reinforcement learning on Ray.

commands:
{commands}

{_EXAMPLES}"""
