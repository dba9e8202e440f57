"""PairModel: any cross-encoder as one function from a batch of pairs to one fp32 logit each.

Enters: a loaded transformers model. Leaves: a module with two ways in: padded (every model), and packed (no padding,
attention by `varlen`; the families listed here). Both end in one state a pair, and one product makes the logit of it,
in fp32 whatever the dtype of the model: a bf16 logit has 8 bits, and lists of 100 candidates would be full of ties.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.teacher.contract import answers_of
from pipelines.teacher.first_token import FIRST_TOKEN_FAMILIES, read_first_token_only
from pipelines.teacher.varlen import IMPLEMENTATION, Sequences, register

__all__ = ["PairModel", "pair_model"]

_ANSWERING_FAMILIES = frozenset({"qwen2", "qwen3", "llama", "mistral"})
"""Causal LMs whose logits are plain products with the last state: no soft cap, no scale."""
_LAST_TOKEN_FAMILIES = _ANSWERING_FAMILIES | {"gemma", "gemma2"}
_PACKABLE = FIRST_TOKEN_FAMILIES | {"modernbert"} | _ANSWERING_FAMILIES


class PairModel(nn.Module):
    """Padded and packed forward of one cross-encoder; `weight` and `bias` make the logit of a state."""

    can_pack = False

    def __init__(self, model: Any, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.detach().float().clone())
        self.register_buffer("bias", (weight.new_zeros(()) if bias is None else bias).detach().float().clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """fp32 logits [pairs] of inputs [pairs, tokens], padded on the right."""
        return self.logits(self.states(input_ids, attention_mask, token_type_ids))

    def packed(self, input_ids: Tensor, token_type_ids: Tensor | None, sequences: Sequences) -> Tensor:
        """fp32 logits [pairs] of pairs laid end to end: ids and token types [all tokens], and where each begins."""
        bounds = sequences.bounds.long()
        starts = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=len(input_ids))
        places = torch.arange(len(input_ids), device=input_ids.device) - starts
        inputs = {"input_ids": input_ids[None], "position_ids": self._positions(places)[None]}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids[None]
        return self.logits(self._packed_states(sequences, inputs))

    def states(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """What the logit is made of, [pairs, size]."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return states

    def logits(self, states: Tensor) -> Tensor:
        """fp32 [pairs]; a sum of products, because TF32 would round those of a matrix product."""
        return (states.float() * self.weight).sum(dim=-1) + self.bias

    @property
    def head_size(self) -> int:
        """Of one attention head."""
        config = self.model.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

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

    def _packed_states(self, sequences: Sequences, inputs: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError


class _FirstTokenModel(PairModel):
    """BERT and its kin; only the first token goes through the last layer."""

    can_pack = True

    def __init__(self, model: Any, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(model, weight, bias)
        read_first_token_only(model)

    def _positions(self, places: Tensor) -> Tensor:
        table = self.model.base_model.embeddings.position_embeddings
        # RoBERTa and its kin count positions from the padding index on.
        return places if table.padding_idx is None else places + table.padding_idx + 1

    def _packed_states(self, sequences: Sequences, inputs: dict[str, Tensor]) -> Tensor:
        states: Tensor = self.model(**inputs, sequences=sequences).logits
        return states


class _ModernBertModel(PairModel):
    """ModernBERT: rotary positions, local attention in most layers, and a head after the pooled state."""

    can_pack = True

    def states(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """As `PairModel.states`, with masks of its own in which a padded place, too, sees something.

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
            return self._headed(states[:, 0])
        kept = attention_mask[:, :, None].to(states.dtype)
        return self._headed((states * kept).sum(dim=1) / kept.sum(dim=1))

    def _packed_states(self, sequences: Sequences, inputs: dict[str, Tensor]) -> Tensor:
        states: Tensor = self.model.model(**inputs, sequences=sequences).last_hidden_state[0]
        bounds = sequences.bounds.long()
        if self.model.config.classifier_pooling == "cls":
            return self._headed(states[bounds[:-1]])
        pooled = torch.segment_reduce(states.float(), "mean", offsets=bounds, axis=0)
        return self._headed(pooled.to(states.dtype))

    def _headed(self, pooled: Tensor) -> Tensor:
        states: Tensor = self.model.head(pooled)
        return states


class _LastTokenModel(PairModel):
    """Decoders: the score is read off the last token, by a classifier or as the difference of two answers' logits."""

    def __init__(self, model: Any, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(model, weight, bias)
        self.can_pack = model.config.model_type in _PACKABLE

    def states(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """As `PairModel.states`: the last token's."""
        del token_type_ids  # decoders have none
        states: Tensor = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last]

    def _packed_states(self, sequences: Sequences, inputs: dict[str, Tensor]) -> Tensor:
        inputs.pop("token_type_ids", None)
        states: Tensor = self.model.base_model(**inputs, sequences=sequences, use_cache=False).last_hidden_state[0]
        return states[sequences.bounds[1:].long() - 1]


def pair_model(model: Any, tokenizer: Any, *, head: str) -> PairModel:
    """The `PairModel` of a model that `load_cross_encoder` gave; takes it apart.

    Raises:
        ModelError: an answer of the head is not one token of the tokenizer, or both are the same; the model does
            something to the logits of its answers that a difference of products is not.
    """
    family = model.config.model_type
    if answers := answers_of(head):
        return _LastTokenModel(model, *_difference(model, tokenizer, *answers)).eval()
    if family in _LAST_TOKEN_FAMILIES:
        return _LastTokenModel(model, model.score.weight[0], model.score.bias).eval()
    layer = _take_logit_layer(model)
    kind = PairModel
    if family in FIRST_TOKEN_FAMILIES and not model.config.is_decoder:
        kind = _FirstTokenModel
    elif family == "modernbert":
        kind = _ModernBertModel
    return kind(model, layer.weight[0], None if layer.bias is None else layer.bias[0]).eval()


def _difference(model: Any, tokenizer: Any, positive: str, negative: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of logit(positive) - logit(negative)."""
    family = model.config.model_type
    if family not in _ANSWERING_FAMILIES:
        known = ", ".join(sorted(_ANSWERING_FAMILIES))
        raise ModelError(f"teacher.answers: a {family} model does not score by answers here; these do: {known}")
    first, second = (_token_of(tokenizer, answer) for answer in (positive, negative))
    if first == second:
        raise ModelError(f"both of teacher.answers {(positive, negative)!r} are token {first}")
    layer = model.get_output_embeddings()
    bias = None if layer.bias is None else layer.bias[first].float() - layer.bias[second].float()
    return layer.weight[first].float() - layer.weight[second].float(), bias


def _token_of(tokenizer: Any, answer: str) -> int:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError(f"teacher.answers: {answer!r} is {len(ids)} tokens of the tokenizer, not one")
    return int(ids[0])


def _take_logit_layer(model: Any) -> nn.Linear:
    """Take the linear layer with a single output out of `model`, which then returns what goes into it."""
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(names) != 1:
        raise ModelError(f"a model with one logit has one layer with one output, this has {names}")
    layer: nn.Linear = model.get_submodule(names[0])
    owner, _, attribute = names[0].rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Identity())
    return layer
