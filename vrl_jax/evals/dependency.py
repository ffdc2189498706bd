"""Which tokens depend on the picture, measured on a trained policy."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from PIL import Image, ImageOps

from vrl_jax import perception
from vrl_jax.engine.actor import Actor, View
from vrl_jax.models.sharding import on_host
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.types import ImageRef, Rollout, Sample

Kinds = Callable[[Sequence[str]], Sequence[str | None]]
"""The tokens of a response -> what each is: "seen", "derived", or None."""


LARGEST = 560
"""Pixels along a side of a picture in the report."""


class Measured(NamedTuple):
    """Responses with the dependency of each token, averaged over several views."""

    rollout: Rollout
    dependency: Float[np.ndarray, "B T"]


def measure(
    actor: Actor,
    samples: Sequence[Sample],
    view: View,
    key: Key[Array, ""],
    *,
    draws: int = 4,
) -> Measured:
    """VPPO's score of each token of one sampled response a sample.

    The mean over `draws` perturbed views: one view may happen to spare what matters.
    """
    play_key, view_key = jax.random.split(key)
    rollout = single_turn(actor, iter([samples]), play_key, group_size=1)
    scores = []
    for draw in range(draws):
        seen = actor.add_logprobs(
            rollout, "view", view, jax.random.fold_in(view_key, draw)
        )
        scores.append(
            perception.sampled_k3(
                seen.old_logprobs, seen.extra_logprobs["view"], seen.mask
            )
        )
    rollout, scores = on_host((rollout, scores))
    return Measured(rollout, np.mean(scores, axis=0))


def token_texts(actor: Actor, rollout: Rollout) -> list[list[str]]:
    """The tokens of each response, one string each."""
    decode = actor.processor.tokenizer.decode
    rows = zip(np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True)
    return [[decode([token]) for token in tokens[mask]] for tokens, mask in rows]


def by_kind(actor: Actor, measured: Measured, kinds: Kinds) -> dict[str, Any]:
    """Mean dependency and number of the tokens of each kind."""
    values: dict[str, list[float]] = {}
    texts = token_texts(actor, measured.rollout)
    for row, tokens in enumerate(texts):
        for column, kind in enumerate(kinds(tokens)):
            if kind is not None:
                value = float(measured.dependency[row, column])
                values.setdefault(kind, []).append(value)
    return {
        kind: {"mean": float(np.mean(found)), "count": len(found)}
        for kind, found in values.items()
    }


def example_rows(
    actor: Actor,
    samples: Sequence[Sample],
    measured: Measured,
    kinds: Kinds,
) -> list[dict[str, Any]]:
    """What the report shows of each response: picture, words, and their shades."""
    logprobs = np.asarray(measured.rollout.old_logprobs)
    rows = []
    for row, (sample, tokens) in enumerate(
        zip(samples, token_texts(actor, measured.rollout), strict=True)
    ):
        marked = zip(tokens, kinds(tokens), strict=True)
        rows.append(
            {
                "id": sample.id,
                "question": sample.question,
                "image_png": base64.b64encode(_shown(sample.images[0])).decode(),
                "answer": sample.answer,
                "response": "".join(tokens),
                "reward": float(measured.rollout.rewards[row]),
                "tokens": [
                    {
                        "text": text,
                        "kind": kind,
                        "logprob": float(logprobs[row, column]),
                        "dependency": float(measured.dependency[row, column]),
                    }
                    for column, (text, kind) in enumerate(marked)
                ],
            }
        )
    return rows


def _shown(image: ImageRef) -> bytes:
    """A PNG of at most `LARGEST` pixels a side; a small PNG as it is."""
    with Image.open(image if isinstance(image, str) else io.BytesIO(image)) as picture:
        if picture.format == "PNG" and max(picture.size) <= LARGEST:
            return image if isinstance(image, bytes) else Path(image).read_bytes()
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()
