"""What a torch user would run instead of the head: eager, compiled, and by chunks.

Each maps (hidden, other or None, weight, ids) on a GPU to the statistics of one or two
streams. `experiments/bench_head.py` times them where there are torch and a GPU.
"""

from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch import Tensor

CHUNK = 1024  # tokens whose logits exist at a time


def eager(
    hidden: Tensor, other: Tensor | None, weight: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    """Dense float32 logits of all tokens."""
    logp = torch.log_softmax((hidden @ weight.T).float(), dim=1)
    p = logp.exp()
    logprobs, entropy = logp.gather(1, ids[:, None])[:, 0], -(p * logp).sum(1)
    if other is None:
        return logprobs, entropy
    logq = torch.log_softmax((other @ weight.T).float(), dim=1)
    return logprobs, entropy, (p * (logp - logq)).sum(1)


def chunked(
    hidden: Tensor, other: Tensor | None, weight: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    """The same for `CHUNK` tokens at a time, computed again in the backward pass."""
    parts = []
    for start in range(0, len(ids), CHUNK):
        rows = slice(start, start + CHUNK)
        part = None if other is None else other[rows]
        parts.append(
            torch.utils.checkpoint.checkpoint(
                eager, hidden[rows], part, weight, ids[rows], use_reentrant=False
            )
        )
    return tuple(torch.cat(x) for x in zip(*parts, strict=True))


FORMS = {
    "torch eager": eager,
    "torch.compile": torch.compile(eager),
    "torch chunked": chunked,
}


def inputs(arrays: list) -> list:
    """NumPy float32 arrays or ids as bfloat16 or ids on the GPU; None stays."""
    moved = [None if x is None else torch.from_numpy(x).cuda() for x in arrays]
    return [
        x if x is None or not x.is_floating_point() else x.bfloat16() for x in moved
    ]


def forward(
    form: Callable, hidden: Tensor, other: Tensor | None, weight: Tensor, ids: Tensor
) -> Callable:
    """A function that runs the form once and waits for it."""

    def run():
        with torch.no_grad():
            found = form(hidden, other, weight, ids)
        torch.cuda.synchronize()
        return found

    return run


def forward_backward(
    form: Callable, hidden: Tensor, other: Tensor | None, weight: Tensor, ids: Tensor
) -> Callable:
    """The same with gradients of the log-probs' sum, and of the divergence's."""
    streams = [x for x in (hidden, other, weight) if x is not None]
    for x in streams:
        x.requires_grad_()

    def run():
        found = form(hidden, other, weight, ids)
        total = found[0].sum() + (0 if other is None else found[2].sum())
        slopes = torch.autograd.grad(total, streams)
        torch.cuda.synchronize()
        return slopes

    return run


def peak(run: Callable) -> int:
    """Bytes beyond the inputs that a run needs."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


RUNS: dict[str, Callable] = {
    f"{kind}{direction}": made
    for kind in ("one", "pair")
    for direction, made in (("", forward), (" + backward", forward_backward))
}
