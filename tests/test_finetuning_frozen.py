"""A released model trained with what a frozen one of another family says."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from vrl_jax import finetuning
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.frozen import Asking
from vrl_jax.engine.pretrained import load_actor, load_processor
from vrl_jax.engine.processing import question
from vrl_jax.programs.acting import act, played
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.files import read_lines
from vrl_jax.worlds.writing import write_parquet

from .fixtures import folders, small
from .test_finetuning_programs import CHOICES, LIMITS, SIZES, SYSTEM, look_again

ASKING = Asking(frozen_tokens=4, frozen_prompt_tokens=50, frozen_temperature=0)


def looked_at(sample, *, model="policy"):
    said = yield Ask((user("<image>Is it?", sample.images),), model=model)
    return Outcome((said,), {"verdict": sum(said.tokens)})


def judged(sample):
    """Two answers, then what the judge says of the picture, and the model as it was."""
    outcome = yield from look_again(sample)
    verdict = yield from looked_at(sample, model="judge")
    before = yield Ask(question(sample), model="before")
    turns = (*outcome.turns, *verdict.turns, before)
    return Outcome(turns, verdict.facts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_parquet(small.with_and_without_system(), folder / "rows.parquet")
    policy, judge = folders.model(folder / "policy"), folders.other(folder / "judge")
    return policy, judge, folder / "rows.parquet"


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The run, told what is to change; `run.models` are the actors that it is given."""
    policy, judge, file = files

    def recipe(anchor, **models):
        run.models = models
        told = {"program": judged, "limits": LIMITS, "models": models}
        play = functools.partial(act, group_size=2, **told)
        return grpo(group_size=2)._replace(act=play)

    def run(**changes):
        given = {
            "model": str(policy),
            "choices": CHOICES,
            "out": run.out,
            "frozen": run.frozen,
            "asking": ASKING,
            "program": judged,
        }
        return finetuning.finetune(
            recipe,
            name="Judged",
            claim="It is judged.",
            settings={},
            rows=finetuning.Rows(file, file, "", system=SYSTEM),
            reward=small.even_reward,
            seed=0,
            sizes=SIZES._replace(examples=0),
            limits=LIMITS,
            **{**given, **changes},
        )

    run.out = tmp_path_factory.mktemp("runs") / "run"
    run.frozen = {"judge": str(judge), "before": str(policy)}
    return run


@pytest.fixture(scope="module")
def outcome(run):
    return run()


def test_a_frozen_model_of_another_family_says_what_it_says_alone(run, outcome, files):
    _, folder, _ = files
    (step,) = read_lines(run.out / "metrics.jsonl")
    assert step["training/logprob_gap"] < 1e-5 and step["play/asks"] == 4
    judge = run.models["judge"]
    samples = small.samples()[:1]
    alone = load_processor(folder, samples, prompts_per_step=1).processor
    alone = dataclasses.replace(alone, room=judge.processor.room)
    actor = load_actor(folder, alone, None, max_new_tokens=4)
    actor = dataclasses.replace(actor, top_k=1, slots=4)
    key = jax.random.key(7)
    (said,) = played(actor, looked_at, samples, key, limits=LIMITS)
    assert step["play/verdict"] == said.facts["verdict"]
    for file in ("rl_1.jsonl", "rl_evaluation_1.jsonl"):  # trained, and measured
        for line in read_lines(run.out / "rollouts" / file):
            *_, verdict, before = line["turns"]
            assert verdict["text"] == said.text
            assert not verdict["chosen"] and not before["chosen"]
            assert before["text"] != verdict["text"]


def test_a_frozen_model_stays_as_it_was(run, outcome):
    """That of the policy's own folder too, whose parameters training begins with."""
    kept, moved = (
        jax.tree.leaves(jax.tree.map(np.array_equal, small.params(), params))
        for params in (run.models["before"].params, outcome.actor.params)
    )
    assert all(kept) and not any(moved)


def test_a_run_goes_on_with_its_own_frozen_models(run, outcome, files):
    policy, judge, _ = files
    swapped = {"judge": str(policy), "before": str(policy)}
    told = f"frozen was .*'judge': '{judge}'.* and is .*'judge': '{policy}'"
    for changes, said in (
        ({"frozen": swapped}, told),
        ({"frozen": None, "program": look_again}, "frozen was .* and is None"),
        (
            {"asking": ASKING._replace(frozen_tokens=5)},
            "frozen_tokens was 4 and is 5",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            run(**changes)
    config = json.loads((run.out / "config.json").read_text())
    assert config["frozen"] == run.frozen and "frozen_slots" not in config


def test_what_is_not_there_is_told_before_any_weight_is_read(
    run, tmp_path, monkeypatch
):
    def never(*given, **named):
        raise AssertionError("weights are read")

    monkeypatch.setattr(finetuning, "load_actor", never)
    nobody = r"judged of sample row-0 asks the model 'before'.*--frozen before=FOLDER"
    for frozen, said in (
        ({"judge": run.frozen["judge"]}, nobody),
        ({**run.frozen, "judge": "./nowhere"}, "frozen model 'judge': There is no"),
        ({"policy": run.frozen["judge"]}, "got 'policy': that is who is trained"),
        ({"my judge": run.frozen["judge"]}, "such as judge or reader, got 'my judge'"),
    ):
        with pytest.raises(ValueError, match=said):
            run(frozen=frozen, out=tmp_path / "new")
    with pytest.raises(ValueError, match="--frozen-tokens 60 are more than --row-tok"):
        run(asking=ASKING._replace(frozen_tokens=60))
