"""Ratings of pictures: near enough, and in the right order. Pure jnp but for text."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vrl_jax import masked
from vrl_jax.rewards.answers import number
from vrl_jax.rewards.parse import first_tag, read_json

_RATING = re.compile(r'"rating"\s*:\s*"?([0-9.+-]{1,30})')


def within_band(
    rating: Float[Array, "*B"], gold: Float[Array, "*B"], *, band: float = 0.35
) -> Float[Array, "*B"]:
    """1 where |rating - gold| < band, strictly; NaN, no rating, is 0.

    Q-Insight, https://arxiv.org/abs/2503.22679.
    """
    return (jnp.abs(rating - gold) < band).astype(jnp.float32)


def plcc(
    x: Float[Array, "*P G"], y: Float[Array, "*P G"], mask: Bool[Array, "*P G"]
) -> Float[Array, "*P"]:
    """Pearson's correlation over the last axis, in [-1, 1]; 0 where one is constant."""
    a, b = _centered(x, mask), _centered(y, mask)
    scale = jnp.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found = (a * b).sum(-1) / jnp.where(scale > 0, scale, 1)
    return jnp.clip(jnp.where(scale > 0, found, 0), -1, 1)


def srcc(
    x: Float[Array, "*P G"], y: Float[Array, "*P G"], mask: Bool[Array, "*P G"]
) -> Float[Array, "*P"]:
    """Spearman's: Pearson's correlation of ranks; ties share their mean rank."""
    return plcc(_ranks(x, mask), _ranks(y, mask), mask)


def _centered(
    x: Float[Array, "*P G"], mask: Bool[Array, "*P G"]
) -> Float[Array, "*P G"]:
    kept = jnp.where(mask & jnp.isfinite(x), x, 0)
    constant = masked.max(kept, mask, -1) == masked.min(kept, mask, -1)
    kept = _to_unit(kept)  # so that no square is lost or infinite
    mean = masked.mean(kept, mask, -1)[..., None]
    return _to_unit(jnp.where(mask & ~constant[..., None], kept - mean, 0))


def _to_unit(x: Float[Array, "*P G"]) -> Float[Array, "*P G"]:
    largest = jnp.abs(x).max(-1, keepdims=True)
    return x / jnp.where(largest > 0, largest, 1)


def _ranks(x: Float[Array, "*P G"], mask: Bool[Array, "*P G"]) -> Float[Array, "*P G"]:
    others = mask[..., None, :]
    below = ((x[..., None, :] < x[..., :, None]) & others).sum(-1)
    equal = ((x[..., None, :] == x[..., :, None]) & others).sum(-1)
    return (below + (equal + 1) / 2).astype(jnp.float32)


def rating_of(text: str) -> float | None:
    """The first number after the key "rating" in the first answer tag.

    Q-Insight, https://arxiv.org/abs/2503.22679. "3.1.2" is no number.
    """
    found = _RATING.search(first_tag(text, "answer") or "")
    return number(found.group(1)) if found else None


def degradation_score(text: str, distortion: str, severity: str) -> float:
    """0.25 for the right distortion class, 1 with the right severity too, else 0.

    Read from the JSON of the first answer tag, a null as "null", case and all.
    Severity alone earns nothing. Q-Insight, https://arxiv.org/abs/2503.22679, whose
    pattern misses an unquoted null.
    """
    found = read_json(first_tag(text, "answer") or "")
    if not isinstance(found, Mapping):
        return 0.0
    given = [
        "null" if found.get(key, "") is None else found.get(key)
        for key in ("distortion_class", "severity")
    ]
    if given[0] != distortion:
        return 0.0
    return 1.0 if given[1] == severity else 0.25
