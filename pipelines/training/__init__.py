"""One loop that trains a student or a ranker from lists: batches, losses, checkpoints."""
