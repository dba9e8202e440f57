"""PairModel: any cross-encoder as one function from a batch of pairs to one fp32 logit each.

Enters: a loaded transformers model. Leaves: a module with two ways in: padded (every model), and packed (no padding,
attention by `varlen`; the families listed here). Whatever the dtype of the model, the product that makes the logit is
fp32: a bf16 logit has 8 bits, and lists of 100 candidates would be full of ties.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import ModelError
from pipelines.teacher.contract import answers_of
from pipelines.teacher.first_token import FIRST_TOKEN_FAMILIES, read_first_token_only
from pipelines.teacher.varlen import IMPLEMENTATION, Sequences, register

__all__ = ["PairModel", "pair_model"]

_LAST_TOKEN_FAMILIES = frozenset({"qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2"})
_PACKABLE = FIRST_TOKEN_FAMILIES | {"modernbert", "qwen2", "qwen3", "llama", "mistral"}


class PairModel(nn.Module):
    """Padded and packed forward of one cross-encoder."""

    can_pack = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """fp32 logits [pairs] of inputs [pairs, tokens], padded on the right."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits[:, 0].float()

    def packed(self, input_ids: Tensor, token_type_ids: Tensor | None, sequences: Sequences) -> Tensor:
        """fp32 logits [pairs] of pairs laid end to end: ids and token types [all tokens], and where each begins."""
        bounds = sequences.bounds.long()
        starts = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=len(input_ids))
        places = torch.arange(len(input_ids), device=input_ids.device) - starts
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids[None]}
        return self._packed(sequences, input_ids=input_ids[None], position_ids=self._positions(places)[None], **types)

    def use_packed_attention(self) -> None:
        """Switch the model's attention to `varlen`; from then on only `packed` works.

        Raises:
            ModelError: the model's family has no packed path.
        """
        if not self.can_pack:
            raise ModelError(f"a {self.model.config.model_type} cross-encoder cannot be scored without padding")
        register()
        self.model.set_attn_implementation(IMPLEMENTATION)

    def _positions(self, places: Tensor) -> Tensor:
        return places

    def _packed(self, sequences: Sequences, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


class _FirstTokenModel(PairModel):
    """BERT and its kin; only the first token goes through the last layer."""

    can_pack = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        read_first_token_only(model)

    def _positions(self, places: Tensor) -> Tensor:
        table = self.model.base_model.embeddings.position_embeddings
        # RoBERTa and its kin count positions from the padding index on.
        return places if table.padding_idx is None else places + table.padding_idx + 1

    def _packed(self, sequences: Sequences, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**inputs, sequences=sequences).logits
        return logits[:, 0].float()


class _ModernBertModel(PairModel):
    """ModernBERT: rotary positions, local attention in most layers, and a head after the pooled state."""

    can_pack = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """As `PairModel.forward`, with masks of its own in which a padded place, too, sees something.

        transformers lets it see nothing, whose softmax is NaN where a backend computes it as written.
        """
        del token_type_ids  # ModernBERT has none
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        real = attention_mask.bool()[:, None, None, :]
        near = (places[:, None] - places[None, :]).abs() <= self.model.config.local_attention // 2
        padded = ~attention_mask.bool()[:, None, :, None]
        masks = {"full_attention": real | padded, "sliding_attention": (real & near) | padded}
        states: Tensor = self.model.model(input_ids=input_ids, attention_mask=masks).last_hidden_state
        if self.model.config.classifier_pooling == "cls":
            return self._classify(states[:, 0])
        kept = attention_mask[:, :, None].to(states.dtype)
        return self._classify((states * kept).sum(dim=1) / kept.sum(dim=1))

    def _packed(self, sequences: Sequences, **inputs: Tensor) -> Tensor:
        states: Tensor = self.model.model(**inputs, sequences=sequences).last_hidden_state[0]
        bounds = sequences.bounds.long()
        if self.model.config.classifier_pooling == "cls":
            pooled = states[bounds[:-1]]
        else:
            pooled = torch.segment_reduce(states.float(), "mean", offsets=bounds, axis=0).to(states.dtype)
        return self._classify(pooled)

    def _classify(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.head(pooled))
        return logits[:, 0].float()


class _LastTokenModel(PairModel):
    """Decoders: the score is read off the last token, by a classifier or as the difference of two answers' logits."""

    def __init__(self, model: Any, read: nn.Linear | Tensor) -> None:
        super().__init__(model)
        self.can_pack = model.config.model_type in _PACKABLE
        weight, bias = (read.weight[0], read.bias) if isinstance(read, nn.Linear) else (read, None)
        self.direction: Tensor
        self.bias: Tensor
        self.register_buffer("direction", weight.detach().float().clone()[None])
        self.register_buffer("bias", (weight.new_zeros(1) if bias is None else bias).detach().float().clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        del token_type_ids  # decoders have none
        states = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        return self._read(states[torch.arange(len(states), device=states.device), last])

    def _packed(self, sequences: Sequences, **inputs: Tensor) -> Tensor:
        inputs.pop("token_type_ids", None)
        states = self.model.base_model(**inputs, sequences=sequences, use_cache=False).last_hidden_state[0]
        return self._read(states[sequences.bounds[1:].long() - 1])

    def _read(self, states: Tensor) -> Tensor:
        return functional.linear(states.float(), self.direction, self.bias)[:, 0]


class _Fp32Linear(nn.Module):
    """A linear layer in fp32 whatever it is given."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.float()

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states.float())  # type: ignore[no-any-return]


def pair_model(model: Any, tokenizer: Any, *, head: str) -> PairModel:
    """The `PairModel` of a model that `load_cross_encoder` gave.

    Raises:
        ModelError: an answer of the head is not one token of the tokenizer, or both are the same.
    """
    family = model.config.model_type
    if answers := answers_of(head):
        positive, negative = (_token_of(tokenizer, answer) for answer in answers)
        if positive == negative:
            raise ModelError(f"both of teacher.answers {answers!r} are token {positive}")
        rows = model.get_output_embeddings().weight
        return _LastTokenModel(model, rows[positive].float() - rows[negative].float()).eval()
    if family in _LAST_TOKEN_FAMILIES:
        return _LastTokenModel(model, model.score).eval()
    _make_logit_fp32(model)
    if family in FIRST_TOKEN_FAMILIES and not model.config.is_decoder:
        return _FirstTokenModel(model).eval()
    return (_ModernBertModel if family == "modernbert" else PairModel)(model).eval()


def _token_of(tokenizer: Any, answer: str) -> int:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError(f"teacher.answers: {answer!r} is {len(ids)} tokens of the tokenizer, not one")
    return int(ids[0])


def _make_logit_fp32(model: Any) -> None:
    """Let the linear layer with a single output compute in fp32."""
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(names) != 1:
        raise ModelError(f"a model with one logit has one layer with one output, this has {names}")
    owner, _, attribute = names[0].rpartition(".")
    setattr(model.get_submodule(owner), attribute, _Fp32Linear(model.get_submodule(names[0])))
