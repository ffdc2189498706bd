"""A released model and a critic of its states, trained together: PPO on one's own rows.

The run is in bfloat16 with stochastic rounding: what is rounded is the policy alone.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from vrl_jax import cli, divergences, finetuning
from vrl_jax.engine.reference import measured_by
from vrl_jax.models import hub, lora
from vrl_jax.models.critic import linear, mlp, with_critics
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.trained import also, critic
from vrl_jax.recipes.ppo import ppo
from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices
from vrl_jax.training.files import read_lines
from vrl_jax.training.learner import adamw
from vrl_jax.worlds.writing import write_parquet

from .fixtures import folders, small, toy

RATE, CRITIC_RATE = 1e-4, 1e-2
SIZES = finetuning.Sizes(
    steps=2,
    prompts=2,
    response_tokens=small.BUDGET,
    learning_rate=RATE,
    warmup_steps=2,  # both rates rise
    evaluate_every=0,
    test_rows=2,
    checkpoint_every=1,
    examples=0,
    min_pixels=28 * 28,
    max_pixels=20 * 28 * 28,
)
CHOICES = Choices(
    precision="bfloat16_stochastic", per_pass=2, slots=4, reference="device"
)
ADAPTERS = CHOICES._replace(precision="bfloat16_master", lora_rank=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """PPO of the small model in a folder; no report, whose curves take as long."""
    model = folders.model(tmp_path_factory.mktemp("hub") / "model")
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    one = small.samples()[0]  # prompts of one size: a program of each kind
    write_parquet([dataclasses.replace(one, id=f"row-{n}") for n in range(4)], file)

    def run(out, **changes):
        given = {
            "sizes": SIZES,
            "choices": CHOICES,
            "critics": {"value": mlp},
            "critic_learning_rate": CRITIC_RATE,
        }
        return finetuning.finetune(
            lambda anchor: ppo(
                group_size=2, anchor=measured_by(divergences.k1, anchor)
            ),
            name="PPO",
            claim="It runs.",
            settings={"group": 2},
            model=str(model),
            rows=finetuning.Rows(file, file, "What?"),
            reward=small.even_reward,
            out=out,
            seed=0,
            kl_weight=0.1,
            **{**given, **changes},
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetuning, "write_report", lambda out: out / "report.html")
        yield run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return run(out), out


@pytest.mark.proof
def test_policy_and_critic_are_trained_each_at_its_rate(trained):
    _, out = trained
    first, second = read_lines(out / "metrics.jsonl")
    for name, rate in (("actor/lr", RATE), ("critic/lr", CRITIC_RATE)):
        found = [first[name], second[name]]
        np.testing.assert_allclose(found, [rate / 2, rate], rtol=1e-6)
    assert first["training/skipped"] == second["training/skipped"] == 0
    assert first["critic/kl_coef"] == pytest.approx(0.1)
    # The reference is the policy as it was, of which k1 is what ppo_kl is.
    assert first["critic/kl"] == pytest.approx(first["actor/ppo_kl"], abs=1e-6)
    assert second["critic/kl"] != pytest.approx(second["actor/ppo_kl"], abs=1e-6)
    settings = json.loads((out / "config.json").read_text())
    assert settings["critic_learning_rate"] == CRITIC_RATE
    assert "critic.mlp_init" in settings["critics"]["value"][0]


@pytest.mark.proof
def test_the_policy_is_rounded_at_random_and_the_critic_not_at_all(trained):
    outcome, _ = trained
    params = dict(outcome.actor.params)
    own = params.pop("critic")["value"]
    begun = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small.params())
    before, after = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (begun, params)
    )
    assert before.dtype == after.dtype == jnp.bfloat16
    # Two steps of at most RATE, of numbers whose unit is 2^-10 or more: rounded to the
    # nearest they would all stay.
    large = np.abs(before.astype(np.float32)) > 0.25
    assert 0.01 < (before != after)[large].mean() < 0.3
    for name, leaf in flatten_dict(own, sep="/").items():
        assert leaf.dtype == jnp.float32
        assert (leaf != leaf.astype(jnp.bfloat16)).any(), name


@pytest.mark.proof
def test_the_folder_holds_the_policy_alone(trained, tmp_path, capsys):
    outcome, out = trained
    _, params = hub.load(outcome.policy, dtype=jnp.bfloat16)
    policy = {name: x for name, x in outcome.actor.params.items() if name != "critic"}
    jax.tree.map(np.testing.assert_array_equal, params, policy)
    made = tmp_path / "made"
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(out), "--out", str(made)])
    assert ended.value.code == 0 and "after step 2" in capsys.readouterr().out
    for name in ("model.safetensors", "config.json"):
        assert (made / name).read_bytes() == (outcome.policy / name).read_bytes()


@pytest.mark.proof
def test_a_run_goes_on_with_the_same_bits(trained, run, tmp_path, capsys):
    """From what was saved after the first step."""
    outcome, whole = trained
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "global_step_2")
    again = run(out)
    assert "after step 1" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, again.actor.params, outcome.actor.params
    )
    one, other = ((x / "metrics.jsonl").read_bytes() for x in (out, whole))
    assert one == other


@pytest.mark.proof
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"critics": {"value": linear}}, "critics was .*mlp_init.* and is .*linear_"),
        ({"critic_learning_rate": 0.1}, r"critic_learning_rate was 0\.01 and is 0\.1"),
        ({"critics": None}, "is of another model or optimiser"),
    ],
)
def test_another_critic_in_the_same_folder_is_refused(trained, run, changes, said):
    _, out = trained
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=said):
        run(out, **changes)
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.proof
def test_adapters_and_a_critic(run, tmp_path):
    """A step; then what is exported of the checkpoint is what the run left."""
    out = tmp_path / "run"
    outcome = run(out, choices=ADAPTERS, sizes=SIZES._replace(steps=1))
    held = lora.load(out / "adapters", parameter_table(small.spec()))
    assert all(pair.b.any() for pair in flatten_dict(held.adapters).values())
    params = dict(outcome.actor.params)
    assert params.pop("critic")["value"]["last"]["bias"] != 0
    begun = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small.params())
    merged = lora.merge(begun, held)
    jax.tree.map(np.testing.assert_array_equal, params, merged)
    made = {"--out": tmp_path / "policy", "--adapters": tmp_path / "adapters"}
    flags = [str(word) for pair in made.items() for word in pair]
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(out), *flags])
    assert ended.value.code == 0
    for name in (f"adapters/{lora.WEIGHTS}", "policy/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    "choices",
    [
        Choices(tower="frozen"),
        Choices(precision="bfloat16_stochastic", tower="frozen"),
        Choices(lora_rank=2),
    ],
    ids=chosen.flags,
)
def test_a_critic_steps_as_if_alone_whatever_else_is_trained(choices):
    """At its own rate, its gradient clipped by its own norm, in float32."""
    table, key = parameter_table(small.spec()), jax.random.key(0)
    params = init_params(key, table, chosen.dtype(choices))
    _, own = with_critics(toy.POLICY, toy.params(), key, {"value": mlp})
    params["critic"] = own["critic"]
    trained = also(critic, chosen.trains(choices, table, key))(params).trained
    optimizer = chosen.optimizer(choices, 1.0, key, critic_rate=CRITIC_RATE)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 3.0), trained)
    updates, _ = optimizer.update(grads, optimizer.init(trained), trained)
    alone, begun = adamw(CRITIC_RATE), trained[0]
    wanted, _ = alone.update(grads[0], alone.init(begun), begun)
    jax.tree.map(np.testing.assert_array_equal, updates[0], wanted)
    stepped = optax.apply_updates(trained, updates)
    for before, after in zip(*map(jax.tree.leaves, (trained, stepped)), strict=True):
        assert before.dtype == after.dtype and (before != after).all()
    assert stepped[0]["critic"]["value"]["last"]["kernel"].dtype == jnp.float32


def test_without_critics_the_settings_are_those_of_older_folders(run, tmp_path):
    """They are kept before the recipe asks for the critic that there is not."""
    with pytest.raises(ValueError, match="no critic 'value'"):
        run(tmp_path, critics=None)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert not [name for name in kept if "critic" in name]
