"""What is compared with transformers, each check as a largest error and its bound.

Errors of features and logits are in standard deviations of the reference's values;
those of log-probs in nats; those of gradients relative to each tensor's norm.
"""

import functools
import tempfile
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vrl_jax.engine.likelihood import first_positions, likelihood
from vrl_jax.engine.sampling import response_positions
from vrl_jax.models import hub
from vrl_jax.models.families import family_of
from vrl_jax.models.parameters import current_name, to_checkpoint

from ..models.cases import Outputs, Packed, budget_of, outputs, pack, token_by_token
from . import reference
from .draws import QWEN, Draw, draw


class Setting:
    """A draw with what both sides compute of it, each once."""

    def __init__(self, name: str, seed: int):
        self.draw: Draw = draw(name, seed)
        self.spec, self.params, self.rows, self.tokens, _ = self.draw

    @functools.cached_property
    def torch_model(self):
        """Our export as transformers loads it."""
        with tempfile.TemporaryDirectory() as folder:
            hub.save(folder, self.spec, self.params, shard_bytes=200_000)
            return reference.torch_model(folder, self.spec)

    @functools.cached_property
    def packed(self) -> Packed:
        return pack(self.spec, self.rows)

    @functools.cached_property
    def outputs(self) -> Outputs:
        return outputs(self.spec, self.params, self.packed, self.tokens)

    @functools.cached_property
    def torch_features(self) -> list[np.ndarray]:
        return reference.torch_features(self.torch_model, self.spec, self.rows)

    @functools.cached_property
    def torch_logits(self) -> list[np.ndarray]:
        return reference.torch_logits(self.torch_model, self.spec, self.rows)

    @functools.cached_property
    def torch_responses(self) -> np.ndarray:
        return reference.torch_response_logits(
            self.torch_model, self.spec, self.rows, self.tokens
        )

    @functools.cached_property
    def scored(self) -> tuple[np.ndarray, dict]:
        """Log-probs through the engine, and the gradient of their weighted sum."""
        whole, shape = family_of(self.spec).policy(self.spec), self.tokens.shape
        batch = (shape[0] * shape[1], shape[2])
        prompts = jax.tree.map(jnp.asarray, self.packed.prompts)
        start = jnp.repeat(first_positions(prompts), shape[1])

        def loss(params):
            scores = likelihood(
                whole,
                params,
                prompts,
                jnp.asarray(self.tokens.reshape(batch)),
                response_positions(start, shape[2]),
                jnp.ones(batch, bool),
                jnp.ones(batch[0]),
                jnp.ones(self.spec.text.vocabulary, bool),
            ).logprobs
            return (scores * self.weights.reshape(batch)).sum(), scores

        gradient, scores = jax.jit(jax.grad(loss, has_aux=True))(self.params)
        return np.asarray(scores).reshape(shape), gradient

    @property
    def weights(self) -> np.ndarray:
        random = np.random.RandomState(self.draw.seed)
        return random.randn(*self.tokens.shape).astype(np.float32)


def _worst(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> float:
    """The largest difference, in standard deviations of all their values."""
    pairs = [(np.asarray(a), b) for a, b in zip(ours, theirs, strict=True)]
    spread = np.concatenate([b.ravel() for _, b in pairs]).std()
    # Else the weights are such that a wrong part might not show.
    assert 0.2 < spread < 5, f"the reference's values have deviation {spread:.3f}"
    return max(float(np.abs(a - b).max()) for a, b in pairs) / spread


def tower(setting: Setting) -> float:
    """Features of every picture; those of deepstack as well, each level by itself."""
    levels = len(setting.torch_features[0])
    return max(
        _worst(
            [f[level] for f in setting.outputs.features],
            [f[level] for f in setting.torch_features],
        )
        for level in range(levels)
    )


def prompt_logits(setting: Setting) -> float:
    """Prefill of a padded batch with a row of text alone."""
    return _worst(setting.outputs.prompt_logits, setting.torch_logits)


def response_logits(setting: Setting) -> float:
    """Responses read at once over the prompt's cache."""
    return _worst([setting.outputs.response_logits], [setting.torch_responses])


def logprobs(setting: Setting) -> float:
    """Per-token log-probs of the engine against full passes of theirs."""
    before = np.stack([row[-1] for row in setting.torch_logits])
    before = np.repeat(before[:, None, None], setting.tokens.shape[1], axis=1)
    logits = np.concatenate([before, setting.torch_responses[:, :, :-1]], axis=2)
    table = torch.tensor(logits).log_softmax(-1).numpy()
    theirs = np.take_along_axis(table, setting.tokens[..., None], axis=-1)[..., 0]
    return float(np.abs(setting.scored[0] - theirs).max())


def cached_decode(setting: Setting) -> float:
    """Token by token on both sides, each with its own positions."""
    packed, tokens = setting.packed, setting.tokens[:, :1]
    ours = np.asarray(
        token_by_token(setting.spec)(
            setting.params, packed.prompts, packed.next_position, tokens
        )
    )
    theirs = [
        reference.torch_decoded_logits(
            setting.torch_model, setting.spec, row, setting.tokens[i, 0]
        )
        for i, row in enumerate(setting.rows)
    ]
    return _worst(ours[:, 0], theirs)


def one_by_one(setting: Setting) -> float:
    """Every row alone on both sides against our packed batch."""
    budget = budget_of(setting.spec, setting.rows)
    length = max(len(row.tokens) for row in setting.rows)
    ours, theirs, packed = [], [], []
    for i, row in enumerate(setting.rows):
        alone = pack(setting.spec, [row], budget=budget, length=length)
        got = outputs(setting.spec, setting.params, alone, setting.tokens[i : i + 1])
        ours += got.prompt_logits
        packed.append(setting.outputs.prompt_logits[i])
        theirs += reference.torch_logits(setting.torch_model, setting.spec, [row])
    return max(_worst(ours, theirs), _worst(packed, theirs))


def gradient(setting: Setting) -> float:
    """Of a weighted sum of response log-probs, tensor by tensor."""
    model = setting.torch_model
    model.zero_grad()
    reference.torch_weighted_logprobs(
        model, setting.spec, setting.rows, setting.tokens, setting.weights
    ).backward()
    theirs = {current_name(n): p.grad.numpy() for n, p in model.named_parameters()}
    table = family_of(setting.spec).parameter_table(setting.spec)
    given = to_checkpoint(setting.scored[1], table)
    ours = {current_name(name): gradient for name, gradient in given}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():  # experts: other in memory than on the hub
        if gradient.shape != ours[name].shape:
            theirs[name] = np.swapaxes(gradient, 1, 2)
    norms = {name: np.linalg.norm(g) for name, g in theirs.items()}
    # A key's bias moves all logits of a query alike where positions do not turn it, and
    # a token's only expert has a share of 1 whatever the router says: what is left of
    # such gradients is rounding.
    floor = 1e-4 * max(norms.values())
    return max(
        float(np.linalg.norm(ours[name] - theirs[name])) / max(norms[name], floor)
        for name in theirs
    )


def positions(setting: Setting) -> float:
    """mRoPE positions and the position of the first response token; exact."""
    rows, packed, spec = setting.rows, setting.packed, setting.spec
    inputs = reference.token_inputs(spec, rows)
    grid = reference.pixel_inputs(spec, rows)["image_grid_thw"]
    theirs, delta = setting.torch_model.model.get_rope_index(
        **inputs, image_grid_thw=grid
    )
    theirs, mask = np.moveaxis(theirs.numpy(), 0, -1), packed.prompts.mask
    following = packed.next_position - mask.sum(-1) - delta.numpy()[:, 0]
    off = np.abs(packed.prompts.positions[mask] - theirs[mask]).max()
    return float(max(off, np.abs(following).max()))


def import_export(setting: Setting) -> float:
    """What transformers saves we load; what we save of that it loads: same logits."""
    model = type(setting.torch_model)(setting.torch_model.config).eval()
    torch.manual_seed(setting.draw.seed)
    with torch.no_grad():
        for weight in model.parameters():  # what it starts with leaves logits near 0
            weight.add_(torch.randn_like(weight) * max(weight.shape[-1], 9) ** -0.5)
    theirs = reference.torch_logits(model, setting.spec, setting.rows)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        spec, params = hub.load(folder)
    assert spec == setting.spec
    ours = outputs(spec, params, setting.packed, setting.tokens).prompt_logits
    with tempfile.TemporaryDirectory() as folder:
        hub.save(folder, spec, params)
        again = reference.torch_model(folder, spec)
    returned = reference.torch_logits(again, spec, setting.rows)
    for first, second in zip(theirs, returned, strict=True):
        np.testing.assert_array_equal(first, second)
    return _worst(ours, theirs)


CHECKS = {
    tower: 1e-5,
    prompt_logits: 1e-4,
    response_logits: 1e-4,
    logprobs: 1e-4,
    cached_decode: 1e-4,
    one_by_one: 1e-4,
    gradient: 1e-3,
    positions: 0.0,
    import_export: 1e-4,
}


def checks_of(name: str) -> dict:
    """Of a family; one that counts tokens has no function of positions to compare."""
    return {c: b for c, b in CHECKS.items() if c is not positions or name in QWEN}
