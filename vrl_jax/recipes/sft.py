"""Supervised fine-tuning on the data set's demonstrations: the cold start.

act     y = the sample's demonstration; of several turns with
        functools.partial(recited, program=...)
score   nothing
credit  A_it = 1
loss    -log pi(y_it), mean over all tokens
"""

from vrl_jax import reductions
from vrl_jax.programs.demonstrations import demonstrations
from vrl_jax.training.iteration import Act, Recipe
from vrl_jax.training.likelihood_recipe import likelihood_recipe


def sft(act: Act = demonstrations) -> Recipe:
    """Maximum likelihood; one response a prompt.

    `programs.recital.recited` learns conversations.
    """
    return likelihood_recipe(act, reduction=reductions.token_mean)
