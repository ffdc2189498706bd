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


def linear(step: int, *, start: float, end: float, total: int) -> float:
    """start + (end - start) step / (total - 1), `end` from the last step on.

    Of PEPO's lambda (0 to 1), PAD's temperature (1 to 0.3) and PAPO's optional gamma:
    each paper says only that it is linear. DUPL's share has its end at step `total`:
    `power_fade`.
    """
    return start + (end - start) * min(step / max(total - 1, 1), 1.0)


def exponential_fade(step: int, *, start: float, base: float, total: int) -> float:
    """start (1 - base^(total - step)): nearly all of it until shortly before the end.

    The "exp" of NoisyRollout's code, https://github.com/NUS-TRAIL/NoisyRollout.
    """
    return start * (1 - base ** (total - step))


def power_fade(step: int, *, start: float, power: float, total: int) -> float:
    """start (1 - (step / total)^power), 0 from `total` on: NoisyRollout's "pow".

    With start and power 1, max(0, 1 - step / total): the probability of the noisy
    branch in DUPL, https://arxiv.org/abs/2510.01444.
    """
    return start * (1 - min(step / total, 1) ** power)


def late_decay(
    step: int, *, start: float = 0.02, rate: float = 0.985, wait: int = 20
) -> float:
    """0 for `wait` updates, then start, start rate, start rate^2, ...

    The weight of the entropy in ReVisual-R1, https://arxiv.org/abs/2506.04207, with the
    wait of its configuration; its table has 140.
    """
    return start * rate ** (step - wait) if step >= wait else 0.0


def adaptive_coefficient(
    coefficient: float,
    kl: float,
    steps: int,
    *,
    target: float = 0.1,
    horizon: float = 10_000,
) -> float:
    """coefficient (1 + clip(kl / target - 1, -0.2, 0.2) steps / horizon), the next one.

    Keeps the KL to a reference near `target`. Ziegler et al., section 2.2,
    https://arxiv.org/abs/1909.08593, with the defaults of verl and EasyR1, whose
    `steps` are the responses of an update.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * steps / horizon)


def adaptive_entropy_weight(
    weight: float,
    entropy: float,
    *,
    target: float = 0.2,
    change: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, float]:
    """The next weight, `change` up where entropy <= target and down where not, and
    what of it to apply: nothing above the target.

    Skywork-OR1, https://arxiv.org/abs/2505.22312, with the defaults of TRL, whose 0.2
    nats is near collapse. The term of the loss is -weight H.
    """
    if entropy <= target:
        weight = min(weight + change, high)
        return weight, weight
    return max(weight - change, low), 0.0


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
