"""What a failed call to an actor is told as: who, on which node, in what, and why."""

import re

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rlpost.errors import ActorError, LostError, RlpostError

_ADVICE = "Some common causes include"  # Ray's, in general; ours names the particular
# How the loss of a peer, a link or a device looks to a process that outlives it, of no more use.
_BROKEN = re.compile(r"gloo/|NCCL|CUDA error|Connection (closed|reset) by peer|Dist\w+Error")


def told(place: str, verb: str, error: RayActorError | RayTaskError) -> RlpostError:
    """Return the error to raise for a call that failed.

    Args:
        place: the actor and its node.
        verb: the method that was called.
        error: what Ray raised; an `RlpostError` inside it keeps its type.
    """
    if isinstance(error, ActorUnavailableError):
        return LostError(f"{place} could not be reached for {verb}: {str(error).strip()}")
    if isinstance(error, RayActorError):
        return LostError(f"{place} died during {verb}: {_cause_of_death(error)}")
    cause = error.cause
    if isinstance(cause, RlpostError):
        return type(cause)(f"{place} failed in {verb}: {cause}")
    said = f"{type(cause).__name__}: {cause}"
    kind = LostError if _BROKEN.search(said) else ActorError
    return kind(f"{place} failed in {verb}: {said}")


def _cause_of_death(error: RayActorError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = [line for line in lines if "exit" in line.lower() or "killed" in line.lower()]
    return (detail or lines or [type(error).__name__])[0].split(_ADVICE)[0].strip()
