"""Turn the feed-forward parts of a decoder into mixtures.

The decoder has the interface of Hugging Face's models: a config, layers whose `mlp(hidden_states)` keeps the shape, a
loss where there are labels. The swap changes no output, and its training loop stays. BalancedTopK needs no extra loss.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynroute import BalancedTopK, record, swap, upcycle

CONFIG = SimpleNamespace(vocab_size=12, hidden_size=32, intermediate_size=48, num_hidden_layers=2)


class MLP(nn.Module):
    """The gated feed-forward part of Llama."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, config.intermediate_size) for _ in range(2))
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class Decoder(nn.Module):
    """Predicts the next token."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in range(config.num_hidden_layers))
        for layer in self.layers:
            layer["norm"] = nn.LayerNorm(config.hidden_size)
            layer["self_attn"] = nn.MultiheadAttention(config.hidden_size, 2, batch_first=True)
            layer["mlp"] = MLP(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        x, mask = self.embed_tokens(input_ids), torch.ones(2 * [input_ids.shape[1]], dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = x + layer["self_attn"](x, x, x, attn_mask=mask, need_weights=False)[0]
            x = x + layer["mlp"](layer["norm"](x))
        logits = self.lm_head(x)
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits.mT, labels))


def train(model: Decoder, steps: int) -> list[float]:
    """Trains on sequences of eight random tokens that are repeated three times, and returns the losses."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        tokens = torch.randint(model.config.vocab_size, (16, 8)).repeat(1, 3)
        losses.append(model(tokens[:, :-1], labels=tokens[:, 1:]).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main(steps: int = 300) -> tuple[list[float], float, list[float], list[float]]:
    """Returns the losses before the swap, its change of the outputs, the losses after it, and the load of experts."""
    torch.manual_seed(0)
    model, tokens = Decoder(CONFIG), torch.randint(12, (16, 24))
    before, dense = train(model, steps), model(tokens).logits
    swap(model, MLP, lambda mlp: upcycle(mlp, 4, BalancedTopK(2, rate=0.01), context_features=CONFIG.hidden_size))
    changed, after = (model(tokens).logits - dense).abs().max().item(), train(model, steps)
    with record(model) as routes:
        model(tokens)
    load = routes["layers.0.mlp"].load_history[0].tolist()
    print(f"loss {before[0]:.2f} -> {before[-1]:.2f}; the swap changes outputs by {changed:.0e}; -> {after[-1]:.2f}")
    return before, changed, after, load


if __name__ == "__main__":
    main()
