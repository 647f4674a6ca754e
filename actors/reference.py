"""The frozen policy that the KL penalty measures against."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rlpost.batching import reference_batches
from rlpost.learning import TokenPolicy
from rlpost.models import load_policy
from rlpost.paths import check_seen
from rlpost.schema import RunConfig
from rlpost.stalls.stack_signal import answer_signal
from rlpost.types import Trajectory


class ReferencePolicy:
    """Answers with log pi_ref of trajectories; forward passes only.

    Use: `start(folder)`, then any number of `logprobs(trajectories)`.
    """

    def __init__(self, config: RunConfig, index: int) -> None:
        answer_signal()
        self.config = config
        self.name = f"reference-{index}"
        self.policy: TokenPolicy | None = None
        self.device = "cuda" if config.reference.num_gpus else "cpu"

    def start(self, model_folder: str) -> None:
        """Load the policy as it was before training, without an adapter."""
        check_seen(Path(model_folder), "run_dir or model.path")
        torch.set_num_threads(self.config.reference.num_threads)
        model = load_policy(self.config, model_folder, trainable=False)
        self.policy = TokenPolicy(model, self.config.sampling.temperature).to(self.device).eval()

    def pulse(self) -> None:
        """Give a sign of life."""

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Return each trajectory's logprobs over its `token_ids`, 0 where not trained."""
        assert self.policy is not None, "start() comes before logprobs()"
        results: dict[int, tuple[float, ...]] = {}
        size = self.config.reference.micro_batch_size
        for indices, rows_in in reference_batches(trajectories, size):
            micro = rows_in.to(self.device)
            with torch.inference_mode():
                rows, _ = self.policy(micro.token_ids, micro.attention_mask, micro.loss_mask)
            for index, row in zip(indices, rows.tolist(), strict=True):
                start = len(trajectories[index].prompt_ids)
                end = start + len(trajectories[index].token_ids)
                results[index] = tuple(row[start:end])
        return [results[index] for index in range(len(trajectories))]
