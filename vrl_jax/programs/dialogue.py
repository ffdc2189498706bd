"""Several questions one after the other, as a row brings them."""

import itertools

from vrl_jax.engine.conversation import Ask, Context, user
from vrl_jax.engine.play import Steps
from vrl_jax.engine.processing import question
from vrl_jax.types import Sample, Turn, text_pieces


def dialogue(sample: Sample) -> Steps:
    """Asks the texts of `annotations["asks"]` in one context, or the question alone.

    Each text shows as many of the sample's pictures, in order, as it has `<image>`. The
    rows of `training.data.read_dialogues` bring the answers too, and are learnt by
    `sft(functools.partial(recited, program=dialogue))`.
    """
    *system, _ = question(sample)
    context: Context = tuple(system)
    images, said = iter(sample.images), list[Turn]()
    for text in sample.annotations.get("asks", [sample.question]):
        shown = itertools.islice(images, len(text_pieces(text)) - 1)
        context = (*context, user(text, tuple(shown)))
        said.append((yield Ask(context)))
        context = (*context, said[-1])
    return tuple(said)
