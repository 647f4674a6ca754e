"""The learner's guard `nonfinite`: no optimiser step on a loss or gradient that is no number."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlpost.atomic import write_text
from rlpost.batching import MicroBatch
from rlpost.errors import GuardError

log = logging.getLogger(__name__)

_INPUTS = ("advantages", "behavior_logprobs", "ref_logprobs", "weights")
_REMEDY = (
    "the optimiser step was not taken. Look at those trajectories; lower learner.learning_rate or "
    "learner.max_grad_norm, lengthen learner.warmup_updates, or take model.dtype=float32 or an "
    "objective with bounded weights; then continue with resume=auto"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """A micro-batch whose loss or gradient is not finite, and its logprobs."""

    micro: MicroBatch
    logprobs: Tensor
    loss: float

    @property
    def what(self) -> list[str]:
        """What of it is not finite, the likeliest cause first."""
        values = {name: getattr(self.micro, name) for name in _INPUTS}
        values |= {"logprobs": self.logprobs, "loss": torch.tensor(self.loss)}
        bad = [k for k, v in values.items() if v is not None and not torch.isfinite(v).all()]
        return bad or ["gradient"]


class FiniteWatch:
    """Notices, micro-batch by micro-batch, losses and gradients that are not finite.

    Gradients are looked at as they are made, before they are added up and averaged over ranks: one
    sum a parameter. Use, on every rank alike: after each backward pass `look(micro, ...)`, before
    the optimiser's step `enforce(...)`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.offences: list[Offence] = []
        self._total: Tensor | None = None
        for parameter in parameters:
            parameter.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        part = gradient.detach().sum(dtype=torch.float32)
        self._total = part if self._total is None else self._total + part

    def look(self, micro: MicroBatch, logprobs: Tensor, loss: float) -> None:
        """Remember a micro-batch if its loss, or a gradient since the last look, is not finite."""
        total, self._total = self._total, None
        if math.isfinite(loss) and (total is None or bool(torch.isfinite(total))):
            return
        self.offences.append(Offence(micro=micro, logprobs=logprobs.detach(), loss=loss))

    def enforce(
        self, step: int, rank: int, folder: Path, decode: Callable[[Sequence[int]], str]
    ) -> None:
        """Stop all ranks together if one has seen something; it writes its trajectories down.

        Raises:
            GuardError: ranks, what is not finite, and the file to look at.
        """
        offences, self.offences = self.offences, []
        bad = ranks_with(yes=bool(offences))
        if not bad:
            return
        path = (folder / f"step_{step:06d}-rank_{rank}.jsonl").absolute()
        if offences:
            folder.mkdir(parents=True, exist_ok=True)
            rows = (row for offence in offences for row in _rows(step, offence, decode))
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        what = sorted({name for offence in offences for name in offence.what})
        where = f"{path} ({', '.join(what)})" if offences else f"{folder.absolute()}"
        raise GuardError(
            f"step {step}: guard nonfinite: NaN or infinity in the loss or gradient of rank "
            f"{', '.join(map(str, bad))}; its trajectories: {where}; {_REMEDY}"
        )


def ranks_with(*, yes: bool) -> list[int]:
    """Return the ranks that said yes; each calls this at the same moment."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [0] if yes else []
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    mine = torch.tensor([int(yes)], device=device)
    all_of_them = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(all_of_them, mine)
    return [rank for rank, one in enumerate(all_of_them) if int(one)]


def check_norm(norm: float, step: int) -> None:
    """Refuse a gradient norm that is not finite, which the sum over ranks may still make.

    Raises:
        GuardError: it is not finite; DeepSpeed has not taken the step.
    """
    if not math.isfinite(norm):
        raise GuardError(
            f"step {step}: guard nonfinite: the gradient's norm over all ranks is {norm}; {_REMEDY}"
        )


def _rows(
    step: int, offence: Offence, decode: Callable[[Sequence[int]], str]
) -> Iterator[Mapping[str, Any]]:
    """Yield a micro-batch's trajectories as JSON can say them."""
    micro = offence.micro
    for row in range(len(micro.token_ids)):
        mask = micro.loss_mask[row]
        if not mask.any():
            continue
        start, end = int(mask.nonzero()[0]), int(micro.attention_mask[row].sum())
        ids = micro.token_ids[row, :end].tolist()
        per_token = {
            "logprobs": offence.logprobs,
            "behavior_logprobs": micro.behavior_logprobs,
            "ref_logprobs": micro.ref_logprobs,
        }
        yield {
            "step": step,
            "micro_batch_not_finite": offence.what,
            "micro_batch_loss": _number(offence.loss),
            "advantage": _number(float(micro.advantages[row, start])),
            "prompt": decode(ids[:start]),
            "response": decode(ids[start:]),
            "prompt_ids": ids[:start],
            "token_ids": ids[start:],
            "loss_mask": mask[start:end].tolist(),
            **{
                name: [_number(value) for value in values[row, start:end].tolist()]
                for name, values in per_token.items()
                if values is not None
            },
        }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
