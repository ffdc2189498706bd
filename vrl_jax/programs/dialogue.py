"""Several questions one after the other, as a row brings them."""

import itertools
from collections.abc import Sequence

from vrl_jax.engine.conversation import Ask, Context, user
from vrl_jax.engine.episode import Steps
from vrl_jax.engine.processing import question
from vrl_jax.rewards.columns import column
from vrl_jax.types import PLACEHOLDER, Sample, Turn, text_pieces


def dialogue(sample: Sample) -> Steps:
    """Asks the texts of `annotations["asks"]` in one context, or the question alone.

    Each text shows as many of the sample's pictures, in order, as it has `<image>`. The
    rows of `training.data.read_dialogues` bring the answers too, and are learnt by
    `sft(functools.partial(recited, program=dialogue))`. A ValueError names a row whose
    `asks` are no texts, or place more pictures or fewer than it has.
    """
    *system, _ = question(sample)
    context: Context = tuple(system)
    images, said = iter(sample.images), list[Turn]()
    for text in _asked(sample):
        shown = itertools.islice(images, len(text_pieces(text)) - 1)
        context = (*context, user(text, tuple(shown)))
        said.append((yield Ask(context)))
        context = (*context, said[-1])
    return tuple(said)


def _asked(sample: Sample) -> Sequence[str]:
    what = "the questions as a list of texts, in their order"
    texts = [sample.question]
    if sample.annotations.get("asks") is not None:
        texts = column(sample, "asks", list | tuple, what)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{sample.id} needs the column 'asks', {what}; got {texts!r}.")
    placed = sum(len(text_pieces(text)) - 1 for text in texts)
    if placed != len(sample.images):
        raise ValueError(
            f"{sample.id} has {len(sample.images)} pictures, and its questions place "
            f"{placed}: write one {PLACEHOLDER} for each in the column 'asks', or in "
            f"the question of a row without it; got {texts!r}."
        )
    return texts
