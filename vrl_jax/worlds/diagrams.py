"""Diagrams of points, lines and a circle, each known: which points lie inside?

Drawn as `rewards.primitives` draws what a model says, so that what is said rightly
looks the same. Coordinates are whole; the split follows from the picture.
"""

import math

import numpy as np

from vrl_jax.rewards.primitives import Place, Primitives, as_text, draw
from vrl_jax.types import Sample
from vrl_jax.worlds.shapes import Split, split_of
from vrl_jax.worlds.writing import png_bytes

INSIDE = (
    "<image>The points are A, B and C from left to right. How many of them lie inside "
    "the circle? Say in <watching> what is drawn, think in <thinking>, answer in "
    "<answer>."
)


def points_in_circle(
    count: int, *, split: Split, seed: int, pixels: int = 84
) -> list[Sample]:
    """Three points, lines from each to the next, a circle: as `recipes.cogflow` asks.

    No point is within 1 of the circle. The columns `watching` and `thinking` hold what
    is said there, and `demonstration` both turns of the recipe's program.
    """
    samples = []
    for index in range(count):
        rng = np.random.default_rng([seed, ("train", "test").index(split), index])
        drawn = _composed(rng)
        while split_of(picture := np.asarray(draw(drawn, pixels=pixels))) != split:
            drawn = _composed(rng)
        (circle,) = drawn.circles
        depths = [_depth(circle, point) for point in drawn.points]
        places = ["inside" if depth > 0 else "outside" for depth in depths]
        named = zip("ABC", places, strict=True)
        watching = as_text(drawn)
        thinking = ", ".join(f"{name} {place}" for name, place in named)
        answer = str(places.count("inside"))
        samples.append(
            Sample(
                id=f"diagrams-inside-{split}-{seed}-{index}",
                source="diagrams/inside",
                question=INSIDE,
                images=(png_bytes(picture),),
                answer=answer,
                annotations={
                    "watching": watching,
                    "thinking": thinking,
                    "demonstration": [
                        f"<watching>\n{watching}\n</watching>",
                        f"<thinking>{thinking}</thinking><answer>{answer}</answer>",
                    ],
                },
            )
        )
    return samples


def _composed(rng: np.random.Generator) -> Primitives:
    """A circle, and 0 to 3 of three points in it; each number as often.

    The circle is wide enough that there is always a column for the next point.
    """
    radius = int(rng.integers(4, 7))
    x, y = (int(place) for place in rng.integers(radius - 9, 10 - radius, 2))
    circle = (float(x), float(y), float(radius))
    wanted = int(rng.integers(0, 4))
    left = {True: wanted, False: 3 - wanted}
    points: list[Place] = []
    while len(points) < 3:
        across, down = (float(place) for place in rng.integers(-9, 10, 2))
        depth = _depth(circle, (across, down))
        apart = all(abs(across - point[0]) >= 2 for point in points)
        if apart and abs(depth) >= 1 and left[depth > 0]:
            left[depth > 0] -= 1
            points.append((across, down))
    a, b, c = sorted(points)
    return Primitives((a, b, c), ((a, b), (b, c)), (circle,))


def _depth(circle: tuple[float, float, float], point: Place) -> float:
    """How far the point lies inside of the circle; negative outside."""
    *centre, radius = circle
    return radius - math.dist(point, centre)
