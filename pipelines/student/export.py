"""Write a student as a folder that `SentenceTransformer(path)` loads.

Enters: a trained `DualEncoder`. Leaves: safetensors, tokenizer, pooling, normalisation and prompts, in
sentence-transformers' own layout, written by sentence-transformers itself.
"""

import shutil
import tempfile
from pathlib import Path

from pipelines.student.model import DualEncoder

__all__ = ["export_student"]


def export_student(student: DualEncoder, path: Path) -> Path:
    """Save `student` to `path` (replaced whole if it exists, never left half written); returns `path`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        weights = Path(scratch) / "weights"
        student.backbone.save_pretrained(weights, safe_serialization=True)
        student.tokenizer.save_pretrained(weights)
        transformer = Transformer(str(weights), max_seq_length=student.spec.max_length)
        pooling = Pooling(student.dimension, pooling_mode=student.spec.pooling)
        modules = [transformer, pooling, *([Normalize()] if student.spec.normalize else [])]
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
