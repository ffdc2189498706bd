"""A model's folder and rows of one's own, as the scripts for them use both."""

import base64
import csv
import dataclasses
import inspect
import json
from typing import Annotated

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from transformers import AutoTokenizer

from vrl_jax import cli, finetuning
from vrl_jax.engine import pretrained
from vrl_jax.engine.processing import encode, encode_one
from vrl_jax.models import hub
from vrl_jax.models.families import family_of
from vrl_jax.planning.command import _verdict
from vrl_jax.planning.search import search
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices
from vrl_jax.training.files import read_lines
from vrl_jax.worlds.writing import write_parquet

from .fixtures import actors, gemma, plans, small

BOUNDS = {"min_pixels": 28 * 28, "max_pixels": 20 * 28 * 28}
SIZES = finetuning.Sizes(
    steps=2,
    prompts=4,
    response_tokens=small.BUDGET,
    longest_prompt=40,
    learning_rate=1e-3,
    test_rows=8,
    examples=2,
    **BOUNDS,
)
CHOICES = Choices(precision="float32", per_pass=4, slots=16)
LONG = "row-long"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder as `transformers` would leave one, but for its few parameters."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    hub.save(folder, small.spec(), small.params(), tokenizer=small.tokenizer())
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    samples = [
        dataclasses.replace(sample, id=f"{sample.id}-{turn}")
        for turn in range(2)
        for sample in small.samples()
    ]
    long = dataclasses.replace(samples[0], id=LONG, question="<image>" + "What? " * 40)
    write_parquet([*samples, long], folder / "train.parquet")
    write_parquet(samples, folder / "test.parquet")
    return finetuning.Rows(folder / "train.parquet", folder / "test.parquet", "What?")


@pytest.fixture(scope="module")
def trained(model, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"

    def run(**changes):
        given = {
            "sizes": SIZES,
            "choices": CHOICES,
            "settings": {"group": small.GROUP},
            "seed": 0,
            "out": out,
        }
        return finetuning.finetune(
            lambda anchor: grpo(group_size=small.GROUP, anchor=anchor),
            name="GRPO",
            claim="It runs.",
            model=str(model),
            rows=rows,
            reward=small.even_reward,
            **{**given, **changes},
        )

    return run(), out, run


def test_a_run_measures_before_and_after_and_leaves_every_file(trained):
    outcome, out, _ = trained
    assert [row["step"] for row in outcome.evaluations] == [0, 2]
    for row in outcome.evaluations:
        assert row["val/count"] == 8
        assert {"val/reward_score", "val/accuracy_shuffled_images"} <= row.keys()
    steps = read_lines(out / "metrics.jsonl")
    assert len(steps) == 2
    assert all(row["training/logprob_gap"] < 1e-5 for row in steps)
    assert len(read_lines(out / "examples.jsonl")) == 2
    page = outcome.report.read_text()
    assert "It runs." in page and page == (out / "report.html").read_text()


def test_what_cannot_be_used_is_told(trained):
    _, out, _ = trained
    report = json.loads((out / "data_report.json").read_text())
    assert (report["train"]["used"], report["test"]["used"]) == (8, 8)
    (why,) = report["train"]["dropped"]["not used"]
    assert why.startswith(f"Sample {LONG}: The prompt has") and "40" in why


def test_the_export_is_the_trained_policy_with_the_model_s_own_files(trained, model):
    outcome, _, _ = trained
    spec, params = hub.load(outcome.policy)
    assert spec == small.spec()
    jax.tree.map(np.testing.assert_array_equal, params, outcome.actor.params)
    moved = jax.tree.map(
        lambda x, y: float(jnp.abs(x - y).max()), params, small.params()
    )
    assert max(jax.tree.leaves(moved)) > 1e-4
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (outcome.policy / name).read_bytes() == (model / name).read_bytes()
    name = "preprocessor_config.json"
    before, after = (
        json.loads((folder / name).read_text()) for folder in (model, outcome.policy)
    )
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"min_pixels", "max_pixels", "size"}  # those of the training
    assert (after["min_pixels"], after["max_pixels"]) == (*BOUNDS.values(),)
    assert AutoTokenizer.from_pretrained(outcome.policy).chat_template


def test_a_run_goes_on_with_more_steps_and_other_choices_of_memory(
    trained, tmp_path, capsys
):
    """One step, then one more in pieces: the same as two at once, to float error."""
    outcome, out, run = trained
    more = {"out": tmp_path / "run"}
    run(sizes=SIZES._replace(steps=1), **more)
    again = run(choices=CHOICES._replace(micro_batches=2, slots=8, per_pass=2), **more)
    assert f"resuming {more['out']} after step 1" in capsys.readouterr().out
    unbroken, broken = (read_lines(x / "metrics.jsonl") for x in (out, more["out"]))
    assert len(broken) == 2 and broken[0] == unbroken[0]
    for name, value in unbroken[1].items():
        if isinstance(value, float):
            assert broken[1][name] == pytest.approx(value, abs=1e-5), name
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
        again.actor.params,
        outcome.actor.params,
    )


def test_a_checkpoint_is_exported_as_the_run_did(trained, tmp_path, capsys):
    outcome, out, _ = trained
    for number, which in enumerate([[], ["--best"], ["--step", "2"]]):
        made = tmp_path / str(number)
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", str(out), "--out", str(made), *which])
        assert ended.value.code == 0
        assert "after step 2" in capsys.readouterr().out
        for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
            assert (made / name).read_bytes() == (outcome.policy / name).read_bytes()
    for folder, said in (
        ([str(out), "--step", "7"], "has no checkpoint of step 7; it has those of 2."),
        ([str(tmp_path)], "is not the run of a script that trains a released model"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", *folder, "--out", str(tmp_path / "none")])
        assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sizes": SIZES._replace(learning_rate=0.1)},
            r"learning_rate was 0\.001 and is 0\.1",
        ),
        ({"settings": {"group": 2}}, "group was 4 and is 2"),
        ({"choices": CHOICES._replace(minibatches=2)}, "minibatches was 1 and is 2"),
        ({"choices": CHOICES._replace(tower="frozen")}, "tower was 'trained' and is"),
    ],
)
def test_another_method_in_the_same_folder_is_refused(trained, changes, said):
    _, out, run = trained
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=said):
        run(**changes)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_run_without_any_score_ends_with_its_files(trained):
    outcome, _, _ = trained
    unscored = dict.fromkeys(outcome.evaluations[0])
    page = finetuning.summary(
        outcome._replace(evaluations=[unscored, outcome.evaluations[1]]), 1.0
    )
    assert "accuracy              - before, 0." in page


def test_an_exported_policy_is_a_model_to_go_on_from(trained, rows):
    outcome, _, _ = trained
    read, _ = finetuning.read_rows(outcome.policy, rows, SIZES)
    actor = finetuning.begin(outcome.policy, read, None, SIZES, CHOICES)
    prompts = encode(read.processor, read.fits[1].samples).prompts
    again = encode(outcome.actor.processor, read.fits[1].samples).prompts
    jax.tree.map(np.testing.assert_array_equal, prompts, again)
    jax.tree.map(np.testing.assert_array_equal, actor.params, outcome.actor.params)
    assert actor.stop_ids.tolist() == outcome.actor.stop_ids.tolist()


def test_eval_of_the_export_finds_what_the_run_measured(
    trained, rows, tmp_path, capsys
):
    """The run's last measurement, again by the command and from the exported folder."""
    outcome, _, _ = trained
    reward = tmp_path / "even.py"
    reward.write_text(inspect.getsource(small.even_reward))
    command = [
        *("eval", "--model", outcome.policy, "--data", rows.test, "--rows", 8),
        *("--reward", f"{reward}:even_reward", "--instruction", rows.instruction),
        *("--out", tmp_path / "out", "--response-tokens", small.BUDGET),
        *("--dtype", "float32", "--per-pass", 4, "--json"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, command)])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    last = outcome.evaluations[-1]
    assert found["accuracy"] == last["val/accuracy"]
    assert found["tokens"] == last["val/response_length/mean"]
    assert found == json.loads((tmp_path / "out" / "summary.json").read_text())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pixel_bounds"] == [*BOUNDS.values()]  # as trained, unasked
    reward.write_text(reward.read_text() + "\n")
    with pytest.raises(SystemExit):
        cli.main([*map(str, command)])
    assert "reward_file was" in capsys.readouterr().err
    assert manifest["harness"].startswith("vrl-jax ")


def test_eval_of_a_benchmark_s_table_gives_it_back_answered(model, tmp_path, capsys):
    picture = base64.b64encode(small.samples()[0].images[0]).decode()
    cells = [f"{i}\t{picture}\tWhat is it?\tone\ttwo\tB" for i in (3, 5)]
    file = tmp_path / "MMStar.tsv"
    file.write_text("\n".join(["index\timage\tquestion\tA\tB\tanswer", *cells]))
    command = [
        *("eval", "--model", model, "--data", file, "--reward", "mcq"),
        *("--out", tmp_path / "out", "--response-tokens", 4, "--dtype", "float32"),
        *("--table", tmp_path / "answered.tsv"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, command)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "MMStar.tsv: 2 of 2 rows can be used." in said
    assert "accuracy 0.000 [0.000, 0.000] of 2 questions" in said
    with (tmp_path / "answered.tsv").open(newline="") as lines:
        rows = [*csv.DictReader(lines, delimiter="\t")]
    responses = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [row["index"] for row in rows] == ["3", "5"]
    assert [row["prediction"] for row in rows] == [r["response"] for r in responses]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--each", "2"], "give --temperature"),
        (["--each", "0"], "at least once, got --each 0"),
        (["--temperature", "-1"], "at least 0, got -1"),
        (["--dtype", "int4"], "dtypes are bfloat16, float32"),
        (["--rows", "-1"], "at least one row is needed, got -1"),
        (["--model", "./nowhere"], "There is no model folder './nowhere'"),
        (["--reward", "nice"], "there is no reward 'nice'"),
        (["--table", "t.tsv"], "--table is for a benchmark's TSV, and --data is"),
        (["--reward", "iou"], "iou needs --frame, what the numbers of a box count"),
    ],
)
def test_wrong_flags_of_eval_are_one_line(model, rows, tmp_path, capsys, flags, said):
    usual = {"--model": model, "--data": rows.test, "--reward": "exact"}
    usual["--out"] = tmp_path
    given = [str(x) for pair in usual.items() if pair[0] not in flags for x in pair]
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", *given, *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_instructions_stand_under_the_questions(rows):
    asked = pretrained.asked(small.samples(), "Box it: \\boxed{}.")
    for sample, before in zip(asked, small.samples(), strict=True):
        assert sample.question == f"{before.question}\n\nBox it: \\boxed{{}}."
    assert pretrained.asked(small.samples(), "") == [*small.samples()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": CHOICES._replace(minibatches=3)}, "4 prompts do not make 3"),
        (
            {"choices": CHOICES._replace(remat="some")},
            "there is no remat 'some'",
        ),
        ({"choices": CHOICES._replace(slots=0)}, "slots must be at least 1, got 0"),
        ({"kl_weight": 0.1}, "--reference device or host"),
        ({"sizes": SIZES._replace(steps=0)}, "at least 1 step, got --steps 0"),
        ({"choices": CHOICES._replace(fsdp=3)}, "needs 3 devices, and there are 8"),
        ({"sizes": SIZES._replace(longest_prompt=3)}, "No sample can be used"),
        ({"sizes": SIZES._replace(min_pixels=10**6)}, "is more than max_pixels"),
    ],
)
def test_wrong_choices_are_refused_by_name(trained, tmp_path, changes, message):
    _, _, run = trained
    with pytest.raises(ValueError, match=message):
        run(out=tmp_path / "run", **changes)


def test_choices_as_flags_and_back():
    asked = Choices(fsdp=4, micro_batches=2, per_pass=8, remat="split")
    written = chosen.flags(asked)
    assert written == "--fsdp 4 --micro-batches 2 --per-pass 8 --remat split"
    assert chosen.flags(Choices()) == ""

    def main(*, choices: Annotated[Choices, tyro.conf.OmitArgPrefixes] = Choices()):  # noqa: B008
        return choices

    assert tyro.cli(main, args=written.split()) == asked


def test_a_plan_ends_with_flags_of_a_script():
    *_, best = search(plans.request(micro_batches=1), plans.fake)
    assert best.fits
    *_, last = _verdict([best]).splitlines()
    assert last == f"As flags of a script: {chosen.flags(best.request.choices)}"
    assert "--micro-batches 2" in last and "--remat split" in last


def test_a_reference_lies_where_it_was_chosen():
    rollout = small.rollout()
    params = small.params(1)
    away = Choices(reference="host"), Choices(reference="device")
    seen = [
        chosen.anchor(choices, params, weight=0.5).score(small.actor(), rollout)
        for choices in away
    ]
    for scored in seen:
        wanted = small.actor(params=params).likelihood(rollout).logprobs
        np.testing.assert_array_equal(scored.extra_logprobs["reference"], wanted)
    nobody = chosen.anchor(Choices(), params, weight=0.5)
    assert nobody.weight == 0 and nobody.score(None, rollout) is rollout


@pytest.mark.parametrize("name", actors.OTHERS)
def test_every_family_is_read_from_its_folder(tmp_path, name):
    """The same ids, pictures and weights as of the actor that wrote it."""
    wanted = actors.of_family(name)
    front_end = wanted.processor.front_end
    hub.save(
        tmp_path,
        front_end.spec,
        wanted.params,
        tokenizer=wanted.processor.tokenizer,
        pixel_bounds=front_end.pixel_bounds,
    )
    read = pretrained.load_processor(tmp_path, small.samples(), prompts_per_step=4)
    for sample in read.fits[0].samples:
        mine, other = (
            encode_one(processor, sample)
            for processor in (read.processor, wanted.processor)
        )
        assert mine.text == other.text and mine.image_sizes == other.image_sizes
        np.testing.assert_array_equal(mine.unpadded.tokens, other.unpadded.tokens)
    assert len(read.fits[0].samples) == len(small.samples())
    found = pretrained.load_actor(
        tmp_path, read.processor, small.even_reward, max_new_tokens=small.BUDGET
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    np.testing.assert_array_equal(found.allowed, wanted.allowed)
    assert wanted.processor.tokenizer.eos_token_id in found.stop_ids.tolist()


def test_stops_are_those_of_the_generation_settings_and_the_tokenizer(model, tmp_path):
    tokenizer = small.tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert pretrained.stop_ids(model, tokenizer) == sorted(ends)
    settings = tmp_path / hub.GENERATION
    settings.write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert pretrained.stop_ids(tmp_path, tokenizer) == sorted({7, 8, 9, ends[1]})
    settings.write_text("{}")
    (tmp_path / "config.json").unlink()
    silent = type("Silent", (), {"eos_token_id": None})
    with pytest.raises(ValueError, match=r"name it as eos_token_id in generation_"):
        pretrained.stop_ids(tmp_path, silent)


def test_a_template_beside_the_tokenizer_is_found(model, tmp_path):
    """Where processors of Qwen2-VL and Gemma 3 keep it: chat_template.json."""
    folder = tmp_path / "model"
    small.tokenizer().save_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template: copy chat_template\.json"):
        pretrained.load_tokenizer(folder)
    (folder / pretrained.TEMPLATE).write_text(json.dumps({"chat_template": template}))
    assert pretrained.load_tokenizer(folder).chat_template == template
    with pytest.raises(ValueError, match="no tokenizer that can be read"):
        pretrained.load_tokenizer(tmp_path)


def test_pixel_bounds_are_the_folder_s_unless_given(model, tmp_path):
    found = pretrained.load_front_end(model, max_pixels=10**5)
    assert found.pixel_bounds == (56 * 56, 10**5)  # the released least one
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (56 * 56, 1280 * 28 * 28)
    del settings["min_pixels"], settings["max_pixels"]
    settings["size"] = {"shortest_edge": 784, "longest_edge": 7840}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (784, 7840)
    (tmp_path / "preprocessor_config.json").unlink()  # as transformers 5 saves it
    newer = {"image_processor": settings | {"size": {"longest_edge": 8000}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (56 * 56, 8000)


def test_pictures_of_one_size_have_no_bounds(tmp_path):
    config = family_of(gemma.spec()).config_from_spec(gemma.spec())
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = gemma.spec().vision.image
    assert pretrained.load_front_end(tmp_path).pixel_bounds == (size**2, size**2)
    with pytest.raises(ValueError, match="gemma3 all have one size: leave max_pixels"):
        pretrained.load_front_end(tmp_path, max_pixels=10**5)


def test_a_model_of_the_hub_is_found_in_its_cache(model, tmp_path, monkeypatch):
    cached = tmp_path / "models--someone--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = hub.local("someone/small")
    assert (found / "config.json").read_text() == (model / "config.json").read_text()
    assert hub.local(model) == model
    with pytest.raises(ValueError, match="hf download someone/large --local-dir"):
        hub.local("someone/large")
    with pytest.raises(ValueError, match=r"There is no model folder '\./nowhere'"):
        hub.local("./nowhere")
