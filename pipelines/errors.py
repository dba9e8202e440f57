"""Every error that `pipelines` raises on purpose, as one tree.

    PipelineError
    ├── DataError            a data set breaks its layout: names file, line and id
    ├── ModelError           a model folder or name cannot be used as asked
    ├── ContractError        two things disagree about how scores were or are to be made
    ├── ObjectiveError       a loss got inputs it cannot be right on (NaN, a list of one ...)
    ├── RankedListsError     the table of ranked lists refuses or lacks something
    ├── CheckpointError      a checkpoint is incomplete or belongs to another run
    ├── SpecError            a job description was refused (pipelines.spec)
    └── Cancelled            the caller asked to stop; not a failure

Each carries `reason`, a stable machine word that services show as the job's `reason`.
"""

__all__ = [
    "Cancelled",
    "CheckpointError",
    "ContractError",
    "DataError",
    "ModelError",
    "ObjectiveError",
    "PipelineError",
    "RankedListsError",
]


class PipelineError(Exception):
    """Base of all deliberate errors of `pipelines`."""

    reason = "pipeline_error"


class DataError(PipelineError):
    """A data set is missing or breaks its layout; the message names file, line and id."""

    reason = "invalid_dataset"


class ModelError(PipelineError):
    """A model cannot be found, or is not what the job needs (labels, tokenizer, weights format)."""

    reason = "invalid_model"


class ContractError(PipelineError):
    """Scores made under one contract were about to be mixed with those of another."""

    reason = "score_contract_mismatch"


class ObjectiveError(PipelineError, ValueError):
    """A loss was given inputs on which its value would be wrong or undefined."""

    reason = "invalid_objective_input"


class RankedListsError(PipelineError):
    """The table of ranked lists refuses a commit or lacks rows that a reader needs."""

    reason = "ranked_lists_error"


class CheckpointError(PipelineError):
    """A checkpoint is incomplete, or was written by a run with other settings."""

    reason = "invalid_checkpoint"


class Cancelled(PipelineError):  # noqa: N818 - a request that was honoured, not an error
    """The caller asked to stop and the work stopped at a safe point."""

    reason = "cancelled_by_user"
