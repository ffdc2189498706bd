"""The families of models, each as the functions that the library asks of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vrl_jax.models.config import supported
from vrl_jax.models.front_end import FrontEnd
from vrl_jax.models.gemma3 import config as gemma3_config
from vrl_jax.models.gemma3 import front_end as gemma3_front_end
from vrl_jax.models.gemma3 import parameters as gemma3_parameters
from vrl_jax.models.gemma3 import policy as gemma3_policy
from vrl_jax.models.gemma3.spec import Gemma3Spec
from vrl_jax.models.parameters import Parameter
from vrl_jax.models.policy import Policy
from vrl_jax.models.qwen_vl import config as qwen_config
from vrl_jax.models.qwen_vl import front_end as qwen_front_end
from vrl_jax.models.qwen_vl import parameters as qwen_parameters
from vrl_jax.models.qwen_vl import policy as qwen_policy
from vrl_jax.models.qwen_vl.spec import QwenSpec

Spec = QwenSpec | Gemma3Spec
"""A frozen, hashable shape of a model; `model_type` is its name in `config.json`."""

Files = dict[str, dict[str, Any]]


class ModelFamily(NamedTuple):
    """What a family provides.

    spec_from_config(config)               -> spec, of a parsed `config.json`
    config_from_spec(spec)                 -> that again
    processor_settings(spec, pixel_bounds) -> {name: content} of the processor's files
    parameter_table(spec)                  -> its parameters
    front_end(spec)                        -> the functions of the host
    policy(spec, remat)                    -> the functions of the device
    """

    spec_from_config: Callable[[Mapping[str, Any]], Spec]
    config_from_spec: Callable[[Spec], dict[str, Any]]
    processor_settings: Callable[[Spec, tuple[int, int] | None], Files]
    parameter_table: Callable[[Spec], list[Parameter]]
    front_end: Callable[[Spec], FrontEnd]
    policy: Callable[..., Policy]


QWEN_VL = ModelFamily(
    qwen_config.spec_from_config,
    qwen_config.config_from_spec,
    qwen_config.processor_settings,
    qwen_parameters.parameter_table,
    qwen_front_end.front_end,
    qwen_policy.policy,
)
GEMMA3 = ModelFamily(
    gemma3_config.spec_from_config,
    gemma3_config.config_from_spec,
    gemma3_config.processor_settings,
    gemma3_parameters.parameter_table,
    gemma3_front_end.front_end,
    gemma3_policy.policy,
)

# By the model type that `config.json` names.
FAMILIES = {
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
    "qwen3_vl_moe": QWEN_VL,
    "gemma3": GEMMA3,
}


def family_of(spec: Spec) -> ModelFamily:
    """The family that a spec is of."""
    return FAMILIES[spec.model_type]


def family_from_config(config: Mapping[str, Any]) -> ModelFamily:
    """The family of a parsed `config.json`."""
    supported("model_type", config.get("model_type"), *FAMILIES)
    return FAMILIES[config["model_type"]]
