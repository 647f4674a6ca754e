"""What tests of verifiers have verified."""

from rlpost.types import Trajectory


def response(text):
    """Return a response of one token with this text."""
    return Trajectory(
        prompt_ids=(1,),
        token_ids=(2,),
        loss_mask=(True,),
        behavior_logprobs=(0.0,),
        weight_versions=(0,),
        text=text,
        finish_reason="stop",
    )
