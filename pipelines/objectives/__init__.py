"""Losses: one per file, pure and differentiable, from a batch's scores or embeddings to one scalar.

Enters: student scores or embeddings (gradient flows), teacher scores (never), masks and positives. Leaves: a
scalar in float32, or float64 when the inputs are. `registry.OBJECTIVES` is how the training loop finds them
by the name a job writes under `training.objective`.
"""
