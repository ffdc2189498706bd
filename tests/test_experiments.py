"""The scripts as a user runs them: files, export, resuming, and what is refused."""

import importlib
import importlib.util
import inspect
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from PIL import Image
from transformers import AutoTokenizer

from vrl_jax import experiment
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.pretrained import load_actor, load_processor
from vrl_jax.engine.processing import encode
from vrl_jax.engine.reference import free, near
from vrl_jax.models import hub
from vrl_jax.models.critic import linear
from vrl_jax.recipes.ppo import ppo
from vrl_jax.training.data import read_dialogues
from vrl_jax.training.files import read_lines
from vrl_jax.training.identity import method_of
from vrl_jax.types import Episode, Turn
from vrl_jax.worlds import charts, tasks

from .fixtures import folders, small

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(FOLDER.glob("*.py"))
REPLAYED = ("metrics.jsonl", "evaluations.jsonl", "data/train.parquet")


def script(name):
    """The module of an experiment, without running it."""
    place = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def command(monkeypatch, path, *flags):
    """What `python experiments/<path> <flags>` does, in this process."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, flags)])
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture(scope="module")
def main():
    return script("vppo_tiny_digits").main


@pytest.fixture(scope="module")
def smoke(main, tmp_path_factory):
    """The outcome of `--smoke`, and its folder."""
    out = tmp_path_factory.mktemp("runs")
    return main(smoke=True, out=out), out / "smoke"


def test_smoke_leaves_every_file(smoke):
    outcome, out = smoke
    for name in (
        *REPLAYED,
        "config.json",
        "data_report.json",
        "timings.jsonl",
        "examples.jsonl",
        "dependency.json",
        "report.html",
        "policy/model.safetensors",
        "policy/config.json",
        "policy/tokenizer.json",
    ):
        assert (out / name).stat().st_size > 0, name
    sizes = experiment.SMOKE
    steps = read_lines(out / "metrics.jsonl")
    assert len(steps) == sizes.cold_start_steps + sizes.rl_steps
    assert all(row["training/skipped"] == 0 for row in steps)
    assert all(row.get("training/logprob_gap", 0) < 1e-5 for row in steps)
    assert read_lines(out / "evaluations.jsonl") == outcome.evaluations
    assert len(outcome.evaluations) == 1 + sizes.rl_steps // sizes.evaluate_every
    assert len(read_lines(out / "examples.jsonl")) == sizes.examples
    assert (out / "report.html").read_text() == outcome.report.read_text()


@pytest.mark.proof
def test_a_critic_learns_what_is_paid_and_stays_out_of_the_folder(tmp_path):
    """Every response earns 1; the critic says 0 of all at first."""
    paid = experiment.SUMS._replace(reward=lambda episodes: [1.0] * len(episodes))
    outcome = experiment.tiny_digits(
        ppo(group_size=2),
        name="PPO",
        claim="",
        out=tmp_path,
        seed=0,
        sizes=experiment.SMOKE,
        world=paid,
        critics={"value": linear},
    )
    last = read_lines(tmp_path / "metrics.jsonl")[-1]
    assert 0 < last["critic/vpred_mean"] < 1
    assert outcome.actor.params["critic"]["value"]["last"]["bias"] > 0
    _, params = hub.load(outcome.policy)
    assert "critic" not in params


def test_the_exported_folder_is_the_trained_policy(smoke):
    outcome, out = smoke
    assert outcome.policy == out / "policy"
    spec, params = hub.load(outcome.policy)
    assert spec == outcome.actor.processor.front_end.spec
    jax.tree.map(np.testing.assert_array_equal, params, outcome.actor.params)


def test_the_exported_tokenizer_gives_the_same_ids(smoke):
    outcome, _ = smoke
    mine = outcome.actor.processor.tokenizer
    read = AutoTokenizer.from_pretrained(outcome.policy)
    text = "<|im_start|>user\nWhat is the sum? 4 + 9 = \\boxed{13} é<|im_end|>"
    assert read(text)["input_ids"] == mine(text)["input_ids"]
    assert read.eos_token_id == mine.eos_token_id
    turn = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    ]
    shown = {"tokenize": False, "add_generation_prompt": True}
    assert read.apply_chat_template(turn, **shown) == mine.apply_chat_template(
        turn, **shown
    )


def contents(out):
    return {name: (out / name).read_bytes() for name in REPLAYED}


def test_the_same_command_again_reads_and_changes_nothing(main, smoke, capsys):
    outcome, out = smoke
    before, timings = contents(out), (out / "timings.jsonl").read_bytes()
    again = main(smoke=True, out=out.parent)
    assert contents(out) == before
    assert (out / "timings.jsonl").read_bytes() == timings  # not a step was taken
    assert again.dependency == outcome.dependency
    jax.tree.map(
        np.testing.assert_array_equal, again.actor.params, outcome.actor.params
    )
    assert f"resuming {out} after step 4" in capsys.readouterr().out


@pytest.mark.proof
def test_a_killed_experiment_resumes_to_the_same_bits(
    main, smoke, tmp_path, monkeypatch
):
    """Law 5, with the real policy: killed at an evaluation in the second stage."""
    outcome, out = smoke
    evaluate, calls = experiment.held_out.look_and_shuffle, []

    def mortal(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(experiment.held_out, "look_and_shuffle", mortal)
        with pytest.raises(KeyboardInterrupt):
            main(smoke=True, out=tmp_path)
    assert not (tmp_path / "smoke" / "report.html").exists()
    resumed = main(smoke=True, out=tmp_path)
    assert contents(tmp_path / "smoke") == contents(out)
    jax.tree.map(
        np.testing.assert_array_equal, resumed.actor.params, outcome.actor.params
    )


def test_other_settings_in_the_same_folder_are_refused(main, smoke):
    _, out = smoke
    before = contents(out)
    with pytest.raises(ValueError, match=r"seed was 0 and is 1.*Choose another --out"):
        main(smoke=True, out=out.parent, seed=1)
    assert contents(out) == before


def test_a_mesh_of_other_devices_than_there_are(main, tmp_path):
    with pytest.raises(ValueError, match="needs 3 devices, and there are 8"):
        main(out=tmp_path, mesh="data=3")
    assert not list(tmp_path.iterdir())


def test_a_user_s_error_is_one_line(smoke, monkeypatch, capsys):
    _, out = smoke
    monkeypatch.delenv("VRL_JAX_TRACEBACK", raising=False)
    path = FOLDER / "vppo_tiny_digits.py"
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, path, "--smoke", "--out", out.parent, "--seed", 3)
    assert str(ended.value.code).startswith("error: ")
    assert "seed was 0 and is 3" in str(ended.value.code)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_refuse_an_unknown_flag_by_name(path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, path, "--no-such-flag")
    assert ended.value.code not in (0, None)
    printed = capsys.readouterr()
    assert "--no-such-flag" in printed.err + printed.out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_explain_their_flags(path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, path, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag, value in script(path.stem).main.__kwdefaults__.items():
        for name in getattr(value, "_fields", [flag]):  # a tuple is a flag a field
            assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_say_claim_command_hardware_and_time(path):
    text = script(path.stem).__doc__
    for heading in ("Claim", "Command", "Hardware", "Time"):
        assert f"\n{heading}" in text
    assert f"Command   python experiments/{path.name}" in text


@pytest.mark.parametrize(("method", "group"), [("grpo", 5), ("ppo", 1)])
def test_scripts_for_released_models_hand_over_what_their_flags_say(
    method, group, monkeypatch
):
    module, given = script(f"{method}_qwen_geometry3k"), {}
    monkeypatch.setattr(
        module,
        "finetune",
        lambda recipe, **named: given.update(named, recipe=recipe(free)),
    )
    flags = "--model a/b --train a.jsonl --test b.jsonl --images c --instruction Why?"
    flags += " --reward iou --frame norm1000 --steps 7 --lora-rank 2 --kl-weight 0.5"
    tyro.cli(module.main, args=flags.split())
    assert (given["name"], given["model"]) == (method.upper(), "a/b")
    files = (Path("a.jsonl"), Path("b.jsonl"), "Why?", Path("c"), "")
    assert given["rows"] == files
    assert given["settings"] == {
        "reward": "iou",
        "style": None,
        "frame": "norm1000",
        "gold_frame": "original",
        "group": group,
    }
    assert given["sizes"].steps == 7 and given["choices"].lora_rank == 2
    assert given["kl_weight"] == 0.5 and callable(given["reward"])
    made = getattr(importlib.import_module(f"vrl_jax.recipes.{method}"), method)
    assert method_of(given["recipe"]) == method_of(made(group_size=group))
    assert ("critics" in given) == (method == "ppo")


def test_deepeyes_s_conversations_are_what_its_program_asks_for(tmp_path):
    """As rows of messages that are read, and as what is said to the program's asks."""
    chart = script("deepeyes_tiny_charts")
    made = charts.numbered(2, split="train", seed=0)
    samples = [tasks.number_in_part(sample) for sample in made]
    file = tmp_path / "traces.jsonl"
    file.write_text("\n".join(map(json.dumps, chart.conversations(samples))))
    read, report = read_dialogues(file)
    assert len(read) == 6 and not report.dropped
    chart.untrained(tmp_path / "model", samples, seed=0)
    sizes = {"prompts_per_step": 2, "max_pixels": chart.MAX_PIXELS}
    loaded = load_processor(tmp_path / "model", samples, read, **sizes).processor
    actor = load_actor(tmp_path / "model", loaded, None, max_new_tokens=96)

    def recited(samples, program):
        key, limits = jax.random.key(0), chart.LIMITS
        told = {"program": program, "limits": limits}
        return chart.recited(actor, iter([samples]), key, **told)

    rows, both = recited(samples, chart.PROGRAM), recited(read[2::3], chart.dialogue)
    for name in ("prompts", "tokens", "mask", "positions", "shown"):
        one, other = getattr(rows, name), getattr(both, name)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    # Alone, the second turn sees the part as if it were the chart.
    alone = recited(read[1::3], chart.dialogue)
    first = np.asarray(alone.prompts.images.patches).reshape(2, -1)
    part = np.asarray(rows.shown.images.patches).reshape(2, -1)
    np.testing.assert_array_equal(first, part[:, : first.shape[1]])


def test_deepeyes_hands_over_its_tool_its_words_and_its_room(monkeypatch, tmp_path):
    module, given = script("deepeyes_qwen_vstar"), {}
    monkeypatch.setattr(
        module,
        "finetune",
        lambda recipe, **named: given.update(named, recipe=recipe(free)),
    )
    model = folders.model(tmp_path / "model")
    flags = f"--model {model} --train a.jsonl --test b.jsonl --frame resized --turns 3"
    flags += " --pictures 2 --row-tokens 99 --max-pixels 6272"
    tyro.cli(module.main, args=flags.split())
    playing = given["recipe"].act.keywords
    assert playing["limits"] == given["limits"] == Limits(row_tokens=99, pictures=2)
    assert playing["group_size"] == 8
    for name in ("available", "turns"):  # trained on as it is measured
        asked = given["program"].keywords[name]
        assert playing["program"].keywords[name] == asked
    rows, settings = given["rows"], given["settings"]
    assert rows.instruction == module.INSTRUCTION
    assert rows.system == module.tools_message("pixels")
    assert (settings["reward"], settings["turns"]) == ("accuracy", 3)
    # Boxes count pixels of what the model is shown: 56 x 112 of 112 x 224.
    tool = given["program"].keywords["available"]["image_zoom_in_tool"]
    part = tool([Image.new("RGB", (224, 112))], bbox_2d=[0, 0, 28, 28])
    assert part.size == (56, 56)
    with pytest.raises(ValueError, match="--frame is one of original"):
        tyro.cli(module.main, args=flags.replace("resized", "some").split())
    for wrong in ("--turns 0", "--group 1"):
        with pytest.raises(ValueError, match="--turns is at least 1 and --group"):
            tyro.cli(module.main, args=f"{flags} {wrong}".split())


def test_racro_hands_over_its_reasoner_its_words_and_who_is_paid(monkeypatch):
    module, given = script("racro_qwen_virl39k"), {}
    reasoner = small.actor(params=small.params(1))
    monkeypatch.setattr(
        module,
        "finetune",
        lambda recipe, **named: given.update(
            named, recipe=recipe(near((), weight=0.5), reasoner=reasoner)
        ),
    )
    flags = "--model a/b --reasoner c/d --train a.jsonl --test b.jsonl --reward exact"
    flags += " --frozen-tokens 7 --frozen-slots 3 --kl-weight 0.5 --reference device"
    tyro.cli(module.main, args=flags.split())
    assert given["frozen"] == {"reasoner": "c/d"} and given["asking"][:2] == (7, None)
    assert given["asking"].frozen_slots == 3 and given["rows"].instruction == ""
    playing = given["recipe"].act.keywords
    assert playing["models"] == {"reasoner": reasoner} and playing["group_size"] == 4
    assert playing["limits"] == given["limits"] == Limits()
    # Trained on as it is measured: the words are those of the program itself.
    sample = small.samples()[0]
    asked = [next(one(sample)) for one in (playing["program"], given["program"])]
    assert asked[0] == asked[1] and "Do not answer" in asked[0].context[0].text
    right = Turn(
        rf"\boxed{{{sample.answer}}}", (1,), False, facts={"model": "reasoner"}
    )
    episodes = [Episode(sample, "?", (Turn("a", (1,)), right), True)]
    assert given["reward"](episodes) == [1.0]
    # The code's distance is cut off at 10, where k3 of as much is e^10 - 11.
    anchor = inspect.getclosurevars(given["recipe"].loss).nonlocals["anchor"]
    apart = np.float32([[-10]]), {"reference": np.zeros((1, 1), np.float32)}
    assert anchor.weight == 0.5 and anchor.distance(*apart) == 10


def test_ergo_s_demonstrations_are_what_its_program_asks_for():
    """Both turns with the crop between them, within the limits of the run."""
    scene = script("ergo_tiny_scenes")
    samples = scene.signs(8, split="train", seed=0)
    coarse, crops = map(scene.opening, samples), [scene.crop(s) for s in samples]
    words = [crops[0].question]
    actor = experiment.tiny_actor([*coarse], scene.ergo_reward(), seed=0, texts=words)
    rollout = scene.recited(
        actor,
        iter([samples]),
        jax.random.key(0),
        program=scene.PROGRAM,
        models=["reader"],
        limits=scene.LIMITS,
    )
    rows = zip(
        samples, np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True
    )
    for sample, tokens, mask in rows:
        written = actor.processor.tokenizer.decode(tokens[mask])
        pointed, answer, _ = sample.annotations["demonstration"]
        assert written == f"{pointed}<|im_end|>{answer}<|im_end|>"
    # What the reader is taught to answer is what the policy is shown in its turn.
    read = zip(crops, np.asarray(rollout.tokens), strict=True)
    for row, tokens in read:
        asked = row.question.removeprefix("<image>")
        assert asked in actor.processor.tokenizer.decode(tokens)


def test_openthinkimg_s_demonstrations_are_what_its_program_asks_for():
    """Both turns with what the tool shows between them, or with the chart again."""
    chart = script("openthinkimg_tiny_charts")
    samples = chart.numbered(2, split="train", seed=0)
    said = chart.OBSERVATION.format(name="Crop", text="")
    actor = experiment.tiny_actor(
        samples, chart.REWARD, seed=0, texts=[said], max_pixels=chart.MAX_PIXELS
    )

    def patches(images):
        """Those of the pictures, row by row, without what they are padded with."""
        seen = zip(np.asarray(images.patches), np.asarray(images.frames), strict=True)
        return [row[frames > 0] for row, frames in seen]

    shown = {}
    for name, available in chart.TOOLS.items():
        rollout = chart.recited(
            actor,
            iter([samples]),
            jax.random.key(0),
            program=chart.program(available),
            limits=chart.LIMITS,
        )
        for sample, tokens, mask in zip(
            samples, np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True
        ):
            first, last = sample.annotations["demonstration"]
            written = actor.processor.tokenizer.decode(tokens[mask])
            assert written == f"{first}<|im_end|>{last}<|im_end|>"
            assert "OBSERVATION of Crop" in actor.processor.tokenizer.decode(tokens)
        shown[name] = patches(rollout.shown.images)
        asked = patches(rollout.prompts.images)
        assert all(len(picture) == 36 for picture in [*shown[name], *asked])
        same = map(np.array_equal, shown[name], asked)
        assert [*same] == [name == "unchanged"] * 2
    # What is learnt turn by turn is what the tool shows in both together.
    alone = chart.each_turn(samples)
    said = [turn for s in samples for turn in s.annotations["demonstration"]]
    assert [row.annotations["demonstration"] for row in alone] == said
    closely = patches(encode(actor.processor, alone[1::2]).prompts.images)
    np.testing.assert_array_equal(closely, shown["drawing"])


def test_openthinkimg_s_reward_pays_the_answer_and_logs_where_it_looked():
    chart = script("openthinkimg_tiny_charts")
    (sample,) = chart.numbered(1, split="train", seed=0)
    other = chart.numbered(2, split="train", seed=0)[1]
    first, last = sample.annotations["demonstration"]
    elsewhere, wrong = other.annotations["demonstration"]
    assert first != elsewhere and sample.answer != other.answer

    def scored(*texts):
        turns = tuple(Turn(text, (1,)) for text in texts)
        return chart.REWARD([Episode(sample, "?", turns, True)])[0]

    paid = {"overall": 1, "accuracy": 1, "format": 1, "found": 1}
    assert scored(first, last) == paid
    assert scored(elsewhere, last) == {**paid, "found": 0}
    assert scored(first, wrong) == {**paid, "overall": 0, "accuracy": 0}
    assert scored("so", first) == dict.fromkeys(paid, 0) | {"format": 0.5}


@pytest.mark.proof
def test_the_study_measures_draws_and_reads_what_has_ended(tmp_path, capsys):
    """Two methods; that each of the others runs is the recipes' own contract."""
    main = script("perception_study").main
    chosen = {"smoke": True, "out": tmp_path, "only": ("dapo", "vppo"), "seeds": (0,)}
    lines = main(**chosen, cost_steps=1)
    rows = {line.split(" | ")[0] for line in lines}
    assert {"| dapo", "| vppo", "| act", "| score", "| loss", "| step"} <= rows
    out = tmp_path / "smoke"
    assert (out / "table.md").read_text().splitlines() == lines
    assert "held-out accuracy" in (out / "curves.svg").read_text()
    cost = json.loads((out / "cost.json").read_text())
    assert cost["vppo"]["score"] > 10 * cost["dapo"]["score"]
    assert not (out / "seed-0" / "vppo" / "checkpoints").exists()
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.jsonl")}
    capsys.readouterr()
    assert main(**chosen, cost_steps=1) == lines
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.jsonl")} == written
    assert "seed 0:" not in capsys.readouterr().out  # nothing was run again


def test_the_study_s_intervals_and_differences_by_hand():
    study = script("perception_study")
    mean, low, high = study.interval(np.array([0.0, 1.0]))
    assert (mean, low, high) == (pytest.approx(0.5), 0, 1)  # 00 01 10 11
    steps = np.array([0, 10])

    def curve(end):
        return study.Curve(steps, 2000.0 * steps, np.array([0.3, end]))

    curves = {
        study.BASELINE: {0: curve(0.5), 1: curve(0.6)},
        "vppo": {1: curve(0.7)},
    }
    *_, baseline, vppo = study.table(curves)
    assert "55.0 [50.0, 60.0]" in baseline and baseline.endswith("| 2 | 20 k |")
    # Only the seed that both have run is compared.
    assert "| +10.0 [+10.0, +10.0] | 1 | 20 k |" in vppo
