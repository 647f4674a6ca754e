"""rlpost: group-relative reinforcement learning for language models, on Ray."""
