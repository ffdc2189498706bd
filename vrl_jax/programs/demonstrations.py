"""The data set's own responses, as if the policy had written them."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.engine.likelihood import first_positions
from vrl_jax.engine.processing import encode
from vrl_jax.engine.sampling import response_positions
from vrl_jax.types import Rollout, Sample


def demonstrations(
    actor: Actor, batches: Iterator[Sequence[Sample]], key: Key[Array, ""]
) -> Rollout:
    """One response a sample: its `demonstration` annotation and a stop token.

    Nobody scored or sampled it: the reward is NaN, the old log-probs are 0. Raises
    `ValueError` where a demonstration is missing or longer than the budget.
    """
    del key  # nothing is drawn
    samples = next(batches)
    rows, length = len(samples), actor.max_new_tokens
    stop = int(actor.stop_ids[0])
    tokens = np.full((rows, length), stop, np.int32)
    mask = np.zeros((rows, length), bool)
    for row, sample in enumerate(samples):
        if "demonstration" not in sample.annotations:
            raise ValueError(
                f"sample {sample.id} has no `demonstration` to learn from; add the "
                "column, or leave the supervised stage out."
            )
        text = sample.annotations["demonstration"]
        ids = actor.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + 1 > length:
            raise ValueError(
                f"the demonstration of sample {sample.id} has {len(ids) + 1} tokens, "
                f"the budget max_new_tokens is {length}."
            )
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids) + 1] = True
    encoded = encode(actor.processor, samples)
    return Rollout(
        prompts=encoded.prompts,
        tokens=jnp.asarray(tokens),
        positions=response_positions(first_positions(encoded.prompts), length),
        mask=jnp.asarray(mask),
        temperature=jnp.ones(rows),
        old_logprobs=jnp.zeros((rows, length)),
        extra_logprobs={},
        rewards=jnp.full(rows, jnp.nan),
        reward_parts={},
        group=jnp.arange(rows),
    )
