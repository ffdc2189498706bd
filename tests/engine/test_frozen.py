"""Models that are asked alone: their names, their sizes, whose parameters they have."""

import dataclasses

import numpy as np
import pytest

from vrl_jax.engine import frozen
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import check_models, opening
from vrl_jax.engine.frozen import Asking
from vrl_jax.engine.processing import question

from ..fixtures import folders, small

SAMPLE = small.samples()[0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return folders.model(tmp_path_factory.mktemp("frozen") / "policy")


def processors(folders, folder, *, processor=None, **told):
    own = processor or small.actor().processor
    return frozen.frozen_processors(folders, folder, own, small.samples(), **told)


@pytest.mark.parametrize(
    ("rows", "longest", "sizes"),
    [
        ((30, 40), 200, (30, 40, 80, 160, 200)),
        ((30, 40), 80, (30, 40, 80)),
        ((30, 40), 40, (30, 40)),
        ((30, 40), 20, (20,)),
    ],
)
def test_a_context_has_a_size_that_is_at_most_twice_as_long(rows, longest, sizes):
    assert frozen.context_sizes(rows, longest) == sizes


def test_the_policy_s_own_folder_is_neither_read_nor_loaded_again(policy, monkeypatch):
    def never(*given, **named):
        raise AssertionError("it is there already")

    monkeypatch.setattr(frozen, "load_processor", never)
    monkeypatch.setattr(frozen, "load_actor", never)
    there, again = {"before": policy}, policy.parent / "policy" / "."
    read, told = processors(there, again, said=100)
    rows = small.actor().processor.room.prompt_tokens[-1]
    longest = rows + frozen.WORDS + 100
    assert read["before"].room.prompt_tokens[-1] == longest
    assert told.endswith(f" or {longest} tokens")
    actor = small.actor(top_p=0.5, slots=3)
    asking = Asking(frozen_temperature=0, frozen_tokens=2)
    assert read["before"].prepared is not small.actor().processor.prepared
    made = frozen.frozen_actors(there, again, actor, read, asking=asking)["before"]
    assert made.params is actor.params and made.slots == 3
    assert (made.top_k, made.top_p, made.max_new_tokens) == (1, 1, 2)
    assert np.isnan(made.reward([None])).all()


def test_models_of_one_folder_are_one_model(policy, tmp_path):
    judge = folders.other(tmp_path / "judge")
    both = {"judge": judge, "critic": tmp_path / "judge" / "." / "."}
    read, _ = processors(both, policy, said=8)
    models = frozen.frozen_actors(both, policy, small.actor(), read)
    assert models["judge"].params is models["critic"].params
    assert models["judge"].params is not small.actor().params
    assert models["judge"].policy is not small.actor().policy


def test_another_family_reads_rows_by_itself_and_says_what_does_not_fit(
    policy, tmp_path
):
    """As it reads them, the row of two pictures has 39 tokens."""
    judge = folders.other(tmp_path / "judge")
    bounds = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}  # it has none of its own
    read, told = processors(
        {"judge": judge}, policy, said=8, longest_prompt=38, **bounds
    )
    assert read["judge"].front_end.spec.model_type == "gemma3"
    assert "contexts of" in told and f"{judge}; " in told
    assert "  1 rows are too large for it\n  Sample row-1: The prompt has 39" in told
    with pytest.raises(ValueError, match="frozen model 'judge': No sample can be used"):
        processors({"judge": judge}, policy, said=8, longest_prompt=3)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["judge"], "NAME=FOLDER, got 'judge'"),
        (["=folder"], "NAME=FOLDER, got '=folder'"),
        (["judge="], "NAME=FOLDER, got 'judge='"),
        (["a=b", "a=c"], "names 'a' twice: b, c"),
    ],
)
def test_pairs_that_are_none_are_told(pairs, said):
    with pytest.raises(ValueError, match=said):
        frozen.frozen_names(pairs)
    assert frozen.frozen_names(["a=b=c", "d=e/f"]) == {"a": "b=c", "d": "e/f"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frozen_tokens": 0}, "--frozen-tokens must be at least 1, got 0"),
        ({"frozen_prompt_tokens": -1}, "--frozen-prompt-tokens must be at least 1"),
        ({"frozen_slots": 0}, "--frozen-slots must be at least 1, got 0"),
        ({"frozen_temperature": -1}, "--frozen-temperature is at least 0, got -1"),
        ({"frozen_tokens": 9}, "--frozen-tokens 9 are more than --row-tokens 8"),
    ],
)
def test_sizes_that_cannot_be_are_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        frozen.check_asking(Asking(**wrong), 8)
    frozen.check_asking(Asking(), 8)
    frozen.check_asking(Asking(frozen_tokens=9), None)


def branching(sample):
    first = yield [Ask(question(sample)), Ask((user("What is it? Is it one?"),))]
    yield Ask((user(first[1].text + "?"),), model="judge")
    raise KeyError("what else is wrong is told when it is played")


def test_whom_a_program_asks_shows_where_nobody_answers():
    with pytest.raises(ValueError, match=r"branching of sample row-0 asks .*'judge'"):
        check_models(branching, SAMPLE, {"policy"})
    check_models(branching, SAMPLE, {"policy", "judge"})

    def for_ever(sample):
        while True:
            yield Ask(question(sample))

    check_models(for_ever, SAMPLE, {"policy"})


def test_what_is_asked_first_is_the_longest_of_several_with_its_pictures():
    assert opening(branching, SAMPLE) == question(SAMPLE)  # the other has no picture
    bare = dataclasses.replace(SAMPLE, question="What?", images=())
    assert opening(branching, bare) == (user("What is it? Is it one?"),)

    def broken(sample):
        raise KeyError("nothing")
        yield

    def of_a_judge(sample):
        yield Ask((user("So?"),), model="judge")

    for program in (broken, of_a_judge):
        assert opening(program, SAMPLE) == question(SAMPLE)
