"""A plan against what can be measured here: 8 simulated devices and a tiny model."""

import dataclasses
import functools
import json
import math
import multiprocessing
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import pytest

from tests.fixtures import gemma, small, talks
from tests.fixtures.plans import HERE, SIZES, fake, method, request
from vrl_jax import cli
from vrl_jax.engine import slots
from vrl_jax.engine.desk import Limits
from vrl_jax.models.critic import linear
from vrl_jax.models.experts import mixture
from vrl_jax.models.families import family_of
from vrl_jax.models.parameters import init_params
from vrl_jax.models.remat import REMATS
from vrl_jax.models.sharding import make_mesh, spread
from vrl_jax.planning import compiling, hlo
from vrl_jax.planning.chips import CHIPS, rate, topology
from vrl_jax.planning.compiling import Request, compiled_here, counted
from vrl_jax.planning.plan import as_json, bound, page, plan, step_seconds
from vrl_jax.planning.shapes import Sizes, bytes_of, rollout_of
from vrl_jax.planning.work import matmul_flops
from vrl_jax.programs.acting import act
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.ppo import ppo
from vrl_jax.training.choices import Choices
from vrl_jax.training.learner import adamw, make_learner
from vrl_jax.training.precision import precision


@functools.cache
def planned():
    mesh = make_mesh(fsdp=4, tensor=2)
    return compiling.plan_of(request(), mesh), mesh


def test_held_bytes_are_those_of_real_arrays():
    """Parameters and optimiser of a learner that was made on the mesh."""
    found, mesh = planned()
    spec, chosen = small.spec(), precision("bfloat16_master")
    table = family_of(spec).parameter_table(spec)
    with jax.set_mesh(mesh):
        params = spread(init_params(jax.random.key(0), table, chosen.dtype), table)
        learner = make_learner(
            family_of(spec).policy(spec, REMATS["nothing"]),
            params,
            adamw(1e-6),
            jnp.ones(spec.text.vocabulary, bool),
            trains=chosen.trains,
        )

    def on_one(tree):
        device = jax.devices()[3]
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == device
        )

    assert found.held == {
        "parameters": on_one(learner.trained),
        "optimiser": on_one(learner.opt_state),
        "sampling copy": on_one(params),
        "reference": 0,
    }


def test_frozen_models_are_held_besides():
    """Of two families: a reader like the policy, and a Gemma 3 of any size."""
    found, mesh = planned()
    table = family_of(gemma.spec()).parameter_table(gemma.spec())
    with jax.set_mesh(mesh):
        other = spread(init_params(jax.random.key(0), table, jnp.bfloat16), table)
    asked = request()._replace(frozen=(small.spec(), gemma.spec()))
    held = compiling.plan_of(asked, mesh).held
    both = found.held["sampling copy"] + bytes_of(other)
    assert held == {**found.held, "frozen models": both}


def test_what_is_written_from_lies_as_sampling_lays_it():
    found, mesh = planned()
    spec = small.spec()
    policy = family_of(spec).policy(spec, REMATS["nothing"])
    table = family_of(spec).parameter_table(spec)
    with jax.set_mesh(mesh):
        params = spread(init_params(jax.random.key(0), table, jnp.bfloat16), table)
        weights = slots.unstack(policy, params)
    there = found.programs["decode"].arguments[0]
    assert jax.tree.structure(there) == jax.tree.structure(weights)
    for real, planned_for in zip(
        jax.tree.leaves(weights), jax.tree.leaves(there), strict=True
    ):
        assert (real.shape, real.dtype) == (planned_for.shape, planned_for.dtype)
        assert real.sharding.is_equivalent_to(planned_for.sharding, real.ndim)


def test_compiled_arguments_and_peak_are_those_of_the_compiler():
    found, mesh = planned()
    one = compiled_here("prefill", found, mesh)
    program = found.programs["prefill"]
    with jax.set_mesh(mesh):
        compiled = program.function.lower(*program.static, *program.arguments).compile()
    memory = compiled.memory_analysis()
    # It drops what prefill does not read: where patches come from.
    unread = bytes_of(program.arguments[1].images.origins)
    assert one.arguments - unread == memory.argument_size_in_bytes
    parts = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
    )
    assert one.total == sum(parts)  # nothing is donated
    # Parameters lie spread and are gathered, heads and widths are summed up.
    kinds = {kind for kind, _ in one.traffic}
    assert {"all-gather", "all-reduce"} <= kinds
    groups = {group for _, group in one.traffic}
    assert groups <= {2, 4, 8}


def resident(kind):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\s+(\d+)", status)[1])


@pytest.mark.proof
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="Linux")
def test_compiled_peak_is_what_a_process_takes():
    """What an update needs beside its arguments, as the kernel saw them: within 20 %.

    Libraries' own buffers come on top. On a GPU: benchmarks/plan_on_gpu.py.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    sizes = Sizes(8, group=4, prompt_tokens=128, response_tokens=256, patches=64)
    choices = Choices(per_pass=8, slots=32)
    asked = Request(small.spec(), method, sizes, choices, HERE)
    found = compiling.plan_of(asked, mesh)
    planned_for = compiled_here("update", found, mesh)
    program = found.programs["update"]
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.static, *program.arguments)
        compiled = traced.lower().compile()

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.arguments)

    taken = []
    for _ in range(3):  # what libraries keep from before makes some runs look larger
        given = jax.block_until_ready(zeros())
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now
        before = resident("VmRSS")
        jax.block_until_ready(compiled(*given))
        taken.append(resident("VmHWM") - before)
    extra = planned_for.total - planned_for.arguments
    assert 0.95 * extra < min(taken) < 1.2 * extra
    assert extra > 1e8


def test_work_is_what_the_compiler_counts():
    """Within 5 %: the compiler also counts norms, softmax and activations."""
    spec = small.spec()
    wide = dataclasses.replace(
        spec,
        text=dataclasses.replace(
            spec.text,
            layers=1,  # the compiler counts the body of a loop once
            width=256,
            mlp=1024,
            heads=2,
            kv_heads=1,
            rope_sections=(16, 24, 24),
        ),
    )
    family = family_of(wide)
    sizes = SIZES._replace(prompts=1, prompt_tokens=128, patches=0)
    mesh = make_mesh(devices=jax.devices()[:1])
    asked = Request(wide, method, sizes, Choices(per_pass=1, slots=2), HERE)
    program = compiling.plan_of(asked, mesh).programs["prefill"]
    traced = program.function.trace(*program.static, *program.arguments)
    ours = matmul_flops(traced.jaxpr)
    theirs = traced.lower().compile().cost_analysis()["flops"]
    assert ours < theirs < 1.05 * ours
    # And by hand: 2 N tokens, and two products of attention.
    rows = family.parameter_table(wide)
    matrices = sum(
        math.prod(row.shape)
        for row in rows
        if row.path.startswith("text/layers") and row.path.endswith("kernel")
    )
    assert ours == 2 * 128 * matrices + 4 * 2 * 128 * 128 * 128


def test_work_of_loops_choices_and_shares():
    mesh = make_mesh(data=8)

    def program(x):
        def twice(y, _):
            return jax.lax.cond(y[0, 0] > 0, lambda: y @ y @ y, lambda: y @ y), None

        y, _ = jax.lax.scan(twice, x, None, length=5)
        y = jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ y, y)
        spec = jax.sharding.PartitionSpec("data")
        return jax.shard_map(lambda y: y.T @ y, in_specs=spec, out_specs=spec)(y)

    with jax.set_mesh(mesh):
        traced = jax.jit(program).trace(jnp.ones((8, 8)))
    one = 2 * 8**3
    # Each of the 8 devices has one row: 8 x 1 x 8 products.
    assert matmul_flops(traced.jaxpr, steps=7) == 5 * 2 * one + 7 * one + one


def test_work_of_experts_is_that_of_the_rows_that_they_get():
    """7 tokens to 2 of 4 experts of 8 x 3 each; the gradient costs twice that again."""
    shapes = {"router": (4, 8), "gate": (4, 8, 3), "up": (4, 8, 3), "down": (4, 3, 8)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}

    def loss(params, x):
        return mixture(params, x, chosen=2).sum()

    flops = lambda f: matmul_flops(jax.jit(f).trace(params, jnp.ones((7, 8))).jaxpr)
    router, mixing, experts = 2 * 7 * 8 * 4, 2 * 7 * 2 * 8, 3 * 2 * 7 * 2 * 8 * 3
    assert flops(loss) == router + mixing + experts
    assert flops(jax.grad(loss, (0, 1))) == 3 * flops(loss)


TEXT = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(f32[] %a, f32[] %b)
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %g = bf16[8,16]{1,0} all-gather(%x), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %t = (s32[], bf16[8,16]) tuple(%i, %g)
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %constant.7), direction=LT
}

%neighbours (p: (bf16[4], u32[], s32[])) -> (bf16[4], u32[], s32[]) {
  %two = u32[]{:T(128)} constant(2)
  %one = s32[] constant(1)
  %n = u32[]{:T(128)} get-tuple-element(%p), index=1
  %sent = bf16[4]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  %again = bf16[4]{0} collective-permute(%sent), source_target_pairs={{0,1},{1,0}}
  %next = u32[] add(%n, %two)
  %other = s32[] add(%m, %one)
  ROOT %t.4 = (bf16[4]{0}, u32[]{:T(128)}, /*index=2*/s32[]) tuple(%again, %next, /*index=2*/%other)
}

%pieces (p: (bf16[4], u32[], s32[])) -> pred[] {
  %constant.8 = u32[]{:T(128)} constant(7)
  %at = u32[]{:T(128)} get-tuple-element(%p), index=1, metadata={op_name="jit(f)"}
  ROOT %lt.3 = pred[] compare(%at, %constant.8), direction=LT
}

%tokens (p: (s32[], s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%i, %most), direction=LT
}

%step (p: (s32[], s32[])) -> (s32[], s32[]) {
  %r = f32[10]{0} all-reduce(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %t.2 = (s32[], s32[]) tuple(%i, %j)
}

%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {
  %r.2 = f32[16]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%sum
  ROOT %s = f32[4] dynamic-slice(%r.2, %i)
}

ENTRY %main (p: bf16[8,16]) -> bf16[8,16] {
  %w = (s32[], bf16[8,16]) while(%t), condition=%condition, body=%body
  %w.2 = (s32[], s32[]) while(%t.3), condition=%tokens, body=%step
  %w.3 = (bf16[4], u32[], s32[]) while(%t.5), condition=%pieces, body=%neighbours
  %f = f32[4] fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %c = (f32[6], f32[6], u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}
  %d = f32[6] collective-permute-done(%c)
  %a = (bf16[4]{0}, bf16[32]{0}) all-gather-start(%v), replica_groups={}, dimensions={0}
  ROOT %e = bf16[32] all-gather-done(%a)
}
"""  # noqa: E501


def test_traffic_is_read_from_text():
    assert hlo.traffic(TEXT, devices=8, steps=3) == {
        ("all-gather", 2): 5 * 8 * 16 * 2 / 2,
        ("all-reduce", 4): 3 * 2 * 40 * 3 / 4,
        ("reduce-scatter", 4): 64 * 3 / 4,
        ("collective-permute", 2): 24 + 4 * 2 * 8,
        ("all-gather", 8): 64 * 7 / 8,
    }


def test_topologies():
    assert topology("v5p:4x4x4").devices == 64
    assert topology("v5e:4x4").name == "v5e:4x4"
    assert topology("v5p:2x2").name == "v5p:2x2x1"
    assert (topology("v7x:2x2x1").devices, topology("v7x:2x2x1").name) == (
        8,
        "tpu7x:2x2x1",
    )
    for wrong in ("v5p", "v9:2x2", "v5e:2x2x2", "v5e:0x4", "v5e:axb"):
        with pytest.raises(ValueError, match="a topology is a chip"):
            topology(wrong)


def test_a_collective_over_more_axes_is_faster():
    cube = topology("v5p:4x4x4")
    each = CHIPS["v5p"].network / 6
    assert [rate(cube, group) for group in (2, 4, 8, 16, 64)] == [
        each,
        each,
        2 * each,
        2 * each,
        3 * each,
    ]


def test_bounds_add_up_and_the_longest_binds():
    found = plan(request(), compile=fake)
    one = found.found[0]
    limits = bound(one, HERE)
    assert limits.compute == pytest.approx(3.0)
    assert limits.memory == pytest.approx((1000 + 4e9) / 1e11, rel=1e-3)
    assert limits.network == pytest.approx(1e9 / 5e9)
    assert limits.binds == "compute" and limits.seconds == limits.compute
    assert step_seconds(found) == pytest.approx(4 * 2 * 3.0)
    values = json.loads(json.dumps(as_json(found)))
    assert values["programs"]["update"]["sent_bytes"] == {"all-gather": 1e9}
    assert values["peak_bytes"] == max(found.peaks.values())
    assert "DOES NOT FIT" in page(found)


def test_prompts_are_read_beside_the_slots_that_are_written():
    found = plan(request(), compile=fake)
    prefill = next(one for one in found.found if one.name == "prefill")
    assert prefill.runs > 1 and found.caches["slots"] > 0 < found.caches["layers"]
    held = sum(found.held.values())
    new = prefill.total - prefill.shared
    beside = found.caches["slots"] + found.caches["layers"]
    assert found.peaks["prefill"] == held + beside + new
    alone = found._replace(found=(prefill._replace(runs=1),))
    assert alone.peak == held + new


def test_a_method_that_scores_nothing_runs_no_scoring():
    alone = request()._replace(recipe=lambda reference: grpo(group_size=2))
    names = [one.name for one in plan(alone).found]
    assert names == ["update", "prefill", "decode"]
    assert "scoring" in [one.name for one in plan(request()).found]  # VPPO's


def test_pictures_between_turns_are_planned_as_they_are_played():
    """The tables of a real rollout, and what is read on while slots are written."""
    actor = small.actor()
    sizes = Sizes(len(small.samples()), 2, 56, 48, patches=32, pictures=1)
    rollout = act(
        actor,
        iter([small.samples()]),
        jax.random.key(0),
        program=talks.look_again,
        group_size=sizes.group,
        limits=Limits(row_tokens=sizes.response_tokens, pictures=sizes.pictures),
    )
    found = rollout_of(actor.processor.front_end, sizes)
    for name in ("tokens", "shown"):
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), getattr(rollout, name))
        assert shapes == jax.tree.map(
            lambda x: (x.shape, x.dtype), getattr(found, name)
        )

    sizes = SIZES._replace(pictures=2)
    one = request()._replace(sizes=sizes)
    with_pictures, without = plan(one), plan(request())
    more = {one.name: one for one in with_pictures.found}
    fewer = {one.name: one for one in without.found}
    assert more["update"].flops > fewer["update"].flops
    assert more.keys() - fewer.keys() == {"between turns"}
    between = more["between turns"]
    programs = compiling.plan_of(one, make_mesh(fsdp=4, tensor=2)).programs
    _, kept, lengths, prompts = programs["between turns"].arguments
    # 2 pictures behind each of 16 responses, a quarter of the 16 slots at a time.
    assert (len(lengths), between.runs) == (4, 8)
    columns = {x.shape[2] for x in jax.tree.leaves(kept.columns)}
    assert columns == {sizes.prompt_tokens + sizes.response_tokens}
    assert prompts.tokens.shape == (len(lengths), sizes.prompt_tokens)
    held = sum(with_pictures.held.values())
    beside = sum(with_pictures.caches[x] for x in ("prompts", "slots", "layers"))
    new = max(between.total, between.arguments) - between.shared
    assert with_pictures.peaks["between turns"] == held + beside + new


def test_what_a_compiler_wrote_before_it_ended_is_read(tmp_path):
    """Though nobody looked while it was at work; not what a broken one left."""

    class Ended:
        exitcode = 0

        def is_alive(self):
            return False

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    (tmp_path / f"a{compiling.REPORT}").write_text("Total bytes: 12\n")
    (tmp_path / f"a{compiling.TEXT}").write_text("HloModule")
    until = time.perf_counter() + 60
    assert compiling._written(tmp_path, ours, Ended(), until) == (12, "HloModule")
    Ended.exitcode = -9
    with pytest.raises(RuntimeError, match="ended with code -9"):
        compiling._written(tmp_path, ours, Ended(), until)


def test_analytic_plan_says_what_it_is():
    found = plan(request())
    assert "analytic: nothing was compiled" in page(found)
    assert as_json(found)["programs"]["update"]["sent_bytes"] is None
    shared = counted("update", *planned())[0].shared
    held = found.held
    assert (
        shared
        == held["parameters"] + held["optimiser"] + 8 + small.spec().text.vocabulary
    )


def test_named_choices_change_what_is_held_or_gathered():
    mesh = make_mesh(fsdp=4, tensor=2)

    def held(**choices):
        return compiling.plan_of(request(**choices), mesh).held

    first = planned()[0].held
    copy = first["sampling copy"]  # bfloat16 of all parameters
    assert first["parameters"] == 2 * copy
    half = held(moments="bfloat16")["optimiser"]
    assert first["optimiser"] - half == copy
    stochastic = held(precision="bfloat16_stochastic")
    assert stochastic["parameters"] == copy and stochastic["sampling copy"] == 0
    frozen = held(tower="frozen")
    assert frozen["optimiser"] < first["optimiser"]
    assert frozen["parameters"] < first["parameters"]
    adapted = held(lora_rank=2)
    assert adapted["sampling copy"] == copy  # what the adapters are merged into
    adapters = adapted["parameters"] - copy
    # Both moments, whole on every device as the adapters are, and some counts.
    assert 0 <= adapted["optimiser"] - 2 * (adapters - 4) < 32
    assert held(lora_rank=4)["parameters"] - copy - 4 == 2 * (adapters - 4)
    assert held(reference="device")["reference"] == copy
    assert held(reference="host")["reference"] == 0

    gathered = compiling.plan_of(request(sampling="gathered"), mesh)
    # What is written from is a copy of the decoder alone, whole along fsdp, still
    # spread over tensor.
    layers, whole = planned()[0].caches["layers"], gathered.caches["layers"]
    assert layers < whole < 4 * layers
    assert whole == bytes_of(gathered.programs["decode"].arguments[0])
    assert gathered.programs["prefill"].shared == copy  # read from params as they lie
    gather = gathered.programs["gather"]
    spread = bytes_of(gather.arguments)  # the largest, on one device
    # What is gathered grows to four times its size: by whole - layers.
    assert gather.runs == math.ceil((whole - layers) / 3 / spread) > 1
    asked = request(sampling="gathered")
    found = plan(asked, compile=fake)
    beside = sum(found.caches[name] for name in ("prompts", "layers", "spread layers"))
    new = fake(asked, "gather").total
    assert found.peaks["gather"] == sum(found.held.values()) + beside + new
    sent = compiled_here("gather", gathered, mesh).traffic
    # CPUs gather bfloat16 as float32.
    assert sent[("all-gather", 4)] == pytest.approx(2 * 3 * spread)


@pytest.mark.parametrize("precision", ["bfloat16_master", "bfloat16_stochastic"])
def test_a_critic_is_held_beside_what_is_trained(precision):
    """Two kernels, two biases: in float32, whole on each device, with both moments."""
    mesh = make_mesh(fsdp=4, tensor=2)
    plain = request(precision=precision)
    asked = plain._replace(
        recipe=lambda reference: ppo(group_size=2), critics={"value": linear}
    )
    found, before = (compiling.plan_of(one, mesh) for one in (asked, plain))
    size = 4 * (small.spec().text.width + 1)
    assert found.held["parameters"] == before.held["parameters"] + size
    moments = found.held["optimiser"] - before.held["optimiser"] - 2 * size
    assert 0 <= moments < 32  # and some counts
    assert (found.held["sampling copy"] > 0) == (precision == "bfloat16_master")
    assert "scoring" in found.programs  # what the critic says
    for name in found.programs:
        counted(name, found, mesh)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(("plan", *arguments))
    return ended.value.code


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "qwen9", "--topology", "v5e:2x2"), "there is no model 'qwen9'"),
        (("--model", "qwen2.5-vl-3b", "--topology", "v5e"), "a topology is a chip"),
        (
            (
                "--model",
                "qwen2.5-vl-3b",
                "--topology",
                "v5e:2x2",
                "--reference",
                "host",
            ),
            "vppo has no reference",
        ),
        (
            ("--model", "qwen2.5-vl-3b", "--topology", "v5e:2x2", "--minibatches", "3"),
            "do not make 3 equal minibatches",
        ),
        (
            ("--model", "qwen2.5-vl-3b", "--topology", "v5e:2x2", "--mesh", "fsdp=3"),
            "is not the 4 devices",
        ),
        (
            (
                *("--model", "qwen2.5-vl-3b", "--topology", "v5e:2x2"),
                *("--lora-rank", "8", "--precision", "bfloat16_stochastic"),
            ),
            "adapters are float32",
        ),
    ],
)
def test_wrong_flags_are_one_line(flags, said, capsys):
    assert run(*flags) == 2
    assert said in capsys.readouterr().err
