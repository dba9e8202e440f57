"""What one Ray Job runs: a job's science, wired to the teacher pool, the store and Ray."""
