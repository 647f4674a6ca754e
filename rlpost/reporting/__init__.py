"""What a run shows of itself: console, metrics, rollouts, pictures and comparisons."""
