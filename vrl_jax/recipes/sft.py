"""Supervised fine-tuning on the data set's demonstrations: the cold start.

act     y = the sample's demonstration; of several turns with
        functools.partial(recited, program=...)
score   nothing
credit  A_it = 1
loss    -log pi(y_it), mean over all tokens
"""

import jax.numpy as jnp

from vrl_jax import reductions
from vrl_jax.programs.demonstrations import demonstrations
from vrl_jax.training.iteration import Act, Recipe, as_batch


def sft(act: Act = demonstrations) -> Recipe:
    """Maximum likelihood; one response a prompt.

    `programs.recital.recited` learns conversations.
    """

    def score(actor, rollout, key):
        return rollout

    def credit(rollout):
        return as_batch(rollout, jnp.ones_like(rollout.old_logprobs)), {}

    def loss(policy, batch):
        new = policy(batch)
        mean = reductions.token_mean(-new.logprobs, batch.mask)
        entropy = reductions.token_mean(new.entropy, batch.mask)
        return mean, {"sft/loss": mean, "actor/entropy": entropy}

    return Recipe(act, score, credit, loss)
