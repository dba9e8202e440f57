"""Which backend and dtype a teacher gets: what the spec's `auto` means on a device, and how the choice is built.

Enters: names from the spec, the kind of device, a model's family. Leaves: concrete names for the contract; and, where
the teacher runs, the backend that the contract names.
"""

from pathlib import Path

import torch

from pipelines.devices import resolve_dtype, torch_dtype
from pipelines.errors import ContractError, ModelError
from pipelines.model_files import check_positions, model_config
from pipelines.openvino_runtime import openvino_precisions
from pipelines.teacher.backends.openvino_backend import OpenVinoBackend
from pipelines.teacher.backends.protocol import Backend
from pipelines.teacher.backends.torch_backend import TorchBackend
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.loading import load_cross_encoder
from pipelines.teacher.model import PairModel, pair_model
from pipelines.teacher.pairs import PairEncoder, pair_encoder

__all__ = ["kernel_fits", "load_backend", "resolve_backend"]

_OPENVINO_FAMILIES = frozenset({"bert", "electra", "roberta", "xlm-roberta", "camembert", "modernbert", "deberta-v2"})
"""Model types whose scores through OpenVINO are tested against transformers'."""


def resolve_backend(backend: str, dtype: str, *, device_type: str, folder: Path) -> tuple[str, str]:
    """Concrete (backend, dtype) for the teacher in `folder` on a `cuda` or `cpu` device.

    Raises:
        ModelError: the two, or one of them and the device, exclude each other; names the field.
    """
    on_cpu = device_type == "cpu"
    concrete = resolve_dtype(dtype, device_type=device_type)
    if on_cpu and concrete in {"tf32", "fp16"}:
        raise ModelError(
            f"teacher.dtype is {concrete!r}, which is for CUDA devices; the teacher's replicas have no GPU"
        )
    if backend == "openvino" and not on_cpu:
        raise ModelError("teacher.backend is 'openvino', which computes on CPUs; the teacher's replicas have GPUs")
    if backend == "openvino" and concrete not in (known := openvino_precisions()):
        raise ModelError(
            f"teacher.backend is 'openvino', which cannot compute in {concrete} here (it can in "
            f"{', '.join(sorted(known)) or 'nothing: it is not installed'})"
        )
    if backend != "auto":
        return backend, concrete
    family = model_config(folder).get("model_type")
    fits = on_cpu and family in _OPENVINO_FAMILIES and concrete in openvino_precisions()
    return "openvino" if fits else "torch", concrete


def load_backend(
    folder: Path, contract: ScoreContract, *, device: torch.device, threads: int
) -> tuple[Backend, PairEncoder]:
    """The contract's backend with the teacher in `folder`, and the encoder of its pairs.

    Raises:
        ContractError: no backend of that name is known.
        ModelError: the folder is no usable cross-encoder, or the backend does not run on the device.
    """
    openvino = contract.backend == "openvino"
    dtype = torch.float32 if openvino else torch_dtype(contract.dtype)
    loaded, tokenizer = load_cross_encoder(folder, dtype=dtype, device=device, head=contract.head)
    check_positions(loaded, contract.max_length, field="teacher.max_length")
    encoder = pair_encoder(
        folder,
        loaded,
        tokenizer,
        template=contract.template,
        max_length=contract.max_length,
        truncation=contract.truncation,
    )
    model = pair_model(loaded, tokenizer, head=contract.head)
    if openvino:
        return OpenVinoBackend(
            model, dtype=contract.dtype, threads=threads, has_types=encoder.layout.has_types
        ), encoder
    if contract.backend not in {"torch", "torch_compiled"}:
        raise ContractError(f"backend {contract.backend!r} is none of torch, torch_compiled, openvino")
    compiled = contract.backend == "torch_compiled"
    backend = TorchBackend(
        model,
        device=device,
        threads=threads,
        packed=not compiled and _packs(model, contract, device),
        compiled=compiled,
        max_length=contract.max_length,
        tf32=contract.dtype == "tf32",
    )
    return backend, encoder


def _packs(model: PairModel, contract: ScoreContract, device: torch.device) -> bool:
    """Whether to score without padding: on CUDA, where the kernel takes dtype, card and size of the heads."""
    if device.type != "cuda" or contract.dtype not in {"bf16", "fp16"} or not model.can_pack:
        return False
    return kernel_fits(model.head_size, capability=torch.cuda.get_device_capability(device))


def kernel_fits(head_size: int, *, capability: tuple[int, int]) -> bool:
    """Whether FlashAttention's kernel for ragged batches runs: Ampere or newer, heads of 8 to 256 in eights."""
    return capability >= (8, 0) and head_size % 8 == 0 and head_size <= 256
