"""What a job will do, before anything starts: batch, memory, transfers, actors, warnings."""
