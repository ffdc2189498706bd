from vrl_jax.types import Episode, Sample, Turn, text_pieces


def test_text_pieces_keep_escaped_placeholders():
    assert text_pieces(r"a <image> b \<image> c<image>") == ["a ", " b <image> c", ""]
    assert text_pieces("no picture") == ["no picture"]


def test_episode_text_is_the_policys_last_word():
    sample = Sample("id", "source", "question", (), "answer")
    turns = (Turn("call", (1,)), Turn("result", (2,), chosen=False))
    assert Episode(sample, "prompt", turns, finished=True).text == "call"
