"""Tasks: prompts, verifiers and, where there are some, worked answers."""
