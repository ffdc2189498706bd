import pytest

from vrl_jax.rewards import final_answer, text
from vrl_jax.types import Episode, Sample, Turn


def group(answer, *texts, **columns):
    sample = Sample("row", "test", "?", (), answer, columns)
    return [Episode(sample, "?", (Turn(t, ()),), finished=True) for t in texts]


def test_answer_reward_reads_the_last_box_or_tag_and_pays_nothing_without():
    reward = final_answer.answer_reward(text.edit_similarity)
    episodes = group("kitten", r"\boxed{kitten}", "<answer>sitting</answer>", "kitten")
    # kitten, sitting: distance 3 of 7 letters, by hand
    assert reward(episodes) == pytest.approx([1, 4 / 7, 0])


def test_multiple_choice_knows_the_row_s_options():
    episodes = group("B", "<answer>a dog</answer>", r"\boxed{(B)}", "It sits.")
    assert final_answer.multiple_choice(episodes) == [0, 1, 0]
    episodes = group("B", "<answer>a dog</answer>", options=["a cat", "a dog"])
    assert final_answer.multiple_choice(episodes) == [1]
    episodes = group("C", "<answer>a dog</answer>", options=["a cat", "", "a dog"])
    assert final_answer.multiple_choice(episodes) == [1]


def test_thinking_is_no_answer_and_plain_words_may_be_one():
    texts = [
        r"<think>A is \boxed{A}? no.</think><answer>B</answer>",
        r"A is \boxed{A}? no.</think> Answer: B",
        "The answer is B.",
        "It is not A, but B",
        r"<think>\boxed{B}</think>",
        r"<think>\boxed{B}",
        "<answer>A</answer> or B",
    ]
    assert final_answer.multiple_choice(group("B", *texts)) == [1, 1, 1, 1, 0, 0, 0]


def test_numeric_and_count_take_the_last_number_where_none_is_named():
    texts = ["I see 3 in 2 rows: 6 of them.", "**Answer:** 6", "Answer: 5 or 6", "3/6"]
    assert final_answer.count(group("6", *texts)) == [1, 1, 0, 0]
    assert final_answer.numeric(group("100", "about 104%.", "Answer: 106")) == [1, 0]


def test_count_compares_numbers():
    given = ("12", "12.0", "1,2", "12 cats", "", "Twelve.")
    texts = [rf"\boxed{{{one}}}" for one in given]
    assert final_answer.count(group("12", *texts)) == [1, 1, 0, 0, 0, 1]
    assert final_answer.count(group("twelve", r"\boxed{12}")) == [1]
    assert final_answer.count(group("a dozen", r"\boxed{a dozen}")) == [0]


def test_anls_takes_the_best_of_the_row_s_answers():
    episodes = group("cat", r"\boxed{kitten}", answers=["cat", "kitten"])
    assert final_answer.anls(episodes) == [1]
    assert final_answer.anls(group("cat", r"\boxed{kitten}")) == [0]


def test_mathruler_boxed_pays_no_missing_box(verifier):
    """The public rule reads "None" where there is no box, and None is an answer."""
    reward = final_answer.mathruler_boxed(verifier)
    assert reward(group("None", "no box", r"\boxed{None}")) == [0, 1]
    assert reward(group("60", r"\boxed{60\%}", r"\boxed{61}")) == [1, 0]
    roots = [r"\boxed{2\sqrt{5}}", r"\boxed{\sqrt{12}}", r"\boxed{3\sqrt{3}}"]
    assert reward(group(r"2\sqrt{3}", *roots)) == [0, 1, 0]


def test_r1v_style_mixes_the_tag_and_the_format_evenly(verifier):
    """0.5 and 0.5; without a tag the whole response is compared."""
    texts = [
        "<think>a</think><answer>7</answer>",
        "<answer>7</answer>",
        "<think>a</think><answer>8</answer>",
        "7",
    ]
    scores = final_answer.r1v_style(verifier)(group("7", *texts))
    assert [score["overall"] for score in scores] == [1, 0.5, 0.5, 0.5]
    assert [score["accuracy"] for score in scores] == [1, 1, 0, 1]


def test_r1v_accuracy_reads_all_of_the_response(verifier):
    texts = [
        "<think>x</think><answer> 7 </answer>",
        "<think>perhaps 7</think><answer>eight</answer>",  # the trap
        "<answer>8</answer>",
        "",
    ]
    assert final_answer.r1v_accuracy(verifier)(group("7", *texts)) == [1, 1, 0, 0]
    words = ["<answer>a cat</answer>", "a cat", "<answer>A cat</answer>"]
    assert final_answer.r1v_accuracy(verifier)(group("a cat", *words)) == [1, 1, 0]


def test_vlm_r1_accuracy_pays_a_part_for_a_text_that_is_near(verifier):
    """By hand, after `default_accuracy_reward`; kitten and sitting give 8 / 13."""
    reward = final_answer.vlm_r1_accuracy(verifier)
    texts = ["<answer>0.5</answer>", "<answer>1</answer><answer>2</answer>", "<answer>"]
    assert reward(group("0.5", *texts)) == pytest.approx([1, 0, 0])
    assert reward(group("No. 12", "<answer>no.\n12</answer>")) == [1]
    near = reward(group("kitten!", "<answer>sitting!</answer>", "Kitten!."))
    assert near == pytest.approx([10 / 15, 1])
    assert reward(group("B", "<answer>It is B.</answer>", "<answer>(B)</answer>")) == [
        1,
        0,
    ]


def test_vlm_r1_accuracy_reads_torn_tags_as_it_does(verifier):
    reward = final_answer.vlm_r1_accuracy(verifier)
    assert reward(group("dog", "<answer>the <answer>dog</answer>"))[0] < 1
