"""Chat text and pictures to tables: what lies where, and what does not fit."""

import copy
import dataclasses
import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from vrl_jax.engine.processing import chat_text, encode, encode_one, fitting, question

from ..fixtures import small


def processor(**changes):
    return small.with_room(small.actor().processor, **changes)


def test_encode_pads_to_the_right_and_points_at_every_image_token():
    encoded = encode(processor(), small.samples())
    prompts, image = encoded.prompts, small.spec().image_token
    # One merged token for 28 x 28 pixels: 2, 1 + 2, none, and 4.
    merged = [2, 3, 0, 4]
    tokens, mask = np.asarray(prompts.tokens), np.asarray(prompts.mask)
    np.testing.assert_array_equal((tokens == image).sum(axis=1), merged)
    np.testing.assert_array_equal(np.asarray(prompts.slots) > 0, tokens == image)
    np.testing.assert_array_equal(
        (prompts.images.frames > 0).sum(axis=1), [8, 12, 0, 16]
    )
    np.testing.assert_array_equal(prompts.images.frames.max(axis=1), [1, 2, 0, 1])
    for row in range(4):
        length = mask[row].sum()
        assert mask[row, :length].all()
        assert not tokens[row, length:].any()
        # Each slot names a merged token whose patches are there.
        slots = np.asarray(prompts.slots)[row]
        real = np.asarray(prompts.images.frames)[row].reshape(-1, 4).all(axis=1)
        assert set(slots[slots > 0] - 1) == set(np.flatnonzero(real).tolist())


def test_encode_keeps_text_and_sizes_for_the_rewards():
    encoded = encode(processor(), small.samples())
    assert encoded.texts[2].endswith("What is it?<|im_end|>\n<|im_start|>assistant\n")
    sizes = encoded.image_sizes
    assert [len(s) for s in sizes] == [1, 2, 0, 1]
    assert sizes[1][1] == (56, 28, 56, 28)


def test_chat_text_puts_pictures_where_the_question_says():
    text = chat_text(processor(), question(small.samples()[1]))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"user\n{picture}or{picture}Which one" in text
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.")
    told = dataclasses.replace(small.samples()[2], annotations={"system": "Be brief."})
    assert chat_text(processor(), question(told)).startswith(
        "<|im_start|>system\nBe brief.<|im"
    )


@pytest.mark.parametrize(
    ("row", "changes", "budgets", "said"),
    [
        (0, {"question": "What?"}, {}, "row-0: 0 <image> in the question and 1 pic"),
        (0, {"question": "<image><|image_pad|>"}, {}, "row-0: .*spells out the image"),
        (2, {}, {"prompt_tokens": (9,)}, "row-2: The prompt has 23 tokens, .* is 9"),
        (1, {}, {"block": 16}, "row-1: 2 pictures need 2 blocks of 16.* is 1"),
        (3, {}, {"block": 0}, "row-3: A picture needs 16 patches, a block has 0"),
        (0, {"images": (b"no picture",)}, {}, "row-0: .*10 bytes"),
    ],
)
def test_encode_names_the_sample_that_does_not_fit(row, changes, budgets, said):
    sample = dataclasses.replace(small.samples()[row], **changes)
    with pytest.raises(ValueError, match=said):
        encode_one(processor(**budgets), sample)


def test_a_patch_budget_holds_whole_windows():
    with pytest.raises(ValueError, match=r"a multiple of 16, .*, got 24"):
        processor(block=24)


def odd_exif():
    """A JPEG that is to be turned, whose ResolutionUnit is text, not a number."""
    tags = [(0x0112, 3, 1, b"\6\0"), (0x0128, 2, 2, b"2\0")]
    entries = [struct.pack("<HHI4s", *tag) for tag in tags]
    table = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + table
    file = io.BytesIO()
    Image.new("RGB", (40, 60)).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("row", "changes", "said"),
    [
        (2, {"question": "what\ud800 is it"}, r"^Sample row-2: TypeError"),
        (2, {"id": "a\ud800b"}, r"^Sample a\\ud800b: .*surrogates not allowed"),
        (2, {"annotations": {"system": 5}}, "^Sample row-2: "),
        (0, {"images": (odd_exif(),)}, "^Sample row-0: .* cannot be decoded"),
    ],
)
def test_fitting_counts_an_odd_row_and_goes_on(row, changes, said):
    odd = dataclasses.replace(small.samples()[row], **changes)
    fit = fitting(processor(), [odd, small.samples()[3]])
    assert [sample.id for sample in fit.samples] == ["row-3"]
    (message,) = fit.dropped
    assert re.search(said, message)
    message.encode()  # it can be printed


def test_fitting_counts_what_the_template_refuses():
    """As Gemma 2's does of system messages."""
    refuses = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
    )
    tokenizer = copy.deepcopy(small.tokenizer())
    tokenizer.chat_template = refuses + tokenizer.chat_template
    odd = dataclasses.replace(small.samples()[2], annotations={"system": "be brief"})
    refusing = dataclasses.replace(processor(), tokenizer=tokenizer)
    fit = fitting(refusing, [odd, small.samples()[3]])
    assert fit.dropped == ["Sample row-2: TemplateError: System role not supported"]


def test_fitting_counts_what_cannot_be_used():
    """Law 7: the rest train."""
    fit = fitting(processor(prompt_tokens=(30,)), small.samples())
    assert [sample.id for sample in fit.samples] == ["row-0", "row-2"]
    assert max(fit.tokens) == 27
    assert fit.pictures == [[16], []]
    assert [message.split(":")[0] for message in fit.dropped] == [
        "Sample row-1",
        "Sample row-3",
    ]
    with pytest.raises(ValueError, match=r"No sample can be used. Sample row-0: The"):
        fitting(processor(prompt_tokens=(5,)), small.samples())
