"""Groups whose responses come from several sources, as arrays.

For prompts that only tables can say (pictures under a view) and responses that nobody
sampled; what a program can ask for, `programs.acting` plays.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vrl_jax.engine import responses
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.processing import Encoded
from vrl_jax.engine.responses import Sampled
from vrl_jax.engine.sampling import row_keys
from vrl_jax.programs.acting import scored
from vrl_jax.types import Episode, Prompts, Rollout, Sample, Turn


def response_keys(
    samples: Sequence[Sample], key: Key[Array, ""], group_size: int
) -> Key[Array, " B"]:
    """One key a response, from its sample's id and its place in the group."""
    numbers = np.array([zlib.crc32(s.id.encode()) for s in samples], np.uint32)
    return row_keys(key, jnp.asarray(numbers), group_size)


def sample(actor: Actor, prompts: Prompts, keys: Key[Array, " B"]) -> Sampled:
    """One response a key, as many for each prompt."""
    return responses.sample(
        actor.model(),
        prompts,
        keys,
        actor.stop_ids,
        temperature=actor.temperature,
        top_k=actor.top_k,
        top_p=actor.top_p,
    )


def beside(prompts: int, *parts: Sampled) -> Sampled:
    """Responses from several sources, those to one prompt together."""

    def join(*x: Array) -> Array:
        groups = [a.reshape(prompts, len(a) // prompts, *a.shape[1:]) for a in x]
        joined = jnp.concatenate(groups, axis=1)
        return jax.lax.collapse(joined, 0, 2)

    return jax.tree.map(join, *parts)


def as_rollout(
    actor: Actor, samples: Sequence[Sample], encoded: Encoded, sampled: Sampled
) -> Rollout:
    """The responses with their rewards, one group a sample; the observer is told."""
    group_size = len(sampled.tokens) // len(samples)
    scores = scored(actor, episodes(actor, samples, encoded, sampled, group_size))
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
        group=jnp.repeat(jnp.arange(len(samples)), group_size),
        log_kept=sampled.log_kept if narrowed(actor) else None,
        states=sampled.noted if sampled.noted.shape[-1] else None,
    )


def narrowed(actor: Actor) -> bool:
    """Whether it samples from less than its whole distribution."""
    return actor.top_k > 0 or actor.top_p < 1


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
