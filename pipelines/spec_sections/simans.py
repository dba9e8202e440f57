"""What SimANS is told (EMNLP 2022), wherever a section draws negatives by it: from a mined list, from a scored one."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.spec_sections.base import Section

__all__ = ["SimansSection"]


class SimansSection(Section):
    """The weight of a negative, by how near its score is to the positive's."""

    a: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """`simans`: how sharply the weight exp(-a (score - score of the positive - b)^2) falls."""
    b: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    """`simans`: how far above the positive's score, on the same scale, the weight peaks; below 0 under it."""
    form: Literal["paper", "code", "ms_marco"] = "paper"
    """`simans`: the official code adds b instead of subtracting it; for MS MARCO it weighs by exp(-a |difference|)."""

    def require_simans_read(self, field: str, choice: str) -> None:
        """Refuse settings that nobody reads under `choice`, the value of `field`.

        Raises:
            ValueError: names them.
        """
        if choice != "simans" and (self.a, self.b, self.form) != (0.5, 0.0, "paper"):
            given = f"a {self.a}, b {self.b} and form {self.form!r}"
            raise ValueError(f"{given} belong to {field} 'simans'; {choice!r} does not read them")
        if self.form == "ms_marco" and self.b:
            raise ValueError(f"form 'ms_marco' knows no b, got {self.b}")
