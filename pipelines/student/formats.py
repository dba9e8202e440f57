"""The student's encoder as a graph for other runtimes, ONNX or OpenVINO, beside the weights that torch loads.

Enters: the encoder of an exported student. Leaves: `onnx/model.onnx` or `openvino/openvino_model.xml`, where
sentence-transformers looks for its backends: from `input_ids` and `attention_mask`, int64 [texts, tokens] of any size,
to `last_hidden_state` float32. Pooling, heads and norm stay sentence-transformers' modules, the same for all backends.
A graph is held against the encoder before it counts: a tracer that took a branch for a constant raises no error.
"""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.openvino_runtime import openvino_runtime
from pipelines.spec import ExportFormat

__all__ = ["GRAPHS", "require_formats", "run_graph", "write_graph"]

GRAPHS: dict[ExportFormat, str] = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
"""Where a format's graph lies in the student's folder."""
_NEEDS: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
_TOLERANCE = 1e-3
"""Of a hidden state, in units of the largest: graphs differ by the order of sums, far less than this."""
_INLINE_BYTES = 1_800_000_000
"""An ONNX file holds at most 2 GiB; the weights of larger encoders lie beside it."""

Graph = Callable[[dict[str, npt.NDArray[np.int64]]], npt.NDArray[np.float32]]


class _LastHiddenState(nn.Module):
    """A tracer wants tensors in and a tensor out."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self._encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def require_formats(formats: Sequence[ExportFormat]) -> None:
    """Refuse formats that cannot be written here, before a job has cost anything.

    Raises:
        ModelError: a package is missing; names the field, the format and the extra.
    """
    for place, name in enumerate(formats):
        if missing := [package for package in _NEEDS[name] if importlib.util.find_spec(package) is None]:
            raise ModelError(
                f"export.formats.{place} is {name!r}, which needs {', '.join(missing)}, and that is not installed "
                f"here: pip install 'dualdistill[{name}]'"
            )


def write_graph(encoder: Any, folder: Path, name: ExportFormat, *, pad_id: int, max_length: int) -> Path:
    """Write `encoder` to its place below `folder` and hold the file against it.

    Args:
        encoder: a transformers model in float32, on the CPU; in evaluation mode afterwards.
        folder: the student's.
        name: of the format.
        pad_id: the tokenizer's.
        max_length: the longest text, in tokens, that must come out right.

    Returns:
        The graph's file.

    Raises:
        ModelError: the graph does not compute what the encoder does.
    """
    path = folder / GRAPHS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    module = _LastHiddenState(encoder).eval()
    example = _batch(encoder, lengths=(8, 5), pad_id=pad_id)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every branch on a shape; whether one mattered is measured below
        {"onnx": _write_onnx, "openvino": _write_openvino}[name](module, example, path)
    graph = run_graph(path, name)
    for lengths in ((11, 1, 6), (min(max_length, 512),)):
        batch = _batch(encoder, lengths=lengths, pad_id=pad_id)
        with torch.inference_mode():
            expected = module(**{key: torch.from_numpy(value) for key, value in batch.items()}).numpy()
        real = batch["attention_mask"] == 1
        scale = float(np.abs(expected[real]).max())
        if not (difference := float(np.abs(graph(batch) - expected)[real].max())) <= _TOLERANCE * scale:
            raise ModelError(
                f"export.formats: the {name} graph of a {encoder.config.model_type!r} encoder is not that encoder: "
                f"hidden states differ by {difference:.3g} (the largest is {scale:.3g})"
            )
    return path


def run_graph(path: Path, name: ExportFormat) -> Graph:
    """A function that runs the graph in `path` on the CPU, in float32 also where the processor has bf16."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(["last_hidden_state"], batch)[0]
    compiled = openvino_runtime().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: compiled(batch)["last_hidden_state"]


def _write_onnx(module: nn.Module, example: dict[str, npt.NDArray[np.int64]], path: Path) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(value) for value in example.values()),
        path,
        input_names=list(example),
        output_names=["last_hidden_state"],
        dynamic_shapes=tuple({0: "texts", 1: "tokens"} for _ in example),
        dynamo=True,
        external_data=size > _INLINE_BYTES,
        verbose=False,
    )


def _write_openvino(module: nn.Module, example: dict[str, npt.NDArray[np.int64]], path: Path) -> None:
    openvino = openvino_runtime()
    tensors = {name: torch.from_numpy(value) for name, value in example.items()}
    graph = openvino.convert_model(module, example_input=tensors)
    for place, name in zip(graph.inputs, example, strict=True):
        place.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"last_hidden_state"})
    openvino.save_model(graph, path, compress_to_fp16=False)


def _batch(encoder: Any, *, lengths: Sequence[int], pad_id: int) -> dict[str, npt.NDArray[np.int64]]:
    """Texts of these lengths, of ids from everywhere in the vocabulary, padded on the right."""
    rows = encoder.get_input_embeddings().num_embeddings
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(rows, size=mask.shape)
    ids[ids == pad_id] = (pad_id + 1) % rows  # RoBERTa's kin count positions by what is no padding
    return {"input_ids": np.where(mask == 1, ids, pad_id), "attention_mask": mask}
