"""One question, one answer, sampled G times."""

import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.processing import Encoded, encode
from vrl_jax.engine.sampling import Choose, Sampled, generate, row_keys
from vrl_jax.rewards.combine import call_safely
from vrl_jax.types import Episode, Rollout, Sample, Turn

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
    """y_1..y_G ~ pi(. | images, question) for the next batch; R_i = reward(y_i)."""
    samples = next(batches)
    encoded = encode(actor.processor, samples)
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    temperature = jnp.full(len(samples) * group_size, actor.temperature, jnp.float32)
    sampled = _generate(
        actor.policy,
        actor.params,
        encoded.prompts,
        row_keys(key, jnp.asarray(numbers), group_size),
        temperature,
        actor.allowed,
        actor.stop_ids,
        max_new_tokens=actor.max_new_tokens,
        choose=choose,
    )
    groups = episodes(actor, samples, encoded, sampled, group_size)
    scores = []
    for group in groups:
        scored = call_safely(actor.reward, group)
        actor.observe(group, scored)
        scores += scored
    parts = sorted({name for score in scores for name in score} - {"overall"})

    def column(name: str) -> Array:
        return jnp.array([score.get(name, jnp.nan) for score in scores], jnp.float32)

    return Rollout(
        prompts=encoded.prompts,
        tokens=sampled.tokens,
        positions=sampled.positions,
        mask=sampled.mask,
        temperature=temperature,
        old_logprobs=sampled.logprobs,
        extra_logprobs={},
        rewards=column("overall"),
        reward_parts={name: column(name) for name in parts},
        group=jnp.repeat(jnp.arange(len(samples)), group_size),
    )


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
