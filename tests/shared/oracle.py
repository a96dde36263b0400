"""Routing as the papers write it: one sample, one module, one source at a time. Slow, plain and independent.

Nothing here calls the library. A graph is given by its parents, its modules and the logits of one sample as nested
lists of scalars, `z[t][s]`, so that every equation stands on one line.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Rows = list[list[Tensor]]
Path = list[list[bool]]


def mask_softmax(z: Sequence[Tensor], d: Sequence[bool]) -> list[Tensor]:
    """Eq. 5 and 8."""
    total = sum((z_j.exp() for z_j, d_j in zip(z, d, strict=True) if d_j), torch.zeros_like(z[0]))
    return [z_j.exp() / total if d_j else torch.zeros_like(z_j) for z_j, d_j in zip(z, d, strict=True)]


def top_k(z: Sequence[float], k: int) -> list[bool]:
    """Eq. 6, ties to the lowest index."""
    order = sorted(range(len(z)), key=lambda j: (-z[j], j))
    return [j in order[:k] for j in range(len(z))]


def choose(gate: str, z: Sequence[Tensor], noise: Sequence[float], temperature: float) -> list[bool]:
    """The path of one destination."""
    scores = [float(z_j.detach()) for z_j in z]
    if gate == "soft":
        return [True] * len(scores)
    if gate == "hard":
        return top_k(scores, 1)
    kind, _, k = gate.partition("-")  # two sources where no number says otherwise
    if kind == "topk":
        return top_k(scores, int(k or 2))
    assert kind == "samplek"  # Eq. 7 and 13, by the Gumbel trick
    return top_k([score / temperature + g for score, g in zip(scores, noise, strict=True)], int(k or 2))


def weigh(gate: str, z: Sequence[Tensor], d: Sequence[bool]) -> list[Tensor]:
    """The weights of one destination: Eq. 5, or the full softmax of hard routing."""
    if gate != "hard":
        return mask_softmax(z, d)
    full = mask_softmax(z, [True] * len(z))
    return [p_j if d_j else torch.zeros_like(p_j) for p_j, d_j in zip(full, d, strict=True)]


def is_suitable(z: Sequence[Tensor]) -> list[bool]:
    """The condition of Eq. 10, sigma = 1 / (number of sources + 1)."""
    return [float(p_j.detach()) >= 1 / (len(z) + 1) for p_j in mask_softmax(z, [True] * len(z))]


def run_sample(
    parents: Sequence[Sequence[int]],
    modules: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    p: Rows,
    suitable: Path,
    *,
    shortcut: bool,
    protect: str,
) -> Tensor:
    """Eq. 3, 9, 11 and 12 for one sample."""
    m: list[Tensor] = []
    stopped: list[Tensor] = []
    t = -1
    for i, module in enumerate(modules):
        if not parents[i]:
            m.append(module(x))
            stopped.append(m[i].detach())
            continue
        t += 1
        plain = torch.zeros(())
        protected = torch.zeros(())
        for s, j in enumerate(parents[i]):
            plain = plain + p[t][s] * m[j]
            chi = m[j] if protect == "none" or suitable[t][s] else stopped[j]  # Eq. 10
            protected = protected + p[t][s] * chi
        inner = module(protected)  # Eq. 9, or the second term of Eq. 11
        if not shortcut or i == len(modules) - 1:
            m.append(inner)
            stopped.append(inner.detach())
            continue
        carried = plain if protect == "input" else protected
        m.append(carried + inner)  # Eq. 11
        stopped.append(m[i].detach() if protect == "sg" else carried + inner.detach())  # Eq. 12
    return m[-1]


def linear_logits(router: nn.Module, context: Tensor) -> list[Tensor]:
    """Eq. 4 with ReLU between the layers: one logit for each edge."""
    hidden = context
    layers = list(router.get_submodule("layers").children())
    for number, layer in enumerate(layers):
        hidden = torch.stack([(row * hidden).sum() for row in layer.weight]) + layer.bias
        if number < len(layers) - 1:
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
    return list(hidden)


def split(flat: Sequence[Tensor], parents: Sequence[Sequence[int]]) -> Rows:
    """The logits of each destination."""
    rows, start = [], 0
    for row in parents:
        if row:
            rows.append(list(flat[start : start + len(row)]))
            start += len(row)
    assert start == len(flat)
    return rows


def routing_temperature(alpha: Sequence[float]) -> list[float]:
    """Eq. 14."""
    return [(1 / a) / sum(1 / b for b in alpha) for a in alpha]
