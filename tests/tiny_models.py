"""Tiny random reward models of several families, saved as real folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = [
    "How do I bake bread? Mix flour, water, salt and yeast, then wait.",
    "Explain photosynthesis to a child: plants eat light.",
    "The quick brown fox jumps over the lazy dog, twice on Sundays.",
    "system user assistant model human You are a helpful assistant. 0123456789 (x + y) = z!",
    "q10 q200 r30 r0 q1 q2 r2 r3 q44 r55 q66 r77 q88 q99",
]

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """How one family's tiny model is made."""

    name: str
    chat: bool
    template: str | None = None
    tokens: tuple[str, ...] = ()
    special: tuple[tuple[str, str], ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama",
            True,
            LLAMA_TEMPLATE,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"),
            (("bos_token", "<|begin_of_text|>"), ("eos_token", "<|eot_id|>")),
        ),
        Family(
            "qwen2",
            True,
            QWEN_TEMPLATE,
            ("<|im_start|>", "<|im_end|>"),
            (("eos_token", "<|im_end|>"), ("pad_token", "<|endoftext|>")),
        ),
        Family(
            "gemma",
            True,
            GEMMA_TEMPLATE,
            ("<start_of_turn>", "<end_of_turn>"),
            (
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("unk_token", "<unk>"),
            ),
        ),
        Family("gpt2", True, None, (), (("bos_token", "<|end|>"), ("eos_token", "<|end|>"))),
        Family("deberta", False),
        Family("bert", False),
    )
}


def make_tokenizer(family: Family) -> Any:
    """Train a small tokenizer of the family's kind on a few sentences."""
    from transformers import PreTrainedTokenizerFast

    backend = _TRAINERS[family.name](family)
    if not family.chat:
        names = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "sep", "pad", "cls", "mask")}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **names,
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=list(family.tokens),
        **dict(family.special),
    )
    if family.template is not None:
        tokenizer.chat_template = family.template
    return tokenizer


def _byte_bpe(family: Family) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*dict.fromkeys([token for _, token in family.special] + list(family.tokens))]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos = dict(family.special).get("bos_token")
    if bos:  # as Llama 3's: the tokenizer adds a BOS of its own when asked for special tokens
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _sentencepiece_bpe(family: Family) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *family.tokens]
    special += [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([t.replace(" ", "▁") for t in CORPUS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def _pair_processor(tokenizer: Any) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )


_BRACKETED = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def _unigram(family: Family) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=_BRACKETED,
        unk_token="[UNK]",
        initial_alphabet=list("[]CLSEPUNKMAD"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _pair_processor(tokenizer)
    return tokenizer


def _wordpiece(family: Family) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=_BRACKETED, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _pair_processor(tokenizer)
    return tokenizer


_TRAINERS = {
    "llama": _byte_bpe,
    "qwen2": _byte_bpe,
    "gemma": _sentencepiece_bpe,
    "gpt2": _byte_bpe,
    "deberta": _unigram,
    "bert": _wordpiece,
}


def make_model(name: str, tokenizer: Any, **changes: Any) -> Any:
    """Make a random sequence classifier of a family, large enough to tell inputs apart."""
    import torch
    import transformers

    tf: Any = transformers
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "num_labels": 1,
        "initializer_range": 0.5,
        "pad_token_id": tokenizer.pad_token_id,
    }
    decoder = {"num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.0}
    if name == "llama":
        config: Any = tf.LlamaConfig(**{**common, **decoder, **changes})
        return tf.LlamaForSequenceClassification(config)
    if name == "qwen2":
        decoder.pop("head_dim")
        return tf.Qwen2ForSequenceClassification(tf.Qwen2Config(**{**common, **decoder, **changes}))
    if name == "gemma":
        return tf.GemmaForSequenceClassification(tf.GemmaConfig(**{**common, **decoder, **changes}))
    if name == "gpt2":
        common.pop("intermediate_size")
        return tf.GPT2ForSequenceClassification(tf.GPT2Config(**{**common, **changes}))
    if name == "deberta":
        relative = {
            "relative_attention": True,
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        }
        config = tf.DebertaV2Config(**{**common, **relative, **changes})
        return tf.DebertaV2ForSequenceClassification(config)
    return tf.BertForSequenceClassification(tf.BertConfig(**{**common, **changes}))


def save_tiny(folder: Path, name: str, **changes: Any) -> Path:
    """Save a tiny model and its tokenizer in a folder, as ``from_pretrained`` wants it."""
    tokenizer = make_tokenizer(FAMILIES[name])
    make_model(name, tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TinyModels:
    """Folders of tiny models, each saved once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, Path] = {}

    def folder(self, name: str, **changes: Any) -> Path:
        """Give the folder of a family's model with these changes to its configuration."""
        key = f"{name}-{sorted(changes.items())}"
        if key not in self._made:
            self._made[key] = save_tiny(self.root / str(len(self._made)), name, **changes)
        return self._made[key]


def plain_reward(folder: Path, messages: list[dict[str, str]], response: str) -> list[float]:
    """Score one response as ``transformers`` alone does: its outputs, from one unpadded input."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    if tokenizer.cls_token is not None:
        inputs = tokenizer([messages[-1]["content"]], [response], return_tensors="pt")
    else:
        turns = [*messages, {"role": "assistant", "content": response}]
        if tokenizer.chat_template is None:
            text = "\n\n".join(f"{t['role'].capitalize()}: {t['content']}" for t in turns)
            text = f"{tokenizer.bos_token}{text}{tokenizer.eos_token}"
        else:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        inputs = {"input_ids": ids}
    with torch.no_grad():
        return model.eval()(**inputs).logits[0].tolist()
