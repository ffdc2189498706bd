"""The families of models, each as the functions that the library asks of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vrl_jax.models.parameters import Parameter
from vrl_jax.models.policy import Policy
from vrl_jax.models.qwen_vl import config as qwen_config
from vrl_jax.models.qwen_vl.parameters import parameter_table as qwen_table
from vrl_jax.models.qwen_vl.policy import policy as qwen_policy
from vrl_jax.models.qwen_vl.spec import QwenSpec

Spec = QwenSpec
"""A frozen, hashable shape of a model; `model_type` is its name in `config.json`."""

Files = dict[str, dict[str, Any]]


class ModelFamily(NamedTuple):
    """What a family provides, beside the arithmetic.

    spec_from_config(config)               -> spec, of a parsed `config.json`
    config_from_spec(spec)                 -> that again
    processor_settings(spec, pixel_bounds) -> {name: content} of the processor's files
    parameter_table(spec)                  -> its parameters
    policy(spec)                           -> the functions that the engine asks for
    """

    spec_from_config: Callable[[Mapping[str, Any]], Spec]
    config_from_spec: Callable[[Spec], dict[str, Any]]
    processor_settings: Callable[[Spec, tuple[int, int] | None], Files]
    parameter_table: Callable[[Spec], list[Parameter]]
    policy: Callable[[Spec], Policy]


QWEN_VL = ModelFamily(
    qwen_config.spec_from_config,
    qwen_config.config_from_spec,
    qwen_config.processor_settings,
    qwen_table,
    qwen_policy,
)

# By the model type that `config.json` names.
FAMILIES = {
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
}


def family_of(config: Mapping[str, Any] | Spec) -> ModelFamily:
    """The family of a parsed `config.json`, or of a spec."""
    named = (
        config.get("model_type") if isinstance(config, Mapping) else config.model_type
    )
    if named not in FAMILIES:
        raise ValueError(
            f"config.json says model_type = {named!r}; supported here: "
            f"{', '.join(map(repr, FAMILIES))}."
        )
    return FAMILIES[named]
