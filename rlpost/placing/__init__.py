"""Where the actors of a run go, what they ask for and share, and whether it fits."""
