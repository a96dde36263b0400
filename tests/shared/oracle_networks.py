"""The networks as the papers write them, one sample at a time. Slow, plain and independent.

Nothing here calls the library. A linear layer is a pair `(weight, bias)` with the weight `[out, in]`, an MLP is
a list of such layers with ReLU between them and none at its end. Every network reads the state `[S]` of one sample
and the number of its task, and returns a vector. A routed one returns `(output, weights, path)`, the last two as
nested lists `[destination][source]` in node order (the nodes of layer 0, of layer 1, ..., the output last).

The keywords of the routed networks: `gate` is "soft", "hard", "topk" or "samplek" (k = 2); `path` replays a recorded
path, the weights are recomputed; `noise` is the Gumbel noise of "samplek", one number per edge; `temperature` divides
the logits where the choice is drawn and nowhere else; `sample` says whether "samplek" draws, and follows `training`
unless it is given; `protect` is "rsg", "input", "sg" or "none", and acts in training only.
"""

from collections.abc import Callable, Sequence

import oracle
import torch
from oracle import Path, Rows
from torch import Tensor

Layer = tuple[Tensor, Tensor]
Normalized = tuple[Layer, Layer]
Routed = tuple[Tensor, Rows, Path]
Node = Callable[[Tensor], Tensor]


# The pieces -----------------------------------------------------------------------------------------------------------


def linear(layer: Layer, x: Tensor) -> Tensor:
    """W x + b."""
    weight, bias = layer
    return weight @ x + bias


def relu(x: Tensor) -> Tensor:
    """The positive part; its derivative at 0 is 0."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def perceptron(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Linear layers with ReLU between them; no layer at all is the identity."""
    for number, layer in enumerate(layers):
        x = linear(layer, relu(x) if number > 0 else x)
    return x


def layer_norm(scale_and_shift: Layer, x: Tensor) -> Tensor:
    """Layer normalization: mean 0 and variance 1 over the features, then a scale and a shift of each."""
    scale, shift = scale_and_shift
    centred = x - x.sum() / len(x)
    variance = (centred * centred).sum() / len(x)
    return centred / torch.sqrt(variance + 1e-6) * scale + shift


def residual_body(layers: Sequence[Normalized], x: Tensor) -> Tensor:
    """The part that a residual block of BRC adds to its input: LN(W ReLU(LN(V x)))."""
    (first, first_norm), (second, second_norm) = layers
    return layer_norm(second_norm, linear(second, relu(layer_norm(first_norm, linear(first, x)))))


def one_hot(task: int, num_tasks: int, like: Tensor) -> Tensor:
    """The representation of a task."""
    assert 0 <= task < num_tasks
    return torch.tensor([float(t == task) for t in range(num_tasks)], dtype=like.dtype, device=like.device)


def with_task(state: Tensor, task: int, num_tasks: int) -> Tensor:
    """The state, then the one-hot of the task."""
    return torch.cat([state, one_hot(task, num_tasks, state)])


def dag(n: int) -> list[list[int]]:
    """Module level: every node reads all earlier ones."""
    return [list(range(i)) for i in range(n)]


def layered(sizes: Sequence[int]) -> list[list[int]]:
    """Layer level: every node reads the layer before its own, an added output node reads the last layer."""
    parents: list[list[int]] = [[] for _ in range(sizes[0])]
    start = 0
    for number, size in enumerate(sizes):
        sources = list(range(start, start + size))
        start += size
        readers = sizes[number + 1] if number + 1 < len(sizes) else 1
        parents += [sources] * readers
    return parents


def parallel(n: int) -> list[list[int]]:
    """Model level: an added output node reads n networks."""
    return layered([n])


def decide(
    gate: str,
    z: Rows,
    path: Path | None,
    noise: Sequence[Sequence[float]] | None,
    temperature: float,
    sample: bool,
) -> tuple[Rows, Path]:
    """The weights and the path of every destination: Eq. 5-8 and 13 of D2R."""
    draws = gate == "samplek" and sample and path is None
    assert noise is not None or not draws, "a draw needs its noise"
    rows: Rows = []
    chosen: Path = []
    for t, z_t in enumerate(z):
        if path is not None:
            assert len(path[t]) == len(z_t)
            d_t = list(path[t])
        elif draws:
            assert noise is not None
            d_t = oracle.choose("samplek", z_t, noise[t], temperature)
        else:
            d_t = oracle.choose("topk" if gate == "samplek" else gate, z_t, [], temperature)
        chosen.append(d_t)
        rows.append(oracle.weigh(gate, z_t, d_t))
    return rows, chosen


def run(
    parents: Sequence[Sequence[int]],
    nodes: Sequence[Node],
    x: Tensor,
    z: Rows,
    *,
    gate: str,
    path: Path | None,
    noise: Sequence[Sequence[float]] | None,
    temperature: float,
    training: bool,
    sample: bool | None,
    shortcut: bool,
    protect: str,
) -> Routed:
    """Routes one sample through a graph."""
    weights, chosen = decide(gate, z, path, noise, temperature, training if sample is None else sample)
    output = oracle.run_sample(
        parents,
        nodes,
        x,
        weights,
        [oracle.is_suitable(z_t) for z_t in z],
        shortcut=shortcut,
        protect=protect if training else "none",
    )
    return output, weights, chosen


# Networks without a route ---------------------------------------------------------------------------------------------


def mt_mlp(layers: Sequence[Layer], state: Tensor, task: int, num_tasks: int) -> Tensor:
    """MT-SAC: one MLP reads the state and the one-hot."""
    return perceptron(layers, with_task(state, task, num_tasks))


def multi_head(trunk: Sequence[Layer], heads: Sequence[Layer], state: Tensor, task: int, num_tasks: int) -> Tensor:
    """MH-SAC: the trunk reads the state and the one-hot, ReLU after each of its layers, then the head of the task."""
    assert len(heads) == num_tasks
    return linear(heads[task], relu(perceptron(trunk, with_task(state, task, num_tasks))))


def paco(sets: Sequence[Sequence[Layer]], w_row: Tensor, state: Tensor) -> Tensor:
    """PaCo: y = act(sum_k w_k (W_k x + b_k)), the output layer too, but for its activation.

    Args:
        sets: The layers of each of the K parameter sets.
        w_row: The K weights of the task, its row of the table, used as they are.
        state: The state; the task is not an input.
    """
    depth = len(sets[0])
    x = state
    for number in range(depth):
        y = torch.zeros_like(sets[0][number][1])
        for w_k, layers in zip(w_row, sets, strict=True):
            y = y + w_k * linear(layers[number], x)
        x = relu(y) if number < depth - 1 else y
    return x


def paco_reinitialise(w: Tensor, task: int, coefficients: Sequence[float]) -> Tensor:
    """PaCo's answer to an extreme loss: the row of the task becomes a convex combination of the rows of others.

    Args:
        w: The table, with a row per task.
        task: The task whose loss is extreme.
        coefficients: One number per task: not negative, adding up to 1, zero for `task` and any other extreme task.

    Returns:
        The new table; the rows of the other tasks are as before.
    """
    assert len(coefficients) == len(w)
    assert coefficients[task] == 0
    assert min(coefficients) >= 0
    assert abs(sum(coefficients) - 1) < 1e-6
    rows = [row.clone() for row in w]
    rows[task] = torch.zeros_like(w[task])
    for coefficient, row in zip(coefficients, w, strict=True):
        rows[task] = rows[task] + coefficient * row
    return torch.stack(rows)


def encode(table: Tensor, entry: Normalized, state: Tensor, task: int) -> Tensor:
    """BRC's encoder: the state and the embedding of the task, divided by its norm, through Linear - LN - ReLU."""
    row = table[task]
    layer, norm = entry
    return relu(layer_norm(norm, linear(layer, torch.cat([state, row / torch.sqrt((row * row).sum())]))))


def brc(
    table: Tensor, entry: Normalized, blocks: Sequence[Sequence[Normalized]], head: Layer, state: Tensor, task: int
) -> Tensor:
    """BRC: residual blocks on what the encoder makes, and a linear head."""
    x = encode(table, entry, state, task)
    for block in blocks:
        x = x + residual_body(block, x)
    return linear(head, x)


# Model level ----------------------------------------------------------------------------------------------------------


def mixture_of_experts(
    experts: Sequence[Sequence[Layer]],
    gate_mlp: Sequence[Layer],
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    gate: str = "soft",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "none",
) -> Routed:
    """Mix-Expert of the Soft Modularization paper: networks like MT-SAC and a learned gate over their outputs.

    Its authors released none; the reading: experts and gate are MLPs of the state and the one-hot, the outputs
    themselves are mixed, by a softmax.
    """
    x = with_task(state, task, num_tasks)
    nodes = [lambda x, layers=layers: perceptron(layers, x) for layers in experts] + [lambda mix: mix]
    return run(
        parallel(len(experts)),
        nodes,
        x,
        [list(perceptron(gate_mlp, x))],
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=False,
        protect=protect,
    )


def scale_moe(
    table: Tensor,
    entry: Normalized,
    experts: Sequence[Sequence[Sequence[Normalized]]],
    heads: Sequence[Layer],
    gate_mlp: Sequence[Layer],
    state: Tensor,
    task: int,
    *,
    deviations: bool = False,
    gate: str = "topk",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "none",
) -> Routed:
    """ScaleMoE: residual experts behind one encoder, their features merged for one head, or their outputs merged.

    Args:
        table: The embeddings of the tasks.
        entry: The layer of the encoder.
        experts: The residual blocks of each expert.
        heads: One head for the merged features, or one for each expert.
        gate_mlp: The MLP from what the encoder makes to the scores of the experts.
        state: The state.
        task: The task.
        deviations: Whether the second half of an expert's outputs are the logarithms of what is merged.
        gate: This and what follows are the keywords of every routed network.
        path: The recorded path.
        noise: The noise.
        temperature: The temperature.
        training: The mode.
        sample: Whether to draw.
        protect: How gradients are stopped.
    """
    shared = len(heads) < len(experts)

    def expert(number: int) -> Node:
        def node(x: Tensor) -> Tensor:
            for block in experts[number]:
                x = x + residual_body(block, x)
            y = x if shared else linear(heads[number], x)
            if not deviations:
                return y
            return torch.cat([y[: len(y) // 2], torch.exp(torch.clamp(y[len(y) // 2 :], -20, 2))])

        return node

    def output(mix: Tensor) -> Tensor:
        if shared:
            return linear(heads[0], mix)
        return torch.cat([mix[: len(mix) // 2], torch.log(mix[len(mix) // 2 :])]) if deviations else mix

    x = encode(table, entry, state, task)
    return run(
        parallel(len(experts)),
        [*map(expert, range(len(experts))), output],
        x,
        [list(perceptron(gate_mlp, x))],
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=False,
        protect=protect,
    )


def care(
    encoders: Sequence[Sequence[Layer]],
    trunk: Sequence[Layer],
    context_mlp: Sequence[Layer],
    metadata: Tensor,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    attention: str = "dot",
    gate_mlp: Sequence[Layer] = (),
    detach: bool = True,
    relu_metadata: bool = False,
    task_in_trunk: bool = False,
    gate: str = "soft",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "none",
) -> Routed:
    """CARE: a mixture of encoders of the state, mixed by what is known of the task.

    The reading, step by step: context = context_mlp(metadata); encodings = encoders(state), with no activation at the
    end of either; weights = softmax over the encoders of the attention scores; mixture = weighted sum of the
    encodings; output = trunk(concat(mixture, context)). Only the attention sees the detached context: the trunk trains
    the context.

    Args:
        encoders: The k encoders; each ends as wide as the context where the attention is "dot".
        trunk: The MLP over the mixture and the context, in this order, output layer included.
        context_mlp: The MLP from metadata to context; none where the metadata is the context.
        metadata: The row of the task in the table: a frozen sentence embedding, or a learned embedding.
        state: The state.
        task: The task.
        num_tasks: The number of tasks.
        attention: "dot" is the paper's, encoding · context for each encoder; "gate" is the public code's,
            `gate_mlp(context)` with a score for each encoder, at temperature 1.
        gate_mlp: The MLP of "gate".
        detach: Whether the attention stops the gradient to the context: in the paper it does, and the settings of the
            public code ask for it.
        relu_metadata: Whether the metadata is activated before its MLP, as in the public code.
        task_in_trunk: Whether the trunk also reads the one-hot, after the context.
        gate: This and what follows are the keywords of every routed network.
        path: The recorded path.
        noise: The noise.
        temperature: The temperature.
        training: The mode.
        sample: Whether to draw.
        protect: How gradients are stopped.
    """
    context = perceptron(context_mlp, relu(metadata) if relu_metadata else metadata)
    seen = context.detach() if detach else context
    if attention == "dot":
        scores = [(perceptron(layers, state) * seen).sum() for layers in encoders]
    else:
        assert attention == "gate"
        scores = list(perceptron(gate_mlp, seen))
    assert len(scores) == len(encoders)

    def output(mixture: Tensor) -> Tensor:
        parts = [mixture, context]
        if task_in_trunk:
            parts.append(one_hot(task, num_tasks, state))
        return perceptron(trunk, torch.cat(parts))

    return run(
        parallel(len(encoders)),
        [*(lambda x, layers=layers: perceptron(layers, x) for layers in encoders), output],
        state,
        [scores],
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=False,
        protect=protect,
    )


# Layer level ----------------------------------------------------------------------------------------------------------


def layer_nodes(modules: Sequence[Sequence[Layer]], head: Layer | None, activate: str) -> list[Node]:
    """The nodes of a layered graph of linear modules.

    Args:
        modules: The linear modules of each layer.
        head: The output layer; without one the output is the mix of the last layer.
        activate: "after" the weighted sum, so that every reader activates its mix, as in the released Soft
            Modularization; "before" it, so that every module activates its own output, as in its Eq. 8. Whatever is
            not followed by another layer is not activated.
    """
    assert activate in {"after", "before"}

    def node(layer: Layer, first: bool, last: bool) -> Node:
        if activate == "before":
            return lambda x: linear(layer, x) if last else relu(linear(layer, x))
        return lambda x: linear(layer, x if first else relu(x))

    nodes = [
        node(layer, number == 0, head is None and number == len(modules) - 1)
        for number, layers in enumerate(modules)
        for layer in layers
    ]
    return [*nodes, (lambda mix: mix) if head is None else node(head, False, True)]


def hard_routing(
    f: Sequence[Layer],
    modules: Sequence[Sequence[Layer]],
    table: Tensor,
    head: Layer,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    activate: str = "after",
    gate: str = "hard",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "none",
) -> Routed:
    """Hard Routing of the Soft Modularization paper: a table chooses one module of each layer for each task.

    Its authors released none; the reading: the modules of layer 0 read ReLU(f(state)); a row of the table holds a
    logit for each edge, destination by destination; each destination reads its best source alone, times the
    probability of this source in the softmax over all of them. One chain of modules reaches the output.

    Args:
        f: The MLP of the state.
        modules: The linear modules of each layer.
        table: The logits, with shape [num_tasks, edges].
        head: The output layer.
        state: The state.
        task: The task.
        num_tasks: The number of tasks.
        activate: Where the ReLU is, see `layer_nodes`.
        gate: This and what follows are the keywords of every routed network.
        path: The recorded path.
        noise: The noise.
        temperature: The temperature.
        training: The mode.
        sample: Whether to draw.
        protect: How gradients are stopped.
    """
    assert len(table) == num_tasks
    parents = layered([len(layers) for layers in modules])
    return run(
        parents,
        layer_nodes(modules, head, activate),
        relu(perceptron(f, state)),
        oracle.split(list(table[task]), parents),
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=False,
        protect=protect,
    )


def cascade(
    embedding: Tensor, down: Sequence[Layer], up: Sequence[Layer], parents: Sequence[Sequence[int]], condition: str
) -> Rows:
    """The logits of Soft Modularization, one layer of destinations after the other: Eq. 5-7.

    The first layer: p = W_d(ReLU(E)). Every further one: p = W_d(ReLU(W_u(c) * E)), where the condition c is
    "probabilities": the softmaxed probabilities of all earlier layers, one after the other (released);
    "logits": the logits of the layer before (Eq. 5).
    """
    assert condition in {"probabilities", "logits"}
    assert len(up) == len(down) - 1
    widths = [len(row) for row in parents if row]
    z: Rows = []
    logits = linear(down[0], relu(embedding))
    probabilities: list[Tensor] = []
    for number in range(len(down)):
        if number > 0:
            c = torch.stack(probabilities) if condition == "probabilities" else logits
            logits = linear(down[number], relu(linear(up[number - 1], c) * embedding))
        flat = list(logits)
        while flat:
            width = widths[len(z)]
            z.append(flat[:width])
            probabilities += oracle.mask_softmax(flat[:width], [True] * width)
            flat = flat[width:]
    return z


def soft_modularization(
    f: Sequence[Layer],
    h: Sequence[Layer],
    modules: Sequence[Sequence[Layer]],
    down: Sequence[Layer],
    up: Sequence[Layer],
    head: Layer | None,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    gating: Sequence[Layer] = (),
    activate_state: bool = True,
    condition: str = "probabilities",
    activate: str = "after",
    last: str = "softmax",
    state_free: bool = False,
    gate: str = "soft",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "none",
) -> Routed:
    """Soft Modularization: the released network by default, each of its differences from the paper by a keyword.

    1. `gating`: E = gating(ReLU(f(s) * h(z))), two layers in the release. None in the paper: E = f(s) * h(z), so that
       the first logits are W_d(ReLU(f(s) * h(z))), Eq. 6.
    2. `activate_state`: the modules of the first layer read ReLU(f(s)); False in the paper: f(s).
    3. `condition`: "probabilities", or "logits" in the paper, see `cascade`.
    4. `activate`: "after" the weighted sum, or "before" it in the paper (Eq. 8), see `layer_nodes`.
    5. `last`: "softmax", a last row of weights mixes the last layer. "sum" in the paper: the outputs of the last layer
       are added up (Eq. 9) and no logits are computed for them. To the letter of Eq. 9 the modules of the last layer
       are as wide as the output and `head` is None; with a head the sum, activated like any other mix, goes through it.

    All of the paper at once: `gating=(), activate_state=False, condition="logits", activate="before", last="sum"`,
    `head=None`.

    Args:
        f: The MLP of the state.
        h: The layer of the task.
        modules: The linear modules of each of the L layers.
        down: W_d of each layer of logits, destination by destination: L of them with "softmax" (the last one has a
            logit per module of the last layer), L - 1 with "sum".
        up: W_u of each layer of logits but the first.
        head: The output layer.
        state: The state.
        task: The task.
        num_tasks: The number of tasks.
        gating: Difference 1.
        activate_state: Difference 2.
        condition: Difference 3. The condition is not changed by the gate: always the softmax over all sources.
        activate: Difference 4.
        last: Difference 5.
        state_free: Whether the router reads h(z) alone: E = h(z), or gating(ReLU(h(z))) in the release.
        gate: This and what follows are the keywords of every routed network.
        path: The recorded path.
        noise: The noise.
        temperature: The temperature.
        training: The mode.
        sample: Whether to draw.
        protect: How gradients are stopped.

    Returns:
        The output, the weights and the path; the output node has a row in both with "softmax" only.
    """
    assert last in {"softmax", "sum"}
    assert len(down) == len(modules) - (last == "sum")
    features = perceptron(f, state)
    embedding = perceptron(h, one_hot(task, num_tasks, state))
    if not state_free:
        embedding = features * embedding
    if gating:
        embedding = perceptron(gating, relu(embedding))
    parents = layered([len(layers) for layers in modules])
    z = cascade(embedding, down, up, parents, condition)
    assert len(z) == sum(1 for row in parents if row) - (last == "sum")
    weights, chosen = decide(gate, z, path, noise, temperature, training if sample is None else sample)
    p = list(weights)
    suitable = [oracle.is_suitable(row) for row in z]
    if last == "sum":
        p.append([torch.ones_like(features[0]) for _ in modules[-1]])
        suitable.append([True for _ in modules[-1]])
    output = oracle.run_sample(
        parents,
        layer_nodes(modules, head, activate),
        relu(features) if activate_state else features,
        p,
        suitable,
        shortcut=False,
        protect=protect if training else "none",
    )
    return output, weights, chosen


# D2R ------------------------------------------------------------------------------------------------------------------


def d2r_inputs(
    f: Sequence[Layer],
    h: Sequence[Layer],
    router: Sequence[Layer],
    parents: Sequence[Sequence[int]],
    state: Tensor,
    task: int,
    num_tasks: int,
    state_free: bool,
) -> tuple[Tensor, Rows]:
    """The input of the modules, ReLU(F(s)), and the logits, Eq. 4: G(F(s) * H(T)), or G(H(T)) without the state."""
    features = perceptron(f, state)
    context = perceptron(h, one_hot(task, num_tasks, state))
    if not state_free:
        context = features * context
    return relu(features), oracle.split(list(perceptron(router, context)), parents)


def activated(layer: Layer) -> Node:
    """A module of D2R: ReLU(W x + b)."""
    return lambda x: relu(linear(layer, x))


def d2r(
    f: Sequence[Layer],
    h: Sequence[Layer],
    router: Sequence[Layer],
    modules: Sequence[Layer],
    head: Layer,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    state_free: bool = False,
    shortcut: bool = True,
    gate: str = "samplek",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "rsg",
) -> Routed:
    """D2R, module level: the hidden modules, then the head, which is routed like them and is the last node.

    Node 0 is ReLU(W_0 ReLU(F(s))), without a shortcut; every further hidden node is mix + ReLU(W mix); the head is
    W mix, without a shortcut.

    Args:
        f: F, the MLP of the state, not activated at its end.
        h: H, the layer of the task.
        router: G, one MLP for all destinations, a logit per edge, destination by destination.
        modules: The hidden modules, the first as wide as F at its input.
        head: The output layer.
        state: The state.
        task: The task.
        num_tasks: The number of tasks.
        state_free: Whether the router reads H(T) alone.
        shortcut: Whether hidden nodes add their mix: Eq. 11 or Eq. 3 and 9.
        gate: This and what follows are the keywords of every routed network.
        path: The recorded path.
        noise: The noise.
        temperature: The temperature.
        training: The mode.
        sample: Whether to draw.
        protect: How gradients are stopped.
    """
    parents = dag(len(modules) + 1)
    x, z = d2r_inputs(f, h, router, parents, state, task, num_tasks, state_free)
    return run(
        parents,
        [*map(activated, modules), lambda mix: linear(head, mix)],
        x,
        z,
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=shortcut,
        protect=protect,
    )


def d2r_layer(
    f: Sequence[Layer],
    h: Sequence[Layer],
    router: Sequence[Layer],
    modules: Sequence[Sequence[Layer]],
    head: Layer,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    state_free: bool = False,
    shortcut: bool = True,
    gate: str = "samplek",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "rsg",
) -> Routed:
    """The layer level with all the parts of D2R (its Fig. 7d).

    The paper gives no details; the reading: F, H, the router and the modules of D2R, where a node may read the layer
    before its own alone. The modules of layer 0 read ReLU(F(s)), without a shortcut; the head mixes the last layer.
    The arguments are those of `d2r`, but for `modules`, given layer by layer.
    """
    parents = layered([len(layers) for layers in modules])
    x, z = d2r_inputs(f, h, router, parents, state, task, num_tasks, state_free)
    return run(
        parents,
        [*(activated(layer) for layers in modules for layer in layers), lambda mix: linear(head, mix)],
        x,
        z,
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=shortcut,
        protect=protect,
    )


def d2r_model(
    f: Sequence[Layer],
    h: Sequence[Layer],
    router: Sequence[Layer],
    models: Sequence[Sequence[Layer]],
    head: Layer | None,
    state: Tensor,
    task: int,
    num_tasks: int,
    *,
    state_free: bool = False,
    gate: str = "samplek",
    path: Path | None = None,
    noise: Sequence[Sequence[float]] | None = None,
    temperature: float = 1.0,
    training: bool = True,
    sample: bool | None = None,
    protect: str = "rsg",
) -> Routed:
    """The model level with all the parts of D2R (its Fig. 7d).

    The paper gives no details; the reading: F, H and the router of D2R, and whole networks that read ReLU(F(s)). With
    a head they are activated at their end too, and the head reads their mix; without one they end in the output and
    are mixed as they are. No node has a shortcut, so an unsuitable network is stopped plainly.
    """
    parents = parallel(len(models))
    x, z = d2r_inputs(f, h, router, parents, state, task, num_tasks, state_free)

    def network(layers: Sequence[Layer]) -> Node:
        if head is None:
            return lambda x: perceptron(layers, x)
        return lambda x: relu(perceptron(layers, x))

    def output(mix: Tensor) -> Tensor:
        return mix if head is None else linear(head, mix)

    return run(
        parents,
        [*map(network, models), output],
        x,
        z,
        gate=gate,
        path=path,
        noise=noise,
        temperature=temperature,
        training=training,
        sample=sample,
        shortcut=False,
        protect=protect,
    )
