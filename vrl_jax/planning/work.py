"""The floating-point work of a program, counted in what jax traced."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(traced: ClosedJaxpr, *, steps: int = 1) -> float:
    """2 m n k for each product of matrices, all devices together.

    A scan's body counts as often as it runs, the dearest branch of a choice counts, and
    what layers compute again in the backward pass counts again. A loop without a known
    length, such as that over a response's tokens, runs `steps` times. Whatever is no
    product of matrices (norms, softmax, the optimiser: a few per cent) does not count.
    """
    return _of(traced.jaxpr, steps)


def _of(jaxpr: Jaxpr, steps: int) -> float:
    return sum(_equation(equation, steps) for equation in jaxpr.eqns)


def _equation(equation: Any, steps: int) -> float:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "ragged_dot_general"):
        ragged = params.get("ragged_dot_dimension_numbers")
        numbers = (
            ragged.dot_dimension_numbers if ragged else params["dimension_numbers"]
        )
        (left, right), (batch, _) = numbers
        del right
        first, second = (operand.aval.shape for operand in equation.invars[:2])
        shared = math.prod(first[axis] for axis in left)
        lanes = math.prod(first[axis] for axis in batch)
        # A row of the first meets one matrix of the second, which has one a group.
        groups = ragged.rhs_group_dimensions if ragged else ()
        lanes *= math.prod(second[axis] for axis in groups)
        return 2 * math.prod(first) * math.prod(second) / (shared * lanes)
    inner = [_of(each, steps) for each in _jaxprs(params)]
    if name == "cond":  # what is written for several platforms counts as the best
        return min(inner) if params.get("branches_platforms") else max(inner)
    times = {"scan": params.get("length"), "while": steps}.get(name, 1)
    if name == "shard_map":  # its body is what one of the devices does
        manual = params.get("newly_manual_axes") or params["manual_axes"]
        times = math.prod(params["mesh"].shape[axis] for axis in manual)
    return times * sum(inner)


def _jaxprs(params: Any) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(
        params, is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))
    ):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
