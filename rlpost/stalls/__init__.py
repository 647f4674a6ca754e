"""What of a run stands still, where it stands, and what is done about it."""
