"""ViCrit: the phrase that was changed, and no more than a little around it."""

import numpy as np
import pytest

from vrl_jax.recipes.vicrit import critic_reward, vicrit
from vrl_jax.rewards.answers import span_in_caption
from vrl_jax.types import Episode, Sample, Turn

from ..fixtures import small

PHRASE = "a solid white glass cup"
CAPTION = f"A hand holds {PHRASE} on the left, and behind it, {'far ' * 20}are hills."


def scored(*texts):
    columns = {"changed_caption": CAPTION}
    sample = Sample("row", "here", "<image>?", (b"",), PHRASE, columns)
    return critic_reward([Episode(sample, "?", (Turn(t, (1,)),), True) for t in texts])


@pytest.mark.parametrize(
    ("box", "right"),
    [
        (f'["{PHRASE}"]', True),
        (f"holds {PHRASE} on", True),
        (f"{PHRASE}, on the left", False),  # not what is written
        ("paper cup", False),
        ("glass", False),
        (CAPTION, False),  # nothing was found
        ("", False),
    ],
)
def test_the_worked_predictions(box, right):
    (score,) = scored(rf"<think>hm</think>\boxed{{{box}}}")
    assert score["accuracy"] == right
    np.testing.assert_allclose(score["overall"], 0.9 * right + 0.1)


def test_a_comma_may_follow_the_phrase():
    columns = {"changed_caption": f"A hand, {PHRASE}, and hills."}
    sample = Sample("row", "here", "<image>?", (b"",), PHRASE, columns)
    turn = Turn(rf"\boxed{{{PHRASE}}}", (1,))
    (score,) = critic_reward([Episode(sample, "?", (turn,), True)])
    assert score["accuracy"] == 1.0


@pytest.mark.parametrize("caption", [None, "a hand", ""])
def test_the_phrase_stands_in_the_caption(caption):
    columns = {"changed_caption": caption}
    sample = Sample("row", "here", "<image>?", (b"",), PHRASE, columns)
    with pytest.raises(ValueError, match=r"row needs .*changed_caption"):
        critic_reward([Episode(sample, "?", (Turn("", (1,)),), True)])


def test_a_caption_without_blanks_is_no_answer_either():
    caption = "/".join(f"word{i}" for i in range(50))
    assert not span_in_caption(caption, "word7", caption)
    assert span_in_caption("\u201cword7/word8\u201d", "word7", caption)


def test_the_first_box_counts():
    first, second = rf"\boxed{{{PHRASE}}}", r"\boxed{glass}"
    found = [s["accuracy"] for s in scored(first + second, second + first, PHRASE)]
    assert found == [1.0, 0.0, 0.0]


def test_rewards_and_advantages_of_the_worked_group():
    """R = 1, 0.1, 0.9, 0.1, centred and not divided."""
    right, wrong = rf"\boxed{{{PHRASE}}}", r"\boxed{glass}"
    texts = [f"<think>a</think>{right}", f"<think>a</think>{wrong}", right]
    rewards = [score["overall"] for score in scored(*texts, texts[1])]
    np.testing.assert_allclose(rewards, [1.0, 0.1, 0.9, 0.1])
    batch, _ = vicrit(group_size=4).credit(small.scored(rewards))
    wanted = [0.475, -0.425, 0.375, -0.425]
    np.testing.assert_allclose(batch.advantages[:, 0], wanted, atol=1e-6)
