"""The section about processes that train together: the student's, and a ranker's in adversarial rounds."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.spec_sections.base import Section

__all__ = ["WorkersSpec"]


class WorkersSpec(Section):
    """Processes that train one model together; none is training in the job's own process."""

    count: Annotated[int, Field(ge=1, le=1024)]
    min_count: Annotated[int, Field(ge=1, le=1024)] | None = None
    """With how few it goes on when nodes are lost; null is `count`: it waits for all."""
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0, le=16)] = 0.0
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 8
    """Of workers; each time the group starts again from the newest checkpoint."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count {self.min_count} is above count {self.count}")
        return self
