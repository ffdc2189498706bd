"""Prompts of Gemma 3 equal those of its processor: tokens, and which are pictures."""

import io

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from transformers import Gemma3Processor

from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import Processor, chat_text, encode, question
from vrl_jax.models import hub
from vrl_jax.models.gemma3.front_end import front_end

from ..fixtures import gemma, small
from ..models.cases import random_params

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("number", range(len(small.samples())))
def test_prompts_equal_the_processor(tmp_path, number):
    """One picture, two, none; blank lines merge with those of the text."""
    spec, sample = gemma.spec(), small.samples()[number]
    hub.save(tmp_path, spec, random_params(spec, 0), tokenizer=gemma.tokenizer())
    theirs = Gemma3Processor.from_pretrained(tmp_path)
    ours = Processor(gemma.tokenizer(), front_end(spec), Room((80,), block=32))
    pictures = [Image.open(io.BytesIO(data)) for data in sample.images]
    wanted = theirs(
        text=[chat_text(ours, question(sample))],
        images=[pictures] if pictures else None,
        add_special_tokens=False,
        return_tensors="np",
    )
    prompts = encode(ours, [sample]).prompts
    tokens, slots, positions = (
        np.asarray(table[0])[np.asarray(prompts.mask[0])]
        for table in (prompts.tokens, prompts.slots, prompts.positions)
    )
    np.testing.assert_array_equal(tokens, wanted["input_ids"][0])
    is_picture = wanted.get("token_type_ids", np.zeros((1, len(tokens))))[0]
    np.testing.assert_array_equal(slots > 0, is_picture)
    assert is_picture.sum() == len(pictures) * spec.vision.tokens
    np.testing.assert_array_equal(positions[:, 0], np.arange(len(tokens)))
