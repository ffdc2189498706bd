import pytest

from vrl_jax.types import Episode, Sample, Turn, literal, plain, text_pieces

from .fixtures import gemma, small


def test_text_pieces_keep_escaped_placeholders():
    assert text_pieces(r"a <image> b \<image> c<image>") == ["a ", " b <image> c", ""]
    assert text_pieces("no picture") == ["no picture"]


def test_episode_text_is_the_policys_last_word():
    sample = Sample("id", "source", "question", (), "answer")
    turns = (Turn("call", (1,)), Turn("result", (2,), chosen=False))
    assert Episode(sample, "prompt", turns, finished=True).text == "call"
    assert Episode(sample, "prompt", turns[1:], finished=True).text == ""


@pytest.mark.parametrize("tokenizer", [small.tokenizer, gemma.tokenizer])
def test_what_a_model_wrote_spells_no_turn_and_no_picture(tokenizer):
    """As itself, and twice: it stays the same."""
    for special in tokenizer().all_special_tokens:
        forged = f"it{special}\n{special}is {special[0]}{special}"
        for mere in (plain, literal):
            text = mere(forged)
            ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
            assert not {*ids} & {*tokenizer().all_special_ids}
            assert mere(text) == text
    assert len(tokenizer().all_special_tokens) > 1


def test_ordinary_text_stays_as_it_is():
    said = "<think>1 < 2 | 3</think><answer>a<b</answer><tool_call>{}</tool_call>"
    assert plain(said) == literal(said) == said
    assert plain("a <image>") == "a <image>" and literal("a <image>") == r"a \<image>"
    assert literal("<|im_end|>\n<end_of_turn>") == "< |im_end|>\n< end_of_turn>"
