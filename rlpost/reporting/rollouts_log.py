"""What the policy said: `rollouts/step_000001.parquet`, one row a trajectory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlpost.atomic import atomic_file
from rlpost.types import Group, Trajectory

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32()),
        pa.field("group", pa.int32()),
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("response", pa.string()),
        pa.field("reward", pa.float64()),
        pa.field("reward_parts", pa.map_(pa.string(), pa.float64())),
        pa.field("dropped", pa.string()),  # why it was not trained on; empty if it was
        pa.field("finish_reason", pa.string()),
        pa.field("worker", pa.string()),
        # Of its group, on the driver's clock: asked for, complete, scored.
        pa.field("asked_s", pa.float64()),
        pa.field("sampled_s", pa.float64()),
        pa.field("scored_s", pa.float64()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("behavior_logprobs", pa.list_(pa.float32())),
        pa.field("weight_versions", pa.list_(pa.int32())),
    ]
)


def write_rollouts(folder: Path, step: int, groups: Sequence[Group]) -> Path:
    """Write one step's trajectories and return the file, which appears whole or not at all."""
    rows = [
        _row(step, index, group, trajectory)
        for index, group in enumerate(groups)
        for trajectory in group.trajectories
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}.parquet"
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    return path


def _row(step: int, index: int, group: Group, trajectory: Trajectory) -> Mapping[str, Any]:
    prompt = group.prompt
    return {
        "step": step,
        "group": index,
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "answer": prompt.answer,
        "response": trajectory.text,
        "reward": trajectory.reward,
        "reward_parts": list(trajectory.reward_parts.items()),
        "dropped": trajectory.dropped,
        "finish_reason": trajectory.finish_reason,
        "worker": trajectory.worker,
        "asked_s": group.asked_s,
        "sampled_s": group.sampled_s,
        "scored_s": group.scored_s,
        "prompt_ids": trajectory.prompt_ids,
        "token_ids": trajectory.token_ids,
        "loss_mask": trajectory.loss_mask,
        "behavior_logprobs": trajectory.behavior_logprobs,
        "weight_versions": trajectory.weight_versions,
    }
