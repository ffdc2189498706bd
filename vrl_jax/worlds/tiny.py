"""A policy small enough for a laptop: real architecture, real tokenizer, tiny sizes.

The tokenizer is a byte-level BPE with the Qwen2 split rule, the family's special
tokens and its chat format, trained in a moment on the world's own text. So every
string can be encoded, and the words of the world are one token each.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from vrl_jax.models.qwen_vl.families import QWEN2_5_VL, Family
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Contractions, words with one leading sign, single digits, runs of signs, blanks:
# how Qwen2 splits text before merging bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system\nPROMPT<|im_end|>{{ '\n' }}
{%- endif -%}
"""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] + '\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant{{ '\n' }}
{%- endif -%}
"""


def chat_template(family: Family = QWEN2_5_VL) -> str:
    """The family's chat format, with the system turn that it puts in where none is."""
    if family.system_prompt is None:
        return CHAT_TEMPLATE
    return SYSTEM.replace("PROMPT", family.system_prompt) + CHAT_TEMPLATE


def tokenizer(
    texts: Iterable[str], family: Family = QWEN2_5_VL
) -> PreTrainedTokenizerFast:
    """A Qwen2-like tokenizer with merges learnt from `texts`, the same each time."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    template = "system\nYou are a helpful assistant.\nuser\nassistant\n"
    trainer = BpeTrainer(
        vocab_size=8192,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([template, *texts], trainer)
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template(family),
        clean_up_tokenization_spaces=False,
    )


def spec(tokenizer: PreTrainedTokenizerFast) -> QwenSpec:
    """Qwen2.5-VL with 1.1 million parameters: 2 vision blocks, 4 decoder layers.

    Windows are 56 pixels; the first vision block attends within them, the second
    within a picture.
    """
    token = tokenizer.convert_tokens_to_ids
    return QwenSpec(
        vision=VisionSpec(
            depth=2, width=64, heads=4, mlp=192, full_blocks=(1,), window=56
        ),
        text=TextSpec(
            layers=4,
            width=128,
            mlp=384,
            heads=4,
            kv_heads=2,
            # Rows beyond the tokenizer, as in the released models.
            vocabulary=-(-len(tokenizer) // 64) * 64,
            rope_sections=(4, 6, 6),
            max_positions=1024,
        ),
        tied=True,
        image_token=token("<|image_pad|>"),
        video_token=token("<|video_pad|>"),
        vision_start_token=token("<|vision_start|>"),
        vision_end_token=token("<|vision_end|>"),
    )
