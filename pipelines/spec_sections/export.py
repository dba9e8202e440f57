"""What a finished student is written as, beside the folder that `SentenceTransformer(path)` loads.

Enters: the `export` section of a job. Leaves: formats of its encoder, precisions of its embeddings, its licence.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines.spec_sections.base import Section

__all__ = ["ExportFormat", "ExportPrecision", "ExportSpec"]

ExportFormat = Literal["onnx", "openvino"]
ExportPrecision = Literal["int8", "binary"]


class ExportSpec(Section):
    """Nothing is uploaded: the student is a folder, and its model card says how to push it by hand."""

    formats: tuple[ExportFormat, ...] = ()
    """The encoder as a graph for another runtime, where sentence-transformers looks for `backend="onnx"` and
    `"openvino"`. Each needs the extra of its name, which is asked for before the job begins."""
    precisions: tuple[ExportPrecision, ...] = ()
    """Of the embeddings in an index: what each costs is measured on the test split and told in the model card; the
    ranges of int8 come with the student."""
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")] | None = None
    """As the hub names it (`apache-2.0`, `cc-by-4.0`, `other`); null: the card says that none was given."""

    @field_validator("formats", "precisions")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"names one twice: {list(names)}")
        return names
