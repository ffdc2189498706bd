"""The README's examples run, in order, and its tree tells the truth."""

import dataclasses
import re
from pathlib import Path

import jax

from vrl_jax.engine.desk import Limits
from vrl_jax.types import Likelihood

from .fixtures import small

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 3
    names = {}
    for example in examples:
        exec(example, names)
    # By hand: A = 1.5, -0.5, -0.5, -0.5; 40 % of 3, 2, 3, 1 tokens is 2, 1, 2, 1 of
    # them; all ratios are e^0.1, inside the clip; 9 tokens in all.
    expected = -(2 * 1.5 - 0.5 - 2 * 0.5 - 0.5) * 1.10517 / 9
    told = capsys.readouterr().out.strip()
    assert float(told) == round(expected, 4)
    assert f"# {told}\n" in examples[0]
    # The method of the second example is whole: its loss has all that it reads.
    rollout = small.scored([1.0, 0, 0, 0, 1, 1, 0, 0])
    mine = names["mine"]
    assert mine.act is not None and mine.score(None, rollout, None) is rollout
    batch, _ = mine.credit(rollout)
    same = lambda batch: Likelihood(batch.old_logprobs, batch.old_logprobs)
    mean, _ = mine.loss(same, batch)
    assert float(mean.total) == 0 and float(mean.weight) == 8
    assert batch.advantages[0, 0] == 0.625
    # The program of the third example is played, and its answers are one row.
    actor, seen = small.chain_actor(), []
    actor = dataclasses.replace(actor, observe=lambda group, _: seen.extend(group))
    roomy = small.with_room(actor.processor, prompt_tokens=(256,))
    judge = dataclasses.replace(actor, processor=roomy)
    recipe = names["looking"](judge, limits=Limits(row_tokens=120, pictures=3))
    pictures = [dataclasses.replace(s, images=(small.png(0, 56, 56),)) for s in rows()]
    rollout = recipe.act(actor, iter([pictures]), jax.random.key(0))
    assert len(seen) == len(rollout.tokens) == 8 * len(pictures)
    for episode in seen:
        first, second = episode.turns
        assert first.chosen and second.chosen and episode.facts["sound"] in (0, 1)
    held = rollout.mask.cumsum(axis=1)[:, -1]
    lengths = [sum(len(turn.tokens) for turn in episode.turns) for episode in seen]
    assert held.tolist() == lengths and (rollout.shown.slots > 0).any(axis=1).all()


def rows():
    return [dataclasses.replace(s, question="<image>it") for s in small.samples()[:2]]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_tree_names_every_package():
    tree = README.split("## The tree")[1].split("##")[0]
    packages = {path.parent.name for path in ROOT.glob("vrl_jax/*/__init__.py")}
    modules = {path.name for path in ROOT.glob("vrl_jax/*.py")} - {"__init__.py"}
    missing = {p for p in packages if f"{p}/" not in tree}
    missing |= {m for m in modules if m not in tree}
    assert not missing


def test_every_recipe_has_a_row():
    recipes = {path.stem for path in ROOT.glob("vrl_jax/recipes/*.py")} - {"__init__"}
    assert all(f"(vrl_jax/recipes/{recipe}.py)" in README for recipe in recipes)
