"""`vrl-jax export`: a checkpoint of a run as a Hugging Face folder."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro

from vrl_jax.engine.pretrained import load_front_end
from vrl_jax.models import hub, lora
from vrl_jax.models.families import family_of
from vrl_jax.training import checkpoint
from vrl_jax.training import choices as chosen
from vrl_jax.training.choices import Choices
from vrl_jax.training.learner import Learner, make_learner


def export(
    run: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    step: int | None = None,
    best: bool = False,
    adapters: Path | None = None,
) -> int:
    """Writes the policy of a checkpoint as a Hugging Face folder.

    It is read into the host's memory, whatever devices the run had; the optimiser's
    state, which is most of a checkpoint, and critics are not read.

    Args:
        run: the folder of a run that trained a released model, ended or not.
        out: the folder to write.
        step: which checkpoint; by default the newest.
        best: the one that measured best.
        adapters: of a run with --lora-rank, the folder to write its adapters to, for
            PEFT; --out has the model that they are merged into.
    """
    file = run / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    if not {"model", *chosen.KEPT} <= settings.keys():
        raise ValueError(
            f"{run} is not the run of a script that trains a released model: there is "
            "no config.json that names one. Scripts of the tiny policy export it "
            "themselves, when they end, as the run's policy/."
        )
    choices = Choices(**{name: settings[name] for name in chosen.KEPT})
    if adapters and not choices.lora_rank:
        raise ValueError(
            f"{run} trained the parameters themselves, without --lora-rank: leave "
            "--adapters out."
        )
    folder = hub.local(settings["model"])
    bounds = {name: settings[name] for name in ("min_pixels", "max_pixels")}
    front_end = load_front_end(folder, **bounds)
    spec = front_end.spec
    family = family_of(spec)
    table, key = family.parameter_table(spec), jax.random.key(0)

    def start(stage: int) -> Learner:
        _, params = hub.load(folder, dtype=chosen.dtype(choices))
        return make_learner(
            family.policy(spec),
            params,
            optax.identity(),
            jnp.ones(spec.text.vocabulary, bool),
            trains=chosen.trains(choices, table, key),
        )

    host = jax.local_devices(backend="cpu")[0]
    with checkpoint.open_manager(run) as manager, jax.default_device(host):
        known = sorted(manager.all_steps())
        newest = known[-1] if known else None
        wanted = manager.best_step() if best else newest if step is None else step
        if wanted not in known:
            raise ValueError(
                f"{run} has no checkpoint of step {wanted}; it has those of "
                f"{', '.join(map(str, known)) or 'no step'}."
            )
        part = "trained.1." if settings.get("critics") else "trained."
        learner = checkpoint.read_trained(manager, run, wanted, start, part=part)
        params = learner.params
    bounds = front_end.pixel_bounds
    hub.save(out, spec, params, copy_from=folder, pixel_bounds=bounds)
    if adapters:
        held = chosen.adapters(choices, learner.trained)
        lora.save(adapters, held, table, base=settings["model"])
    print(f"{out}: the policy after step {wanted}")
    return 0
