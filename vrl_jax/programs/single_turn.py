"""One question, one answer, sampled G times."""

import functools
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.processing import Encoded, encode
from vrl_jax.engine.sampling import Choose, Sampled, generate, row_keys
from vrl_jax.rewards.combine import call_safely
from vrl_jax.types import Episode, Prompts, Rollout, Sample, Turn

_generate = jax.jit(
    generate, static_argnums=0, static_argnames=("max_new_tokens", "choose")
)


def single_turn(
    actor: Actor,
    batches: Iterator[Sequence[Sample]],
    key: Key[Array, ""],
    *,
    group_size: int,
    choose: Choose = jax.random.categorical,
) -> Rollout:
    """y_1..y_G ~ pi(. | images, question) for the next batch; R_i = reward(y_i).

    At most `actor.prompts_per_pass` prompts are sampled at a time, and while the device
    samples some, the rewards of those before are computed here: a slow verifier costs
    only what it takes beyond the sampling.
    """
    samples = next(batches)
    encoded = encode(actor.processor, samples)
    keys = response_keys(samples, key, group_size)
    count = pieces(encoded.prompts, actor.prompts_per_pass)
    parts, groups, scores = [], [], []
    for number in range(count):
        part = functools.partial(_part, number=number, count=count)
        some = Encoded(jax.tree.map(part, encoded.prompts), *map(part, encoded[1:]))
        # This returns at once, with the device at work; only then are rewards due.
        sampled = sample(actor, some.prompts, part(keys), choose)
        scores += scored(actor, groups)
        groups = episodes(actor, part(samples), some, sampled, group_size)
        parts.append(sampled)
    scores += scored(actor, groups)
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return _rollout(actor, encoded, together, scores)


def pieces(prompts: Prompts, most: int) -> int:
    """How many equal pieces of at most `most` prompts, as few as can be.

    Pictures stay with their prompts, and all pieces have one shape.
    """
    count, pictures = len(prompts.tokens), len(prompts.images.frames)
    fewest = min(-(-count // most), pictures)
    return next(n for n in range(fewest, pictures + 1) if pictures % n == 0)


def _part(x: Sequence[Any] | Array, *, number: int, count: int) -> Any:
    size = len(x) // count
    return x if count == 1 else x[number * size : (number + 1) * size]


def response_keys(
    samples: Sequence[Sample], key: Key[Array, ""], group_size: int
) -> Key[Array, " B"]:
    """One key a response, from its sample's id and its place in the group."""
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    return row_keys(key, jnp.asarray(numbers), group_size)


def sample(
    actor: Actor,
    prompts: Prompts,
    keys: Key[Array, " B"],
    choose: Choose = jax.random.categorical,
) -> Sampled:
    """One response a key, as many for each prompt."""
    return _generate(
        actor.policy,
        actor.params,
        prompts,
        keys,
        _temperature(actor, len(keys)),
        actor.allowed,
        actor.stop_ids,
        max_new_tokens=actor.max_new_tokens,
        choose=choose,
    )


def beside(prompts: int, *parts: Sampled) -> Sampled:
    """Responses from several sources, those to one prompt together."""

    def join(*x: Array) -> Array:
        groups = [a.reshape(prompts, -1, *a.shape[1:]) for a in x]
        joined = jnp.concatenate(groups, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    return jax.tree.map(join, *parts)


def as_rollout(
    actor: Actor, samples: Sequence[Sample], encoded: Encoded, sampled: Sampled
) -> Rollout:
    """The responses with their rewards, one group a sample; the observer is told."""
    group_size = len(sampled.tokens) // len(samples)
    groups = episodes(actor, samples, encoded, sampled, group_size)
    return _rollout(actor, encoded, sampled, scored(actor, groups))


def scored(actor: Actor, groups: Sequence[Sequence[Episode]]) -> list[dict[str, float]]:
    """The scores of each group, in order; the observer is told of each, in order."""
    score = functools.partial(call_safely, actor.reward)
    if actor.reward_threads:
        with ThreadPoolExecutor(actor.reward_threads) as threads:
            found = [*threads.map(score, groups)]
    else:  # here: code with alarm signals, such as math-verify's, works nowhere else
        found = [*map(score, groups)]
    for group, scores in zip(groups, found, strict=True):
        actor.observe(group, scores)
    return [*itertools.chain.from_iterable(found)]


def _rollout(
    actor: Actor,
    encoded: Encoded,
    sampled: Sampled,
    scores: Sequence[Mapping[str, float]],
) -> Rollout:
    prompts = len(encoded.texts)
    parts = sorted({name for score in scores for name in score} - {"overall"})

    def column(name: str) -> Array:
        return jnp.array([score.get(name, jnp.nan) for score in scores], jnp.float32)

    return Rollout(
        prompts=encoded.prompts,
        tokens=sampled.tokens,
        positions=sampled.positions,
        mask=sampled.mask,
        temperature=_temperature(actor, len(sampled.tokens)),
        old_logprobs=sampled.logprobs,
        extra_logprobs={},
        rewards=column("overall"),
        reward_parts={name: column(name) for name in parts},
        group=jnp.repeat(jnp.arange(prompts), len(sampled.tokens) // prompts),
    )


def _temperature(actor: Actor, rows: int) -> Float[Array, " B"]:
    return jnp.full(rows, actor.temperature, jnp.float32)


def episodes(
    actor: Actor,
    samples: Sequence[Sample],
    encoded: Encoded,
    sampled: Sampled,
    group_size: int,
) -> list[list[Episode]]:
    """The sampled tokens as text, one list a prompt. Stop tokens are not shown."""
    tokens, mask, finished = map(
        np.asarray, (sampled.tokens, sampled.mask, sampled.finished)
    )
    written = [
        tuple(row[kept].tolist()) for row, kept in zip(tokens, mask, strict=True)
    ]
    texts = actor.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
    rows = [
        Episode(
            sample=samples[row // group_size],
            prompt=encoded.texts[row // group_size],
            turns=(Turn(texts[row], written[row]),),
            finished=bool(finished[row]),
            image_sizes=encoded.image_sizes[row // group_size],
            step=actor.step,
            total_steps=actor.total_steps,
        )
        for row in range(len(written))
    ]
    return [rows[i : i + group_size] for i in range(0, len(rows), group_size)]
