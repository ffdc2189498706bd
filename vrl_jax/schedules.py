"""How a strength changes over training, on the host: Python numbers in and out."""

import math

DIFFUSION_STEPS = 1000


def sigmoid_decay(
    step: int,
    *,
    start: float = 500,
    slope: float = 30,
    middle: float = 40,
    total: int = 60,
) -> int:
    """floor(start (1 - sigmoid(slope (step - middle) / total))).

    The noise step of NoisyRollout, https://arxiv.org/abs/2504.13055, for its 7B run on
    Geo3K: heavy noise until shortly before `middle`, none at the end.
    """
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) is near 1.
    return math.floor(start / (1 + math.exp(slope * (step - middle) / total)))


def diffusion_noise_std(step: int) -> float:
    """sqrt(1 - abar_step), abar = prod(1 - beta_j) over j = 0..step.

    beta_j = sigmoid(x_j) (5e-3 - 1e-5) + 1e-5, x from -6 to 6 in 1000 steps: the
    diffusion of NoisyRollout, https://arxiv.org/abs/2504.13055.
    """
    log_kept = 0.0
    for j in range(step + 1):
        x = -6 + 12 * j / (DIFFUSION_STEPS - 1)
        log_kept += math.log1p(-((5e-3 - 1e-5) / (1 + math.exp(-x)) + 1e-5))
    return math.sqrt(-math.expm1(log_kept))
