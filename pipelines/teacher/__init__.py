"""The cross-encoder as a function from (query, passage) pairs to raw fp32 logits, under a named contract."""
