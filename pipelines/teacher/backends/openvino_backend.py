"""The OpenVINO backend: the same model on CPU, its operations fused and its weights laid out for the processor.

Enters: a `PairModel` in fp32. Leaves: logits in fp32, or from bf16 products where the processor has them. One stream
per core: each worker thread has a request of its own and computes a batch by itself.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.openvino_runtime import openvino_precisions, openvino_runtime
from pipelines.teacher.backends.protocol import Logits
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.model import PairModel

__all__ = ["OpenVinoBackend", "traced"]


class _States(torch.nn.Module):
    """`PairModel.states` as a module: the logit is made in fp32 outside, whatever OpenVINO computes in."""

    def __init__(self, model: PairModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self._model.states(input_ids, attention_mask, token_type_ids)


def traced(model: PairModel, *, has_types: bool) -> Any:
    """`model` as an OpenVINO model of batches of any shape, its inputs by name, up to the states of its logits."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]
    example = {name: torch.ones(2, 16, dtype=torch.long) for name in names}
    with torch.inference_mode(), warnings.catch_warnings():
        # Tracing warns of every Python branch on a shape, and of its own age. That no branch matters is what the
        # agreement tests are for.
        warnings.simplefilter("ignore")
        found = openvino_runtime().convert_model(_States(model), example_input=example)
    for place, name in zip(found.inputs, names, strict=True):
        place.get_tensor().set_names({name})
    return found


class OpenVinoBackend:
    """One `PairModel`, compiled by OpenVINO for this CPU.

    Args:
        model: in fp32, on the CPU; it is traced once and no longer needed after.
        dtype: fp32 or bf16, of the matrix products.
        threads: CPU cores to use.
        has_types: whether batches carry token types.

    Raises:
        ModelError: OpenVINO is not installed, or does not compute in `dtype` on this CPU.
    """

    def __init__(self, model: PairModel, *, dtype: str, threads: int, has_types: bool) -> None:
        if dtype not in (known := openvino_precisions()):
            raise ModelError(
                f"the openvino backend cannot compute in {dtype} here: it has {', '.join(sorted(known)) or 'nothing'}"
                + ("" if known else "; pip install 'dualdistill[openvino]'")
            )
        self.workers = max(1, threads)
        self._compiled = (
            openvino_runtime()
            .Core()
            .compile_model(
                traced(model, has_types=has_types),
                "CPU",
                {
                    "NUM_STREAMS": self.workers,
                    # Pinned streams of two replicas on one machine would share the first cores.
                    "ENABLE_CPU_PINNING": False,
                    "INFERENCE_NUM_THREADS": self.workers,
                    "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[dtype],
                },
            )
        )
        self._weight, self._bias = model.weight.numpy().copy(), model.bias.numpy().copy()
        self._local = threading.local()

    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        """Compute a batch; see `protocol.Backend`."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        self._local.request.infer(batch.padded(), share_inputs=True)
        states = self._local.request.get_output_tensor(0).data
        logits = (states * self._weight).sum(axis=1) + self._bias
        return lambda: logits

    def free_memory(self) -> None:
        """Nothing is cached between batches."""
