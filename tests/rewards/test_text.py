"""By hand, or from the worked example of the paper that a function names."""

import pytest

from vrl_jax.rewards import text


def test_edit_distances_of_kitten():
    # Distance 3 of 7; 8 of 13 characters in the indel ratio.
    assert text.edit_similarity("kitten", "sitting") == pytest.approx(4 / 7)
    assert text.indel_ratio("kitten", "sitting") == pytest.approx(8 / 13)
    assert text.indel_ratio("", "") == text.edit_similarity("", "") == 1.0


def test_anls_takes_the_nearest_gold_above_the_threshold():
    assert text.anls(" Kitten ", ["dog", "sitting"]) == pytest.approx(4 / 7)
    assert text.anls("kitten", ["sitting"], threshold=0.6) == 0.0
    assert text.anls("a  b", ["A b"]) == 1.0
    assert text.anls("a", []) == 0.0


def test_caption_score_of_satori():
    given, gold = "a dog runs on grass", "a dog runs on the grass"
    assert text.bleu4(given, gold) == pytest.approx(0.578930, abs=1e-6)
    assert text.rouge_l(given, gold) == pytest.approx(0.909091, abs=1e-6)
    assert text.caption_score(given, gold) == pytest.approx(0.744010, abs=1e-6)
    assert text.caption_score("", gold) == 0.0


def test_repetition_of_perception_r1():
    words = " ".join(f"w{i}" for i in range(30))
    # 41 20-grams of which 30 differ: 2 (30 / 41 - 1)
    got = 2 * text.repetition(f"{words} {words}", n=20)
    assert got == pytest.approx(-0.536585, abs=1e-6)
    assert text.repetition("a b c", n=20) == 0.0
    with pytest.raises(ValueError, match="got n=0"):
        text.repetition("a", n=0)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("open the settings app", "open settings", 1),
        ("ab", "b", 1),
        ("b", "ab", 1),
        ("[up]", "UP", 1),
        ("a c", "b d", 0),
        ("scroll up now please", "up", 0),  # F1 is 2/5: a word in a longer text
        ("upper left", "up", 0),
        ("", "", 0),
        ("[]", "[ ]", 0),
        ("", "up", 0),
    ],
)
def test_gui_text(prediction, gold, expected):
    """By hand, after `calculate_f1_score` of GUI-R1 and a threshold of 0.5."""
    assert text.gui_text(prediction, gold) == expected


def test_all_match_drops_one_final_dot():
    assert text.all_match(" Stop. ", "stop")
    assert not text.all_match("stop..", "stop")


def test_repeats_a_sentence_allows_one():
    """By hand, after the rule that VisionReasoner's copies share: `repeats >= 2`."""
    assert not text.repeats_a_sentence("I see. I see. Good.")
    assert text.repeats_a_sentence("I see. I see. Good. Good.")
    assert text.repeats_a_sentence("I see.\nI see .  I see")
    assert not text.repeats_a_sentence("I see! I see! I see!")  # dots alone end one
    assert not text.repeats_a_sentence("I see. i see. I  see. You see. ...")
