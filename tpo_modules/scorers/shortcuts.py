"""Work that a reward model need not do, left out where the reward stays the same."""

from __future__ import annotations

from typing import Any


def apply_shortcuts(model: Any) -> None:
    """Leave out what the head never reads.

    Today that is one thing: the head of a BERT classifier reads the first position alone, so the
    last layer computes only that one (a seventh of a six-layer model's work). The change is tried
    on a small input and taken back unless the outputs stay the same.
    """
    from transformers import BertForSequenceClassification

    suits = type(model) is BertForSequenceClassification and not model.config.is_decoder
    if not suits or getattr(model.config, "_attn_implementation", "") != "sdpa":
        return
    layer = model.bert.encoder.layer[-1]
    before = _probe(model)
    layer.forward = FirstPosition(layer)
    try:
        same = bool((_probe(model) - before).abs().max() <= 1e-5 * (1 + before.abs().max()))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        same = False  # another transformers, whose layers are put together in another way
    if not same:
        del layer.forward


def needs_mask(model: Any) -> bool:
    """Tell whether inputs that are padded on the right need an attention mask.

    In a causal model no token sees what comes after it, padding neither, and without a mask its
    attention is computed faster. That is believed of models whose every attention says that it is
    causal, if the outputs for a small, padded input are the same both ways.
    """
    import torch

    causal = [part.is_causal for part in model.modules() if hasattr(part, "is_causal")]
    own_code = type(model).__module__.startswith("transformers.")
    if not own_code or not causal or not all(causal):
        return True
    config = model.config.get_text_config()
    own_pad = config.pad_token_id
    pad = config.pad_token_id = 0 if own_pad is None else own_pad
    text = [token for token in range(config.vocab_size) if token != pad][:13]
    ids = torch.tensor([text[:8], [*text[8:], pad, pad, pad]], device=model.device)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    try:
        with torch.inference_mode():
            masked = model(input_ids=ids, attention_mask=mask).logits.float()
            difference = (model(input_ids=ids).logits.float() - masked).abs().max()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return True
    finally:
        config.pad_token_id = own_pad
    rounding = max(1e-5, 4 * torch.finfo(model.dtype).eps)
    return not bool(difference <= rounding * (1 + masked.abs().max()))


def _probe(model: Any) -> Any:
    import torch

    ids = torch.arange(16, device=model.device).reshape(2, 8) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.float()


class FirstPosition:
    """A BERT layer's forward pass for its first position."""

    def __init__(self, layer: Any) -> None:
        import transformers

        self.layer = layer
        self.in_tuple = int(transformers.__version__.split(".")[0]) < 5

    def __call__(self, hidden: Any, attention_mask: Any = None, *_: Any, **__: Any) -> Any:
        """Compute what the layer gives for the first position alone."""
        from torch.nn.functional import scaled_dot_product_attention

        attention = self.layer.attention.self
        first = hidden[:, :1]

        def heads(states: Any) -> Any:
            return states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

        context = scaled_dot_product_attention(
            heads(attention.query(first)),
            heads(attention.key(hidden)),
            heads(attention.value(hidden)),
            attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        )
        attended = self.layer.attention.output(context.transpose(1, 2).flatten(2), first)
        result = self.layer.output(self.layer.intermediate(attended), attended)
        return (result,) if self.in_tuple else result
