"""Write a student as a folder that `SentenceTransformer(path)` loads.

Enters: a trained `DualEncoder`. Leaves: safetensors, tokenizer, pooling, heads, normalisation and prompts, in
sentence-transformers' own layout, written by sentence-transformers itself. Dual heads and a projection become one
`Dense` module, the matrix from pooled to served vectors, so whoever loads the folder needs nothing of dualdistill.
Matryoshka dimensions are named in config.json, where servers (vLLM among them) look for the lengths that a request may
ask for. Beside it lie whatever was asked for: a model card, graphs for other runtimes, ranges for int8. The folder
appears whole or not at all, and is sent nowhere.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.spec import ExportFormat
from pipelines.student.formats import write_graph
from pipelines.student.model import DualEncoder

__all__ = ["INT8_RANGES", "export_student"]

INT8_RANGES = "int8_ranges.npy"
"""File with the lowest and highest value of each dimension, float32 [2, dim]."""
_POOLING = {"mean": "mean", "cls": "cls", "last_token": "lasttoken"}


def export_student(
    student: DualEncoder,
    path: Path,
    *,
    card: str | None = None,
    formats: Sequence[ExportFormat] = (),
    int8_ranges: npt.NDArray[np.float32] | None = None,
) -> Path:
    """Save `student` to `path` (replaced whole if it exists, never left half written).

    Args:
        student: as it is to be served.
        path: of the folder.
        card: text of its README.md; None: there is none.
        formats: also write its encoder as these graphs.
        int8_ranges: float32 [2, dim], kept as `INT8_RANGES`.

    Returns:
        `path`.

    Raises:
        ModelError: a graph does not compute what the encoder does.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        weights = Path(scratch) / "weights"
        student.backbone.save_pretrained(weights, safe_serialization=True)
        student.tokenizer.save_pretrained(weights)
        transformer = Transformer(str(weights), max_seq_length=student.spec.max_length)
        _name_dimensions(transformer.model.config, student)
        modules = [transformer, Pooling(student.hidden_size, pooling_mode=_POOLING[student.spec.pooling])]
        if (weight := student.served_weight()) is not None:
            init_weight = weight.detach().cpu().clone()
            dense = Dense(
                student.hidden_size, student.dimension, bias=False, activation_function=None, init_weight=init_weight
            )
            modules.append(dense)
        if student.spec.normalize:
            modules.append(Normalize())
        prompts = {"query": student.spec.query_prompt, "document": student.spec.document_prompt}
        exported = Path(scratch) / "exported"
        similarity = "cosine" if student.spec.normalize else "dot"
        SentenceTransformer(
            modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu"
        ).save_pretrained(str(exported), create_model_card=False, safe_serialization=True)
        for name in formats:
            pad_id, longest = student.tokenizer.pad_token_id or 0, student.spec.max_length
            write_graph(transformer.model, exported, name, pad_id=pad_id, max_length=longest)
        if int8_ranges is not None:
            np.save(exported / INT8_RANGES, int8_ranges)
        if card is not None:
            (exported / "README.md").write_text(card, encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        exported.rename(path)
    return path


def _name_dimensions(config: Any, student: DualEncoder) -> None:
    if student.spec.matryoshka:
        config.matryoshka_dimensions = [student.dimension, *student.spec.matryoshka.dimensions]
    elif hasattr(config, "matryoshka_dimensions"):
        del config.matryoshka_dimensions  # what the starting checkpoint was trained for, this student was not
