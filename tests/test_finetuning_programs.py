"""A released model trained by episodes of several turns, on rows of one's own."""

import contextlib
import functools
import io
import itertools
import json

import pytest

from vrl_jax import finetuning, finetuning_flags
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Outcome
from vrl_jax.engine.packing import Room
from vrl_jax.engine.processing import question
from vrl_jax.programs.acting import act
from vrl_jax.programs.dialogue import dialogue
from vrl_jax.programs.recital import recited
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.sft import sft
from vrl_jax.training.choices import Choices
from vrl_jax.training.files import read_lines
from vrl_jax.worlds.writing import write_parquet

from .fixtures import folders, small

SIZES = finetuning.Sizes(
    steps=1,
    prompts=2,
    response_tokens=small.BUDGET,
    learning_rate=1e-3,
    evaluate_every=0,
    test_rows=2,
    checkpoint_every=1,
    examples=2,
    min_pixels=28 * 28,
    max_pixels=20 * 28 * 28,
)
CHOICES = Choices(precision="float32", per_pass=2, slots=4)
LIMITS = Limits(row_tokens=48, pictures=1)
PART = small.png(99, 56, 28)
SYSTEM = "it is one of them"


def look_again(sample, *, again="<image>What?"):
    """Two answers, and a part of some picture between them."""
    first = yield Ask(question(sample))
    second = yield Ask((*question(sample), first, user(again, [PART])))
    return Outcome((first, second), {"looks": 2})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_parquet(small.with_and_without_system(), folder / "rows.parquet")
    return folders.model(folder / "model"), folder / "rows.parquet"


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The run, told what is to change; its folder is `run.out`."""
    model, file = files

    def run(program=look_again, limits=LIMITS, rows=1, system=SYSTEM, **changes):
        told = {"program": program, "limits": limits, "rows": rows}
        play = functools.partial(act, group_size=2, **told)
        return finetuning.finetune(
            lambda anchor: grpo(group_size=2)._replace(act=play),
            name="Twice",
            claim="It looks twice.",
            settings={},
            model=str(model),
            rows=finetuning.Rows(file, file, "", system=system),
            reward=small.even_reward,
            out=run.out,
            seed=0,
            sizes=SIZES,
            choices=CHOICES,
            program=program,
            limits=limits,
            **changes,
        )

    run.out = tmp_path_factory.mktemp("runs") / "run"
    return run


@pytest.fixture(scope="module")
def outcome(run):
    return run()


def test_rows_are_trained_on_and_measured_by_the_program(run, outcome):
    (step,) = read_lines(run.out / "metrics.jsonl")
    assert step["training/logprob_gap"] < 1e-5 and step["play/looks"] == 2
    assert [row["step"] for row in outcome.evaluations] == [0, 1]
    lines = read_lines(run.out / "rollouts" / "rl_1.jsonl")
    assert len(lines) == 4
    for line in lines:
        spoken = [turn["chosen"] for turn in line["turns"]]
        assert spoken == [True, False, True] and line["turns"][1]["images"]
    measured = read_lines(run.out / "rollouts" / "rl_evaluation_1.jsonl")
    assert all(len(line["turns"]) == 3 for line in measured)


def test_a_system_message_is_said_unless_a_row_has_its_own(run, outcome):
    lines = read_lines(run.out / "rollouts" / "rl_1.jsonl")
    prompts = {line["id"]: line["prompt"] for line in lines}
    assert f"system\n{SYSTEM}<|im_end|>" in prompts["row-0"]
    assert "system\nWhat is<|im_end|>" in prompts["row-1"]
    assert SYSTEM not in prompts["row-1"]


def test_the_report_shades_the_turns_of_whole_conversations(run, outcome):
    for line in read_lines(run.out / "examples.jsonl"):
        first, told, second = line["turns"]
        assert first["tokens"] and second["tokens"] and not told["tokens"]
        assert told["text"] == "<image>What?" and len(told["images"]) == 1
    assert outcome.report.read_text().count('class="turn chosen"') >= 4


def test_why_episodes_ended_early_is_told(outcome):
    first, last = outcome.evaluations
    ends = {"val/ended/OutOfRoom": 0.25, "val/no_room/judge": 0.5}
    rows = [first, {**last, **ends}]
    page = finetuning.summary(outcome._replace(evaluations=rows), 1.0)
    assert "by OutOfRoom        0.000 before, 0.250 after" in page
    assert "no room: judge        0.000 before, 0.500 after" in page


def test_a_run_of_what_cannot_be_shaded_ends_with_a_report(
    run, outcome, monkeypatch, capsys
):
    """As several conversations an episode are: see test_dependency.py."""

    def refuses(*given, act, **named):
        assert act.keywords["program"] is look_again
        raise ValueError("several")

    monkeypatch.setattr(finetuning, "look", refuses)
    outcome.report.unlink()
    assert run().report.is_file()
    assert "the report shades no tokens: several" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits": LIMITS._replace(pictures=2)}, "pictures was 1 and is 2"),
        ({"limits": LIMITS._replace(row_tokens=50)}, "row_tokens was 48 and is 50"),
        (
            {"program": functools.partial(look_again, again="<image>Is it?")},
            "program was .*look_again.* and is .*again='<image>Is it",
        ),
        ({"program": None, "limits": None}, "program was .*look_again.* and is None"),
        ({"system": ""}, f"system was '{SYSTEM}' and is None"),
    ],
)
def test_a_run_goes_on_with_its_own_program(run, outcome, changes, said):
    with pytest.raises(ValueError, match=said):
        run(**changes)


@pytest.mark.parametrize("missing", ["program", "limits"])
def test_a_program_and_its_limits_come_together(run, missing, tmp_path):
    with pytest.raises(ValueError, match="a program needs its limits"):
        run(**{missing: None})


@pytest.mark.parametrize("wrong", [{"row_tokens": 0}, {"pictures": -1}])
def test_limits_that_cannot_be_are_told(run, wrong):
    with pytest.raises(ValueError, match="--row-tokens is at least 1 and --pictures"):
        run(limits=LIMITS._replace(**wrong))


def test_what_is_not_said_is_the_script_s(tmp_path):
    task = finetuning_flags.Task("a/b", tmp_path, tmp_path)
    told = finetuning_flags.filled(task, reward="accuracy", system="Look.")
    assert (told.reward, told.system) == ("accuracy", "Look.")
    assert told.instruction == finetuning_flags.INSTRUCTION
    silent = task._replace(instruction="", system="", reward="math")
    assert finetuning_flags.filled(silent, reward="accuracy", system="Look.") == silent


@pytest.fixture(scope="module")
def learnt(files, tmp_path_factory):
    """A cold start: one conversation with a part, one answer, one that is too long."""
    model, _ = files
    folder = tmp_path_factory.mktemp("traces")
    shown = {"whole": small.samples()[0].images[0], "part": PART}
    for name, picture in shown.items():
        (folder / f"{name}.png").write_bytes(picture)

    def said(*texts):
        return [
            {"role": role, "content": text}
            for role, text in zip(itertools.cycle(["user", "assistant"]), texts)
        ]

    rows = [
        {
            "id": "twice",
            "messages": said("<image>What?", "it", "<image>What is it?", "it is"),
            "images": ["whole.png", "part.png"],
        },
        {
            "id": "once",
            "messages": said("<image>What?", "it is it"),
            "images": ["whole.png"],
        },
        {"id": "long", "messages": said("What?", "it", "What? " * 30, "it is")},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, used, page = folder / "run", [], io.StringIO()

    def by_heart(*given, limits):
        rollout = recited(*given, program=dialogue, limits=limits)
        used.append((limits, rollout.prompts.tokens.shape, rollout.tokens.shape))
        return rollout

    run = functools.partial(
        finetuning.finetune,
        lambda anchor: sft(by_heart),
        name="SFT",
        claim="It learns by heart.",
        settings={},
        model=str(model),
        rows=finetuning.Rows(folder / "rows.jsonl", folder / "rows.jsonl", "Is it?"),
        reward=small.even_reward,
        out=out,
        seed=0,
        sizes=SIZES._replace(steps=4, learning_rate=1e-2),
        choices=CHOICES,
        recital=dialogue,
        limits=Limits(row_tokens=48),
    )
    with contextlib.redirect_stdout(page):
        outcome = run()
    return outcome, out, used, page.getvalue()


def test_a_conversation_s_room_is_what_its_rows_need(learnt):
    """By hand: the prompt of both, and behind it a part and the second question.

    What ends an answer is what the template writes. The part has the window of the
    whole, and so a block. --row-tokens had room for 48.
    """
    _, _, used, page = learnt
    picture = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    prompt = f"""\
<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
{picture}What?

Is it?<|im_end|>
<|im_start|>assistant
"""
    behind = f"""\
it<|im_end|>
<|im_start|>user
{picture}What is it?<|im_end|>
<|im_start|>assistant
it is<|im_end|>"""
    count, more = (len(small.tokenizer()(s)["input_ids"]) for s in (prompt, behind))
    assert {*used} == {(Limits(more, pictures=1), (2, count), (2, more))}
    flags = (
        f"--prompt-tokens {count} --patches 16 --response-tokens {more} --pictures 1"
    )
    assert f"sizes for a plan: {flags}\n" in page
    assert f"  twice: {count} tokens, and {more} behind; " in page


@pytest.mark.parametrize(
    ("blocks", "behind", "flags"),
    [
        ((1, 2), None, "--patches 32"),
        ((2,), Limits(9), "--patches 32 --response-tokens 9"),
        ((2,), Limits(9, pictures=3), "--patches 32 --response-tokens 9 --pictures 2"),
        ((0,), Limits(9, pictures=3), "--patches 16 --response-tokens 9 --pictures 3"),
        ((0,), Limits(9), "--patches 0 --response-tokens 9"),
    ],
)
def test_a_plan_s_pictures_are_as_large_as_a_prompt_s(blocks, behind, flags):
    room = Room((30, 40), 16, blocks)
    found = finetuning_flags.plan_sizes(room, behind)
    assert found == f"--prompt-tokens 40 {flags}"


def test_conversations_are_learnt_by_heart(learnt):
    """Both rows at each step: what is learnt grows likelier."""
    _, out, *_ = learnt
    steps = read_lines(out / "metrics.jsonl")
    losses = [row["actor/loss"] for row in steps]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    assert {row["phase"] for row in steps} == {"sft"}


def test_what_cannot_be_recited_is_left_out_and_told(learnt):
    _, out, *_ = learnt
    told = json.loads((out / "data_report.json").read_text())["train"]
    assert told["used"] == 2
    (why,) = told["dropped"]["cannot be recited"]
    assert "sample long ends early, by" in why and "row_tokens" in why
