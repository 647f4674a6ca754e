"""Accuracy on held-out prompts."""

import asyncio
from collections.abc import Sequence
from math import comb

from rlpost.roles import Rollouts, Verifiers
from rlpost.schema import EvalConfig
from rlpost.types import Prompt, Sampling


class Evaluator:
    """Samples answers to held-out prompts and counts the right ones."""

    def __init__(
        self,
        suite: str,
        prompts: Sequence[Prompt],
        rollouts: Rollouts,
        verifiers: Verifiers,
        config: EvalConfig,
        max_response_tokens: int,
    ) -> None:
        self.suite = suite
        self.prompts = prompts
        self.rollouts = rollouts
        self.verifiers = verifiers
        self.config = config
        self.max_response_tokens = max_response_tokens

    async def run(self) -> dict[str, float]:
        """Return `eval/<suite>/pass@k` for k = 1 and num_samples, and the failed verifications."""
        results = await asyncio.gather(
            *(self._right(prompt, index) for index, prompt in enumerate(self.prompts))
        )
        num_samples = self.config.num_samples
        values = {
            f"eval/{self.suite}/pass@{k}": sum(
                pass_at_k(num_samples, right, k) for right, _ in results
            )
            / len(results)
            for k in sorted({1, num_samples})
        }
        values[f"eval/{self.suite}/unscored_count"] = float(sum(failed for _, failed in results))
        return values

    async def _right(self, prompt: Prompt, index: int) -> tuple[int, int]:
        """Return how many samples are right, and how many could not be scored."""
        sampling = Sampling(
            max_response_tokens=self.max_response_tokens,
            temperature=self.config.temperature,
            seed=index,
        )
        group = await self.rollouts.generate(prompt, self.config.num_samples, sampling)
        verdicts = await self.verifiers.verify(prompt, group.trajectories)
        rewards = [verdict.reward for verdict in verdicts]
        right = sum(r is not None and r >= self.config.success_reward for r in rewards)
        return right, rewards.count(None)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the unbiased estimate 1 - C(n - c, k) / C(n, k) of being right within k tries.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)
