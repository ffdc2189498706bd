"""A model's folder and rows of one's own, as the scripts for them use both."""

import dataclasses
import inspect
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from transformers import AutoTokenizer

from vrl_jax import cli, finetuning
from vrl_jax.engine.processing import encode
from vrl_jax.models import hub, lora
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.recipes.grpo import grpo
from vrl_jax.training.choices import Choices
from vrl_jax.training.files import read_lines
from vrl_jax.training.learner import noted
from vrl_jax.training.trackers import nowhere
from vrl_jax.worlds.writing import write_parquet

from .fixtures import folders, small

BOUNDS = {"min_pixels": 28 * 28, "max_pixels": 20 * 28 * 28}
SIZES = finetuning.Sizes(
    steps=2,
    prompts=4,
    response_tokens=small.BUDGET,
    longest_prompt=40,
    learning_rate=1e-3,
    warmup_steps=1,  # the rate is a schedule, whose state a checkpoint has too
    test_rows=8,
    examples=2,
    **BOUNDS,
)
CHOICES = Choices(precision="float32", per_pass=4, slots=16)
ADAPTERS = CHOICES._replace(lora_rank=4, lora_alpha=16.0)
LONG = "row-long"
TOLD = []
"""What a log of one's own is told."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folders.model(tmp_path_factory.mktemp("hub") / "model")


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
            "log": lambda step, row: TOLD.append((step, row)),
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

    outcome = run()
    with pytest.MonkeyPatch.context() as patched:  # the report's curves take as long
        patched.setattr(finetuning, "write_report", lambda out: out / "report.html")
        yield outcome, out, run


def test_a_run_measures_before_and_after_and_leaves_every_file(trained):
    outcome, out, _ = trained
    assert [step for step, _ in TOLD] == [0, 1, 2]
    assert all("training/logprob_gap" in row for _, row in TOLD[1:])
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


@pytest.mark.parametrize(
    ("minibatches", "rates"),
    [(1, [0.5, 1, 1]), (2, [0.25, 0.5, 0.75, 1, 1, 1])],
)
def test_the_learning_rate_rises_over_steps(minibatches, rates):
    sizes = SIZES._replace(learning_rate=1.0, warmup_steps=2)
    rate = finetuning.learning_rate(sizes, CHOICES._replace(minibatches=minibatches))
    np.testing.assert_allclose([rate(n) for n in range(3 * minibatches)], rates)
    still = SIZES._replace(warmup_steps=0)
    assert finetuning.learning_rate(still, CHOICES) == SIZES.learning_rate
    once = SIZES._replace(learning_rate=1.0, warmup_steps=1)
    np.testing.assert_allclose(finetuning.learning_rate(once, CHOICES)(0), 1)


@pytest.mark.parametrize(
    ("decay", "warmup", "minibatches", "rates"),
    [
        ("linear", 0, 1, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, 1, [0.5, 1, 1, 0.5]),
        ("linear", 1, 2, [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", 0, 1, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        ("cosine", 1, 1, [1, 1, 0.75, 0.25]),
    ],
)
def test_the_learning_rate_falls_to_0_after_the_last_of_4_steps(
    decay, warmup, minibatches, rates
):
    sizes = SIZES._replace(steps=4, learning_rate=1.0, warmup_steps=warmup, decay=decay)
    rate = finetuning.learning_rate(sizes, CHOICES._replace(minibatches=minibatches))
    found = [rate(n) for n in range(4 * minibatches)]
    np.testing.assert_allclose(found, rates, rtol=1e-6)
    np.testing.assert_allclose(rate(4 * minibatches), 0, atol=1e-7)


def still(rate):
    """An optimiser that trains nothing and tells its rate."""
    return optax.chain(optax.set_to_zero(), noted(rate))


def test_an_optimiser_of_one_s_own_on_a_course_of_its_rate(trained, tmp_path):
    _, _, run = trained
    sizes = SIZES._replace(warmup_steps=0, decay="linear", examples=0)
    given = {"out": tmp_path / "run", "optimizer": still, "log": nowhere}
    outcome = run(sizes=sizes, **given)
    rates = [row["actor/lr"] for row in read_lines(given["out"] / "metrics.jsonl")]
    np.testing.assert_allclose(rates, [1e-3, 0.5e-3], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, outcome.actor.params, small.params())
    for changes, said in (
        ({"sizes": sizes._replace(steps=3)}, "decay_steps was 2 and is 3"),
        ({"sizes": sizes, "optimizer": None}, "optimizer was '.*still.*' and is None"),
    ):
        with pytest.raises(ValueError, match=said):
            run(**{**given, **changes})


def test_a_process_with_other_rows_is_told(model, rows, monkeypatch):
    """As if process 1 had not found the third row's picture."""
    monkeypatch.setattr(finetuning.processes, "gathered", lambda mine: [mine] * 2)
    read, _ = finetuning.read_rows(model, rows, SIZES)
    kept = read.fits[0].samples

    def gathered(mine):
        if isinstance(mine, list):
            return [mine, [*mine[:2], *mine[3:]]]
        return [mine, "another"]

    monkeypatch.setattr(finetuning.processes, "gathered", gathered)
    said = rf"process 1 has other rows.* row 2, is another and not {kept[2].id} \("
    with pytest.raises(ValueError, match=said):
        finetuning.read_rows(model, rows, SIZES)


def test_fewer_rows_than_a_step_takes_are_told(trained, tmp_path):
    """9 rows, of which one is too long."""
    _, _, run = trained
    said = "--prompts 9 different rows, and 8 of .* Give --prompts 8 or fewer"
    with pytest.raises(ValueError, match=said):
        run(sizes=SIZES._replace(prompts=9), out=tmp_path)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"warmup_steps": -1}])
def test_sizes_that_cannot_be_are_told(trained, wrong, tmp_path):
    _, _, run = trained
    with pytest.raises(ValueError, match="--temperature must be above 0"):
        run(sizes=SIZES._replace(**wrong), out=tmp_path)


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


@pytest.mark.proof
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


@pytest.fixture(scope="module")
def adapted(trained, tmp_path_factory):
    _, _, run = trained
    out = tmp_path_factory.mktemp("runs") / "adapted"
    sizes = SIZES._replace(checkpoint_every=1)
    return run(choices=ADAPTERS, sizes=sizes, out=out, log=nowhere), out


def test_adapters_alone_are_trained_and_merged_into_the_policy(adapted, model):
    outcome, out = adapted
    _, begun = hub.load(model)
    _, params = hub.load(outcome.policy)
    jax.tree.map(np.testing.assert_array_equal, params, outcome.actor.params)
    held = lora.load(out / "adapters", parameter_table(small.spec()))
    merged = lora.merge(begun, held)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    before, after, adapters = (
        flatten_dict(tree, sep="/") for tree in (begun, params, held.adapters)
    )
    moved = {path for path in after if (after[path] != before[path]).any()}
    assert moved == {path for path in adapters}
    assert moved == {
        path for path in after if path[:11] == "text/layers" and path[-6:] == "kernel"
    }
    config = json.loads((out / "adapters" / lora.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 16)
    assert config["base_model_name_or_path"] == str(model)


def test_adapters_go_on_with_the_same_bits(adapted, trained, tmp_path, capsys):
    """From what was saved after the first step."""
    outcome, whole = adapted
    _, _, run = trained
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "global_step_2")
    again = run(choices=ADAPTERS, out=out, log=nowhere)
    assert "after step 1" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, again.actor.params, outcome.actor.params
    )
    one, other = ((x / "metrics.jsonl").read_bytes() for x in (out, whole))
    assert one == other


def test_a_checkpoint_of_adapters_is_exported_as_the_run_did(
    adapted, trained, tmp_path, capsys
):
    outcome, out = adapted
    made = tmp_path / "made"
    asked = ["--out", str(made), "--adapters", str(tmp_path / "adapters")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(out), *asked])
    assert ended.value.code == 0
    name = "model.safetensors"
    assert (made / name).read_bytes() == (outcome.policy / name).read_bytes()
    for name in (lora.CONFIG, lora.WEIGHTS):
        theirs, ours = (x / "adapters" / name for x in (out, tmp_path))
        assert theirs.read_bytes() == ours.read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["export", str(trained[1]), *asked])
    assert "leave --adapters out" in capsys.readouterr().err


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
        ({"choices": CHOICES._replace(lora_rank=4)}, "lora_rank was 0 and is 4"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"choices": CHOICES._replace(minibatches=3)},
            "4 prompts in 4 packs do not make 3",
        ),
        (
            {
                "sizes": SIZES._replace(prompts_per_pack=2),
                "choices": CHOICES._replace(minibatches=4),
            },
            "4 prompts in 2 packs do not make 4",
        ),
        (
            {"choices": CHOICES._replace(remat="some")},
            "there is no remat 'some'",
        ),
        ({"choices": CHOICES._replace(slots=0)}, "slots must be at least 1, got 0"),
        ({"kl_weight": 0.1}, "--reference device or host"),
        ({"sizes": SIZES._replace(steps=0)}, "at least 1 step, got --steps 0"),
        ({"choices": CHOICES._replace(fsdp=3)}, "needs 3 devices, and there are 8"),
        ({"sizes": SIZES._replace(decay="slow")}, "there is no --decay 'slow'"),
        (
            {"sizes": SIZES._replace(decay="cosine", warmup_steps=2)},
            "--warmup-steps 2 of --steps 2 leave none for --decay cosine",
        ),
        (
            {"choices": CHOICES._replace(moments="bfloat16"), "optimizer": still},
            "--moments bfloat16 is of AdamW's",
        ),
        ({"sizes": SIZES._replace(longest_prompt=3)}, "No sample can be used"),
        ({"sizes": SIZES._replace(min_pixels=10**6)}, "is more than max_pixels"),
    ],
)
def test_wrong_choices_are_refused_by_name(trained, tmp_path, changes, message):
    _, _, run = trained
    with pytest.raises(ValueError, match=message):
        run(out=tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("kind", "flags", "dense"),
    [
        ("cpu", "", False),
        ("NVIDIA H200", "", False),
        ("TPU v5", "", False),
        ("TPU v5 lite", "", True),
        ("TPU v6 lite", "--xla_tpu_enable_ragged_dot_kernel=true", False),
    ],
)
def test_tpus_that_want_a_flag_for_experts_are_told(kind, flags, dense, monkeypatch):
    device = types.SimpleNamespace(device_kind=kind)
    monkeypatch.setattr(finetuning.jax, "devices", lambda: [device])
    monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
    assert finetuning._multiplies_densely() == dense
