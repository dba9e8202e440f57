"""Write a student as a folder that `SentenceTransformer(path)` loads.

Enters: a trained `DualEncoder`. Leaves: safetensors, tokenizer, pooling, heads, normalisation and prompts, in
sentence-transformers' own layout, written by sentence-transformers itself. Dual heads become one `Dense` module, the
matrix from pooled to served vectors, so whoever loads the folder needs nothing of dualdistill. Matryoshka dimensions
are named in config.json, where servers (vLLM among them) look for the lengths that a request may ask for.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipelines.student.model import DualEncoder

__all__ = ["export_student"]


def export_student(student: DualEncoder, path: Path) -> Path:
    """Save `student` to `path` (replaced whole if it exists, never left half written); returns `path`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        weights = Path(scratch) / "weights"
        student.backbone.save_pretrained(weights, safe_serialization=True)
        student.tokenizer.save_pretrained(weights)
        transformer = Transformer(str(weights), max_seq_length=student.spec.max_length)
        _name_dimensions(transformer.model.config, student)
        modules = [transformer, Pooling(student.hidden_size, pooling_mode=student.spec.pooling)]
        if student.heads:
            weight = student.heads.served_weight().detach().cpu().clone()
            dense = Dense(
                student.hidden_size, student.dimension, bias=False, activation_function=None, init_weight=weight
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
        if path.exists():
            shutil.rmtree(path)
        exported.rename(path)
    return path


def _name_dimensions(config: Any, student: DualEncoder) -> None:
    if student.spec.matryoshka:
        config.matryoshka_dimensions = [student.dimension, *student.spec.matryoshka.dimensions]
    elif hasattr(config, "matryoshka_dimensions"):
        del config.matryoshka_dimensions  # what the starting checkpoint was trained for, this student was not
