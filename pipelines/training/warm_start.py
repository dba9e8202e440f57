"""Layer-wise warm start: a student cut from an encoder learns to pass on what the whole encoder would have made.

Enters: the student, the encoder it was cut from, texts. Leaves: the student's backbone, trained; its heads untouched.
The first k layers of L are not a good encoder of k layers, for they were made to be followed by others.

    student's state j follows the encoder's state m(j) = round(j L / k), half up, j = 1 .. k; so the last the last
    D_j = mean over real tokens of || s_j - t_m(j) ||^2
    c_j = mean over real tokens of || t_m(j) ||^2,   measured once, on the texts of the first step
    L   = mean over j of D_j / c_j

c makes layers weigh alike, whose states differ in size by orders of magnitude; as a constant it lets a step be cut into
batches of any size without changing its gradient. Dropout is off on both sides. AdamW without decay; the rate warms up
over a tenth of the steps and falls along a cosine.

Source: hidden-state matching with an even layer map, TinyBERT (arXiv 1909.10351), without its projection, which equal
widths do not need, and its attention term; weights of the first layers as the start, as in `student.num_layers`. The
scaling by c is dualdistill's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.devices import torch_dtype
from pipelines.errors import DataError, ModelError, ObjectiveError
from pipelines.packing import pack_by_tokens
from pipelines.spec_sections.curriculum import WarmStartSpec
from pipelines.student.model import DualEncoder
from pipelines.tokens import Tokens

__all__ = ["layer_map", "state_distances", "warm_start"]

_MAX_GRAD_NORM = 1.0
_States = list[Tensor]


def warm_start(
    student: DualEncoder,
    source_backbone: Any,
    texts: Sequence[str],
    spec: WarmStartSpec,
    *,
    seed: int,
    dtype: str,
    tokens_per_batch: int = 16384,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Train the student's backbone in place to follow `source_backbone`. The same arguments give the same weights.

    Args:
        student: in any mode, and left in it.
        source_backbone: the whole encoder, on the student's device; left in eval mode, its weights as they are.
        texts: read as documents, in an order drawn from `seed`; more than one pass where the steps need it.
        spec: steps, texts per step, learning rate.
        seed: of the order; nothing else is random.
        dtype: concrete dtype of the forward passes (autocast); distances are computed in fp32.
        tokens_per_batch: padded tokens of one forward pass; a bound on memory that changes the result by rounding only.
        on_step: called with the step (from 1) and its loss; what it raises ends the warm start.

    Raises:
        ModelError: the student has as many layers as the source, or another width.
        DataError: there are no texts.
        ObjectiveError: a loss is NaN or infinite.
    """
    pairs = _checked_map(student, source_backbone)
    if not len(texts):
        raise DataError("the warm start has no texts")
    trainable = [parameter for parameter in student.backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _warm_cosine(done, spec.steps))
    was_training = student.training
    student.eval()
    source_backbone.eval()
    sizes: Tensor | None = None
    orders = _orders(len(texts), spec.texts_per_step, seed)
    try:
        for step in range(1, spec.steps + 1):
            tokens = student.tokenize([texts[row] for row in next(orders)], "document")
            packed = pack_by_tokens(tokens.lengths, tokens_per_batch)
            num_tokens = int(tokens.lengths.sum())
            if sizes is None:
                sizes = _squared_norms(student, source_backbone, pairs, tokens, packed, dtype) / num_tokens
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            for rows in packed:
                inputs = _inputs(student, tokens, rows)
                followed = _source_states(source_backbone, inputs, pairs, dtype)
                own = _states(student.backbone, inputs, [mine for mine, _ in pairs], dtype)
                part = (state_distances(own, followed, inputs["attention_mask"]) / (num_tokens * sizes)).mean()
                torch.autograd.backward(part)
                loss += part.item()
            if not math.isfinite(loss):
                raise ObjectiveError(f"the loss of the warm start is {loss} at step {step}")
            nn.utils.clip_grad_norm_(trainable, _MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            on_step(step, loss)
    finally:
        optimizer.zero_grad(set_to_none=True)
        student.train(was_training)


def layer_map(student_layers: int, source_layers: int) -> list[tuple[int, int]]:
    """(state of the student, state of the source that it follows), 1 = after the first layer; strictly rising."""
    return [
        (layer, (2 * layer * source_layers + student_layers) // (2 * student_layers))
        for layer in range(1, student_layers + 1)
    ]


def state_distances(own: Sequence[Tensor], followed: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """float32 [k]: per pair of states [texts, length, hidden] the squared distance, summed over real tokens.

    `attention_mask` is [texts, length], above 0 at real tokens.
    """
    real = attention_mask > 0
    return torch.stack(
        [(mine[real].float() - theirs[real].float()).square().sum() for mine, theirs in zip(own, followed, strict=True)]
    )


def _checked_map(student: DualEncoder, source: Any) -> list[tuple[int, int]]:
    layers, whole = student.backbone.config.num_hidden_layers, source.config.num_hidden_layers
    if layers >= whole:
        raise ModelError(
            f"there is nothing to warm start: the student has {layers} layers and the checkpoint {whole}; set "
            "student.num_layers below that, or leave the warm start out"
        )
    if student.hidden_size != source.config.hidden_size:
        raise ModelError(
            f"the student's states have {student.hidden_size} dimensions, those of the encoder it should follow "
            f"{source.config.hidden_size}"
        )
    return layer_map(layers, whole)


def _orders(num_texts: int, per_step: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of each step, without end: every text once per pass, passes in an order of their own."""
    rows, passed = np.empty(0, dtype=np.int64), 0
    while True:
        while len(rows) < per_step:
            order = np.random.default_rng((seed, passed)).permutation(num_texts)
            rows, passed = np.concatenate([rows, order]), passed + 1
        yield rows[:per_step]
        rows = rows[per_step:]


def _inputs(student: DualEncoder, tokens: Tokens, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
    padded = tokens.padded(rows, pad_id=student.tokenizer.pad_token_id or 0)
    return {name: torch.from_numpy(values).to(student.device) for name, values in padded.items()}


def _states(backbone: Any, inputs: dict[str, Tensor], layers: Sequence[int], dtype: str) -> _States:
    """The states after the layers `layers`; the last of them is the output, behind a final norm where there is one."""
    device = inputs["input_ids"].device
    with torch.autocast(device.type, dtype=torch_dtype(dtype), enabled=dtype != "fp32"):
        output = backbone(**inputs, output_hidden_states=True)
    return [*(output.hidden_states[layer] for layer in layers[:-1]), output.last_hidden_state]


def _source_states(source: Any, inputs: dict[str, Tensor], pairs: list[tuple[int, int]], dtype: str) -> _States:
    with torch.no_grad():
        return _states(source, inputs, [theirs for _, theirs in pairs], dtype)


def _squared_norms(
    student: DualEncoder,
    source: Any,
    pairs: list[tuple[int, int]],
    tokens: Tokens,
    packed: list[npt.NDArray[np.int64]],
    dtype: str,
) -> Tensor:
    """float32 [k], summed over all tokens."""
    total = torch.zeros(len(pairs), device=student.device)
    for rows in packed:
        inputs = _inputs(student, tokens, rows)
        states = _source_states(source, inputs, pairs, dtype)
        total += state_distances(states, [torch.zeros_like(state) for state in states], inputs["attention_mask"])
    return total


def _warm_cosine(done: int, steps: int) -> float:
    warmup = max(1, round(0.1 * steps))
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / max(1, steps - warmup)))
