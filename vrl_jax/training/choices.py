"""What is chosen so that a step fits the memory: of a plan, and of the run after it.

`vrl-jax plan` prints the choices that fit as flags; the scripts that train a released
model take the same flags. Both turn them into functions here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from vrl_jax.engine.reference import Anchor, free, near
from vrl_jax.engine.slots import Weights, unstack
from vrl_jax.models import lora
from vrl_jax.models.critic import CRITIC, parts
from vrl_jax.models.parameters import Parameter
from vrl_jax.models.policy import Params, Policy
from vrl_jax.models.remat import REMATS
from vrl_jax.models.sharding import make_mesh, to_device, to_host
from vrl_jax.models.trained import Trains, chain, language, only
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.learner import adamw
from vrl_jax.training.precision import PRECISIONS, precision
from vrl_jax.training.sampler import sampling_gathered, whole


class Choices(NamedTuple):
    """Each by its name.

    Those of `KEPT` change what is computed, as does whether there is a reference; the
    others do not.
    """

    data: int = 1
    """devices that split the batch"""
    fsdp: int = 1
    """devices that split the batch, and parameters with their optimiser state"""
    tensor: int = 1
    """devices that split heads, widths and vocabulary"""
    minibatches: int = 1
    """updates of a step"""
    micro_batches: int = 1
    """pieces of a minibatch, whose gradients are added up"""
    per_pass: int = 64
    """prompts that are read or scored at a time"""
    slots: int = 1024
    """responses that are written at a time"""
    remat: str = "nothing"
    """what layers keep for the backward pass: everything, dots, nothing or split"""
    sampling: str = "spread"
    """weights that tokens are written from: spread as in training, or gathered"""
    reference: str = "none"
    """where a reference policy lies, if there is one: none, device or host"""
    precision: str = "bfloat16_master"
    """float32, bfloat16_master or bfloat16_stochastic"""
    moments: str = "float32"
    """dtype of Adam's first moment: float32 or bfloat16"""
    tower: str = "trained"
    """the vision tower, with its projector, is trained or frozen; with adapters, which
    alone are trained, it is frozen either way"""
    lora_rank: int = 0
    """rank of float32 adapters of the decoder's linear maps, which alone are trained;
    0: none, the parameters themselves are trained"""
    lora_alpha: float = 32.0
    """adapters change a matrix by alpha / rank times their product"""


KEPT = ("minibatches", "precision", "moments", "tower", "lora_rank", "lora_alpha")
"""Choices that a run must keep when it resumes."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "remat": tuple(REMATS),
    "precision": tuple(PRECISIONS),
    "moments": ("float32", "bfloat16"),
    "tower": ("trained", "frozen"),
    "sampling": ("spread", "gathered"),
    "reference": ("none", "device", "host"),
}


def check(choices: Choices) -> None:
    """Raises `ValueError` for a name that there is not, and for a size below 1.

    And for choices of adapters that contradict each other.
    """
    for name, value in choices._asdict().items():
        if name in NAMES and value not in NAMES[name]:
            raise ValueError(
                f"there is no {name} {value!r}; there are {', '.join(NAMES[name])}."
            )
        if name not in (*NAMES, "lora_rank", "lora_alpha") and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    _check_adapters(choices)


def _check_adapters(choices: Choices) -> None:
    rank, alpha = choices.lora_rank, choices.lora_alpha
    if rank < 0 or not alpha > 0:
        raise ValueError(
            "--lora-rank must be at least 0 and --lora-alpha above 0, got "
            f"{rank} and {alpha}."
        )
    if not rank and alpha != Choices().lora_alpha:
        raise ValueError(
            f"--lora-alpha {alpha} is of adapters, and there are none: give "
            "--lora-rank, or leave it out."
        )
    if rank and choices.precision == "bfloat16_stochastic":
        raise ValueError(
            "adapters are float32, so that --precision bfloat16_stochastic has nothing "
            "to round: give bfloat16_master, for a model that lies in bfloat16, or "
            "float32."
        )


def flags(choices: Choices) -> str:
    """The choices as a command line takes them, without what is usual anyway."""
    return " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in choices._asdict().items()
        if value != getattr(Choices(), name)
    )


def mesh(choices: Choices) -> Mesh | None:
    """Over all devices; None, which is one of them, where no axis is chosen.

    `ValueError` where there are several processes and no axis.
    """
    sizes = {"data": choices.data, "fsdp": choices.fsdp, "tensor": choices.tensor}
    if max(sizes.values()) > 1:
        return make_mesh(**sizes)
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes with {jax.device_count()} devices need a "
            "mesh: give --data, --fsdp and --tensor."
        )
    return None


def dtype(choices: Choices) -> jnp.dtype:
    """Of the policy's params."""
    return precision(choices.precision).dtype


def trains(choices: Choices, table: Sequence[Parameter], key: Key[Array, ""]) -> Trains:
    """What is trained of them, and as what; `key` is that of new adapters.

    Adapters are float32 beside a model of the policy's dtype: master weights, which a
    precision may ask for, they have no use for.
    """
    if rank := choices.lora_rank:
        return lora.adapters(key, table, rank=rank, alpha=choices.lora_alpha)
    kept = precision(choices.precision).trains
    return chain(only(language), kept) if choices.tower == "frozen" else kept


def adapters(choices: Choices, trained: Params) -> lora.Lora:
    """What is trained of them, with its scale."""
    return lora.Lora(trained, jnp.float32(choices.lora_alpha / choices.lora_rank))


def optimizer(
    choices: Choices,
    learning_rate: float | optax.Schedule,
    key: Key[Array, ""],
    *,
    weight_decay: float = 0.01,
    make: Callable[..., optax.GradientTransformation] | None = None,
    critic_rate: float | optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """AdamW with the moments that were chosen; `key` is that of stochastic rounding.

    Or what `make(learning_rate)` gives, without this weight decay and these moments.
    With `critic_rate` another one of the kind moves the critics: their gradient's norm
    is clipped apart, and they, which are float32, are not rounded.
    """
    if make is None:
        moments = jnp.dtype(choices.moments)
        make = functools.partial(adamw, weight_decay=weight_decay, mu_dtype=moments)
    of_policy = precision(choices.precision).optimizer(make(learning_rate), key)
    if critic_rate is None:
        return of_policy
    each = {CRITIC: make(critic_rate), "policy": of_policy}
    return optax.multi_transform(each, parts)


def anchor(choices: Choices, params: Params, *, weight: float) -> Anchor:
    """Near these params, wherever they are to lie; free of them where nowhere."""
    if choices.reference == "none":
        return free
    if choices.reference == "host":
        return near(to_host(params), weight=weight, fetch=to_device)
    return near(params, weight=weight)


def sampling(choices: Choices, recipe: Recipe) -> Recipe:
    """The recipe, writing its tokens from the weights that were chosen."""
    return sampling_gathered(recipe) if choices.sampling == "gathered" else recipe


def written_from(choices: Choices) -> Callable[[Policy, Params], Weights]:
    """The same of a model that is asked alone."""
    return whole if choices.sampling == "gathered" else unstack
