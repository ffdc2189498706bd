"""A released model from its folder, as the actor that plays.

    folder = hub.local("Qwen/Qwen2.5-VL-3B-Instruct")
    read = load_processor(folder, samples, prompts_per_step=64)
    actor = load_actor(folder, read.processor, reward, max_new_tokens=2048)
    actor trains on read.fits[0].samples

Tokenizer, chat template, stops and weights are the folder's; sizes are the samples'.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vrl_jax.engine.actor import Actor, Reward, allowed_ids
from vrl_jax.engine.budgets import Budgets, budgets
from vrl_jax.engine.conversation import following, user
from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import (
    Fitting,
    Measure,
    Processor,
    fitting,
    prompt_size,
)
from vrl_jax.models import hub
from vrl_jax.models.families import family_of
from vrl_jax.models.front_end import FrontEnd
from vrl_jax.models.remat import nothing
from vrl_jax.models.sharding import param_shardings
from vrl_jax.types import Sample

TEMPLATE = "chat_template.json"
"""Where processors kept the template before tokenizers did."""

ANY_PICTURE = 2**20
"""Units of patches: more than the largest picture that bounds would let through."""


THREADS = 8
"""Programs that go on at once: what their tools do to photographs takes its time."""


class Read(NamedTuple):
    """A processor whose sizes are the samples', and what they are.

    `fits` are what can be used of each set of samples that was given, in order.
    """

    processor: Processor
    budgets: Budgets
    fits: tuple[Fitting, ...]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The folder's, with a chat template. Code in a folder is never run.

    `ValueError` where tokenizer or template are missing.
    """
    folder = Path(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises what its parts raise
        raise ValueError(
            f"{folder} has no tokenizer that can be read ({error}); copy "
            "tokenizer.json and tokenizer_config.json of the released model there."
        ) from error
    kept = folder / TEMPLATE
    if not tokenizer.chat_template and kept.is_file():
        tokenizer.chat_template = json.loads(kept.read_text())["chat_template"]
    if not tokenizer.chat_template:
        raise ValueError(
            f"{folder} has no chat template: copy {TEMPLATE} or chat_template.jinja of "
            "the instruct model there."
        )
    return tokenizer


def load_front_end(
    folder: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> FrontEnd:
    """The functions of the host for the folder's model.

    The bounds are of a picture's area; those of the folder's processor if not given,
    and those that the family was released with, which is told, where it has none.
    `ValueError` for a family whose pictures all have one size.
    """
    spec = hub.read_spec(folder)
    make = family_of(spec).front_end
    asked = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in asked.items() if value is not None}
    if not bounds_pictures(folder):
        if given:
            raise ValueError(
                f"pictures of {spec.model_type} all have one size: leave "
                f"{' and '.join(given)} out."
            )
        return make(spec)
    released = family_of(spec).processor_settings(spec, None)
    bounds = _bounds(released["preprocessor_config.json"])
    said = _bounds(_processor(Path(folder)))
    if missing := [name for name in bounds if name not in {**said, **given}]:
        told = " and ".join(f"{name}={bounds[name]:,}" for name in missing)
        print(f"{folder} bounds no picture: {told}, as released", flush=True)
    front_end = make(spec, **{**bounds, **said, **given})
    least, most = front_end.pixel_bounds
    if least > most:
        raise ValueError(f"min_pixels={least} is more than max_pixels={most}.")
    return front_end


def bounds_pictures(folder: str | Path) -> bool:
    """Whether pictures of the folder's family differ in size, between two bounds."""
    make = family_of(hub.read_spec(folder)).front_end
    taken = inspect.signature(make).parameters.keys()
    return {"min_pixels", "max_pixels"} <= taken


def _processor(folder: Path) -> dict[str, Any]:
    """What the folder says of its processor of pictures, in its newer or older file."""
    settings = _json(folder / hub.PROCESSOR).get("image_processor")
    return settings or _json(folder / "preprocessor_config.json")


def _bounds(settings: Mapping[str, Any]) -> dict[str, int]:
    """Of a picture's area, under newer or older names."""
    size = settings.get("size") or {}
    said = {
        "min_pixels": settings.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": settings.get("max_pixels") or size.get("longest_edge"),
    }
    return {name: value for name, value in said.items() if value}


def _json(file: Path) -> dict[str, Any]:
    """The settings of a file; none where there is no such file."""
    return json.loads(file.read_text()) if file.is_file() else {}


def load_processor(
    folder: str | Path,
    *samples: Sequence[Sample],
    prompts_per_step: int,
    prompts_per_pack: int = 1,
    longest_prompt: int = 8192,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    parts: bool = False,
    measures: Sequence[Callable[[Processor], Measure]] = (),
) -> Read:
    """Reads each sample once and takes the few sizes that hold all of the sets.

    A prompt of more than `longest_prompt` tokens is dropped, and told; none is cut.
    `prompts_per_step` and `prompts_per_pack` as in `budgets`. Where `parts` of the
    pictures will be shown too, a block holds them: they may need more of it than a
    picture which had to be made smaller. `measures` make of the processor that reads
    how the samples of each set are measured, the first sets if there are fewer; the
    others by their prompts. A block holds what is shown behind a prompt, too.
    """
    front_end = load_front_end(folder, min_pixels=min_pixels, max_pixels=max_pixels)
    anything = Room((longest_prompt,), front_end.granularity * ANY_PICTURE)
    processor = Processor(load_tokenizer(folder), front_end, anything)
    sets = zip_longest(samples, measures, fillvalue=lambda _: prompt_size)
    fits = tuple(fitting(processor, one, measure=make(processor)) for one, make in sets)
    every = Fitting(*([*chain(*parts)] for parts in zip(*fits, strict=True)))
    for tokens, own in [*zip(every.tokens, every.later, strict=True)]:
        if own:
            every.tokens.append(tokens)
            every.pictures.append(own)
    block = max(chain(*every.pictures, *every.shown), default=0)
    if parts and 2 * block > front_end.largest:  # else none was made smaller
        block = max(block, front_end.largest)
    found = budgets(
        every,
        prompts_per_step=prompts_per_step,
        prompts_per_pack=prompts_per_pack,
        block=block,
    )
    return Read(dataclasses.replace(processor, room=found.room), found, fits)


def load_actor(
    folder: str | Path,
    processor: Processor,
    reward: Reward,
    *,
    max_new_tokens: int,
    dtype: jnp.dtype = jnp.float32,
    remat: Callable = nothing,
) -> Actor:
    """The folder's weights on the mesh that is set, with the folder's stops."""
    spec = processor.front_end.spec
    mesh, table = jax.sharding.get_mesh(), family_of(spec).parameter_table(spec)
    shardings = None if mesh.empty else param_shardings(table, mesh)
    _, params = hub.load(folder, dtype=dtype, shardings=shardings)
    told = {"max_new_tokens": max_new_tokens, "remat": remat}
    actor = weightless_actor(folder, processor, reward, **told)
    return dataclasses.replace(actor, params=params)


def weightless_actor(
    folder: str | Path,
    processor: Processor,
    reward: Reward,
    *,
    max_new_tokens: int,
    remat: Callable = nothing,
) -> Actor:
    """The same without weights: it can recite, and neither write nor score.

    The first of its stops, which ends what is learnt by heart, is the one that the
    chat template writes behind an answer, if it is among them.
    """
    spec, stops = processor.front_end.spec, stop_ids(folder, processor.tokenizer)
    end = following(processor, (), [user("?")]).tokens[0]
    return Actor(
        policy=family_of(spec).policy(spec, remat),
        params=None,
        processor=processor,
        allowed=allowed_ids(processor, spec.text.vocabulary),
        stop_ids=jnp.array(sorted(stops, key=lambda stop: stop != end)),
        reward=reward,
        max_new_tokens=max_new_tokens,
        program_threads=THREADS,
    )


def stop_ids(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Which tokens end a response.

    Those of the generation settings, of the model's configuration or its decoder's, and
    the tokenizer's.
    """
    found = {tokenizer.eos_token_id}
    for said in hub.endings(folder):
        named = said.get("eos_token_id")
        found |= {*named} if isinstance(named, list) else {named}
    if ends := sorted(found - {None}):
        return ends
    raise ValueError(
        f"{folder} does not say which token ends a response: name it as eos_token_id "
        f"in {hub.GENERATION}."
    )
