"""A model's folder as an actor: what is read, and what is said of what is missing."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from vrl_jax.engine import pretrained
from vrl_jax.engine.conversation import user
from vrl_jax.engine.processing import encode_one, prompt_size
from vrl_jax.models import hub
from vrl_jax.models.families import family_of

from ..fixtures import actors, folders, gemma, small


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folders.model(tmp_path_factory.mktemp("hub") / "model")


@pytest.mark.parametrize("name", actors.OTHERS)
def test_every_family_is_read_from_its_folder(tmp_path, name):
    """The same ids, pictures and weights as of the actor that wrote it."""
    wanted = actors.of_family(name)
    front_end = wanted.processor.front_end
    hub.save(
        tmp_path,
        front_end.spec,
        wanted.params,
        tokenizer=wanted.processor.tokenizer,
        pixel_bounds=front_end.pixel_bounds,
    )
    read = pretrained.load_processor(tmp_path, small.samples(), prompts_per_step=4)
    for sample in read.fits[0].samples:
        mine, other = (
            encode_one(processor, sample)
            for processor in (read.processor, wanted.processor)
        )
        assert mine.text == other.text and mine.image_sizes == other.image_sizes
        np.testing.assert_array_equal(mine.unpadded.tokens, other.unpadded.tokens)
    assert len(read.fits[0].samples) == len(small.samples())
    found = pretrained.load_actor(
        tmp_path, read.processor, small.even_reward, max_new_tokens=small.BUDGET
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    np.testing.assert_array_equal(found.allowed, wanted.allowed)
    # The one that the template writes behind an answer comes first.
    assert found.stop_ids.tolist()[0] == wanted.processor.tokenizer.eos_token_id


def test_sizes_are_of_what_is_asked_first_and_of_what_may_be_shown_later(model):
    """By a program that opens with other words, and without the pictures."""
    asks = lambda sample: (user("What is it? Is it one of them or not?"),)
    asked = lambda processor: functools.partial(prompt_size, opening=asks)
    bounds = {"min_pixels": 28 * 28}
    samples = small.samples()
    read = pretrained.load_processor(
        model, samples, measures=[asked], prompts_per_step=1, **bounds
    )
    plain = pretrained.load_processor(model, samples, prompts_per_step=1, **bounds)
    (fit,), room = read.fits, read.processor.room
    words = len(encode_one(read.processor, samples[2], asks(None)).unpadded.tokens)
    assert fit.tokens == [words] * 4 and fit.pictures == [[]] * 4
    assert room.prompt_tokens == (words,)
    shown = plain.fits[0].pictures
    assert fit.later == shown and [*map(len, shown)] == [1, 2, 0, 1]
    whole = plain.processor.room
    assert (room.block, room.blocks[-1]) == (whole.block, whole.blocks[-1])
    unread = dataclasses.replace(samples[0], images=(b"no picture",))
    found = pretrained.load_processor(
        model, [samples[0], unread], measures=[asked], prompts_per_step=1
    )
    (why,) = found.fits[0].dropped
    assert why.startswith("Sample row-0: ") and len(found.fits[0].samples) == 1


def test_a_block_holds_parts_of_pictures_that_are_made_smaller(model):
    """2 x 6 tokens are 3 windows, and what is as large may be 3 x 4 in 4 of them."""
    read = functools.partial(pretrained.load_processor, model, prompts_per_step=1)
    wide = dataclasses.replace(small.samples()[0], images=(small.png(0, 56, 168),))

    def block(pixels, parts):
        bounds = {"min_pixels": 28 * 28, "max_pixels": pixels}
        return read([wide], parts=parts, **bounds).processor.room.block

    bound = 12 * 28 * 28
    assert (block(bound, parts=False), block(bound, parts=True)) == (48, 64)
    assert block(10 * bound, parts=True) == 48  # a part is no larger than the whole


def test_stops_are_those_of_the_generation_settings_and_the_tokenizer(model, tmp_path):
    tokenizer = small.tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert pretrained.stop_ids(model, tokenizer) == sorted(ends)
    settings = tmp_path / hub.GENERATION
    settings.write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert pretrained.stop_ids(tmp_path, tokenizer) == sorted({7, 8, 9, ends[1]})
    # Where transformers 5 writes it for Qwen2.5-VL.
    inner = {"text_config": {"eos_token_id": 6}}
    (tmp_path / "config.json").write_text(json.dumps(inner))
    assert pretrained.stop_ids(tmp_path, tokenizer) == sorted({6, 7, ends[1]})
    settings.write_text("{}")
    (tmp_path / "config.json").unlink()
    silent = type("Silent", (), {"eos_token_id": None})
    with pytest.raises(ValueError, match=r"name it as eos_token_id in generation_"):
        pretrained.stop_ids(tmp_path, silent)


def test_a_template_beside_the_tokenizer_is_found(model, tmp_path):
    """Where processors of Qwen2-VL and Gemma 3 keep it: chat_template.json."""
    folder = tmp_path / "model"
    small.tokenizer().save_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template: copy chat_template\.json"):
        pretrained.load_tokenizer(folder)
    (folder / pretrained.TEMPLATE).write_text(json.dumps({"chat_template": template}))
    assert pretrained.load_tokenizer(folder).chat_template == template
    with pytest.raises(ValueError, match="no tokenizer that can be read"):
        pretrained.load_tokenizer(tmp_path)


def test_pixel_bounds_are_the_folder_s_unless_given(model, tmp_path, capsys):
    found = pretrained.load_front_end(model, max_pixels=10**5)
    assert found.pixel_bounds == (56 * 56, 10**5)  # the released least one
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert "released" not in capsys.readouterr().out
    released = (3136, 12_845_056)  # Qwen2.5-VL's preprocessor_config.json
    assert pretrained.load_front_end(tmp_path).pixel_bounds == released
    assert "max_pixels=12,845,056, as released" in capsys.readouterr().out
    del settings["min_pixels"], settings["max_pixels"]
    settings["size"] = {"shortest_edge": 784, "longest_edge": 7840}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (784, 7840)
    (tmp_path / "preprocessor_config.json").unlink()  # as transformers 5 saves it
    newer = {"image_processor": settings | {"size": {"longest_edge": 8000}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (56 * 56, 8000)


def test_pictures_of_one_size_have_no_bounds(tmp_path):
    config = family_of(gemma.spec()).config_from_spec(gemma.spec())
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = gemma.spec().vision.image
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (size**2, size**2)
    with pytest.raises(ValueError, match="gemma3 all have one size: leave max_pixels"):
        pretrained.load_front_end(tmp_path, max_pixels=10**5)
