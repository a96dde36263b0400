"""The Triton kernels of `tile`; the module is imported only where they run, since it needs Triton.

One program runs all nodes for a tile of samples. Vectors of nodes have shape ``[nodes, batch, width]``; a tile's
vectors stay in the caches. Threads of a program read values that other threads of it wrote. This needs the barriers and
excludes pipelining (``num_stages=1``), which would load a value before it is stored.

Products run over blocks of the inner dimension, and the operands of a block are computed just before, since a whole row
in float32 does not fit the registers.
"""

__all__ = ["walk_backward", "walk_forward"]

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    square = x * x
    # The quotient has an absolute error only, and small values need a relative one.
    series = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    small = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - small) / (1.0 + small)
    return tl.where(tl.abs(x) < 0.2, series, tl.where(x < 0.0, -quotient, quotient))


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "relu":
        x = tl.where(x <= 0.0, 0.0, x)  # keeps NaN, as torch does
    elif KIND == "sigmoid":
        x = tl.sigmoid(x)
    elif KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "tanh":
        x = _tanh(x)
    elif KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def _derive(gradient, x, KIND: tl.constexpr):
    """The gradient of the input `x` of an activation."""
    if KIND == "relu":
        gradient = tl.where(x <= 0.0, 0.0, gradient)
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
        gradient = gradient * y * (1.0 - y)
    elif KIND == "silu":
        y = tl.sigmoid(x)
        gradient = gradient * y * (1.0 + x * (1.0 - y))
    elif KIND == "tanh":
        y = _tanh(x)
        gradient = gradient * (1.0 - y * y)
    elif KIND == "gelu":
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))  # the distribution of a normal variable, and its density
        gradient = gradient * (below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327)
    return gradient


@triton.jit
def _places(node, rows, cols, batch, WIDTH: tl.constexpr):
    """Where the vectors of a node lie in ``[nodes, batch, width]``."""
    return (node * batch + rows)[:, None] * WIDTH + cols[None, :]


@triton.jit
def _mix(
    weights, outputs, first, parents, row, rows, cols, batch, num_rows, num_slots,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The weighted sum of Eq. 3 in float32; a NaN of a source without weight does not matter."""
    inside = rows < batch
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    start = tl.load(first + row)
    slots = weights + (rows * num_rows + row) * num_slots - start
    mixed = tl.zeros((ROWS, COLS), tl.float32)
    for edge in range(start, tl.load(first + row + 1)):
        weight = tl.load(slots + edge, inside, 0.0).to(tl.float32)[:, None]
        source = tl.load(outputs + _places(tl.load(parents + edge), rows, cols, batch, WIDTH), mask, 0.0)
        mixed += tl.where(weight != 0.0, weight * source.to(tl.float32), 0.0)
    return mixed


@triton.jit
def _weigh(
    total, weights, outputs, grad_weights, first, parents, row, rows, cols, batch, num_rows, num_slots,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of the weights of a row, from the gradient of its mix."""
    inside = rows < batch
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    start = tl.load(first + row)
    slots = (rows * num_rows + row) * num_slots - start
    for edge in range(start, tl.load(first + row + 1)):
        weight = tl.load(weights + slots + edge, inside, 0.0)
        source = tl.load(outputs + _places(tl.load(parents + edge), rows, cols, batch, WIDTH), mask, 0.0)
        product = tl.sum(total * source.to(tl.float32), axis=1)
        tl.store(grad_weights + slots + edge, tl.where(weight != 0.0, product, 0.0), inside)


@triton.jit
def _send(
    through, around, weights, suitable, reader_first, reader_rows, reader_slots,
    node, rows, cols, batch, num_rows, num_slots,
    PROTECT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums the gradients from the readers of a node, for its output and for its shortcut."""
    inside = rows < batch
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    live = tl.zeros((ROWS, COLS), tl.float32)
    every = tl.zeros((ROWS, COLS), tl.float32)
    for edge in range(tl.load(reader_first + node), tl.load(reader_first + node + 1)):
        row = tl.load(reader_rows + edge)
        slot = (rows * num_rows + row) * num_slots + tl.load(reader_slots + edge)
        weight = tl.load(weights + slot, inside, 0.0).to(tl.float32)[:, None]
        places = _places(row, rows, cols, batch, WIDTH)
        part = tl.where(weight != 0.0, weight * tl.load(through + places, mask, 0.0).to(tl.float32), 0.0)
        every += part
        if PROTECT != "none":
            keep = tl.load(suitable + slot, inside, 0) != 0
            part = tl.where(keep[:, None], part, 0.0)
        live += part
        if PROTECT == "input":  # shortcuts of readers are never protected
            past = tl.where(weight != 0.0, weight * tl.load(around + places, mask, 0.0).to(tl.float32), 0.0)
            live += past
            every += past
    if PROTECT == "none" or PROTECT == "sg":
        every = live
    return live, every


@triton.jit(do_not_specialize=["batch"])
def walk_forward(
    roots,  # [batch, roots, width], what the linear layers of the roots give
    weights,  # [batch, rows, slots]
    matrices,  # [rows - 1, width, width]
    biases,  # [rows - 1, width]
    outputs,  # [nodes - 1, batch, width], written
    inner,  # [rows - 1, batch, width], written if KEEP: what the other linear layers give
    mixed,  # the same, written if KEEP; if not, room for one row where there is a shortcut
    result,  # [batch, width], written: what the last node reads
    root_nodes,
    nodes,
    first,
    parents,
    batch,
    num_roots,
    num_rows,
    num_slots,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROOT_BEHIND: tl.constexpr,
    BEFORE: tl.constexpr,
    BEHIND: tl.constexpr,
    BIASED: tl.constexpr,
    SHORTCUT: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Walks the nodes of a graph for a tile of samples.

    ``nodes[row]`` is the node that mixes by a row of the weights, without the output node; the sources of a row are
    ``parents[first[row] : first[row + 1]]``.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside, fits = rows < batch, cols < WIDTH
    mask = inside[:, None] & fits[None, :]

    for root in range(num_roots):
        x = tl.load(roots + (rows * num_roots + root)[:, None] * WIDTH + cols[None, :], mask, 0.0).to(tl.float32)
        node = tl.load(root_nodes + root)
        tl.store(outputs + _places(node, rows, cols, batch, WIDTH), _activate(x, ROOT_BEHIND), mask)
    tl.debug_barrier()

    for row in range(num_rows - 1):
        sums = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            ins = start + tl.arange(0, BLOCK)
            part = _mix(
                weights, outputs, first, parents, row, rows, ins, batch, num_rows, num_slots, WIDTH, ROWS, BLOCK
            ).to(outputs.dtype.element_ty)
            if KEEP or SHORTCUT:
                keep = inside[:, None] & (ins < WIDTH)[None, :]
                tl.store(mixed + _places(row * KEEP, rows, ins, batch, WIDTH), part, keep)
            entered = _activate(part.to(tl.float32), BEFORE).to(matrices.dtype.element_ty)
            matrix = tl.load(
                matrices + (row * WIDTH + cols)[None, :] * WIDTH + ins[:, None],
                fits[None, :] & (ins < WIDTH)[:, None],
                0.0,
            )
            sums = tl.dot(entered, matrix, sums, input_precision="ieee")
        if BIASED:
            sums += tl.load(biases + row * WIDTH + cols, fits, 0.0).to(tl.float32)[None, :]
        if KEEP:
            tl.store(inner + _places(row, rows, cols, batch, WIDTH), sums, mask)
        output = _activate(sums, BEHIND)
        if SHORTCUT:
            tl.debug_barrier()
            output += tl.load(mixed + _places(row * KEEP, rows, cols, batch, WIDTH), mask, 0.0).to(tl.float32)
        tl.store(outputs + _places(tl.load(nodes + row), rows, cols, batch, WIDTH), output, mask)
        tl.debug_barrier()

    last = _mix(
        weights, outputs, first, parents, num_rows - 1, rows, cols, batch, num_rows, num_slots, WIDTH, ROWS, COLS
    )
    tl.store(result + rows[:, None] * WIDTH + cols[None, :], last, mask)


@triton.jit(do_not_specialize=["batch"])
def walk_backward(
    gradient,  # [batch, width], of the mix that the last node reads
    roots,
    weights,
    suitable,  # [batch, rows, slots], boolean
    matrices,
    outputs,
    inner,
    mixed,
    through,  # [rows, batch, width], written: the gradient of what each row mixed, for "input" through its module alone
    around,  # the same past the module, written; room for one row unless PROTECT is "input"
    grad_roots,  # [batch, roots, width], written
    grad_inner,  # [rows - 1, batch, width], written
    grad_weights,  # [batch, rows, slots], written where there is a slot
    root_nodes,
    nodes,
    first,
    parents,
    reader_first,
    reader_rows,
    reader_slots,
    batch,
    num_roots,
    num_rows,
    num_slots,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROOT_BEHIND: tl.constexpr,
    BEFORE: tl.constexpr,
    BEHIND: tl.constexpr,
    SHORTCUT: tl.constexpr,
    PROTECT: tl.constexpr,
):
    """Walks the nodes the other way; the readers of a node are ``reader_first[node]`` to ``reader_first[node + 1]``."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside, fits = rows < batch, cols < WIDTH
    mask = inside[:, None] & fits[None, :]
    APART: tl.constexpr = 1 if PROTECT == "input" else 0

    total = tl.load(gradient + rows[:, None] * WIDTH + cols[None, :], mask, 0.0).to(tl.float32)
    places = _places(num_rows - 1, rows, cols, batch, WIDTH)
    tl.store(through + places, total, mask)
    if APART:
        tl.store(around + places, tl.zeros((ROWS, COLS), tl.float32), mask)
    _weigh(
        total,
        weights,
        outputs,
        grad_weights,
        first,
        parents,
        num_rows - 1,
        rows,
        cols,
        batch,
        num_rows,
        num_slots,
        WIDTH,
    )
    tl.debug_barrier()

    for step in range(num_rows - 1):
        row = num_rows - 2 - step
        node = tl.load(nodes + row)
        total = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            outs = start + tl.arange(0, BLOCK)
            keep = inside[:, None] & (outs < WIDTH)[None, :]
            live, every = _send(
                through, around, weights, suitable, reader_first, reader_rows, reader_slots,
                node, rows, outs, batch, num_rows, num_slots, PROTECT, ROWS, BLOCK, WIDTH,
            )  # fmt: skip
            if SHORTCUT:
                tl.store(around + _places(row * APART, rows, outs, batch, WIDTH), every, keep)
            block = _places(row, rows, outs, batch, WIDTH)
            x = tl.load(inner + block, keep, 0.0).to(tl.float32)
            part = _derive(live, x, BEHIND).to(matrices.dtype.element_ty)
            tl.store(grad_inner + block, part, keep)
            matrix = tl.load(
                matrices + (row * WIDTH + outs)[:, None] * WIDTH + cols[None, :],
                (outs < WIDTH)[:, None] & fits[None, :],
                0.0,
            )
            total = tl.dot(part, matrix, total, input_precision="ieee")
        places = _places(row, rows, cols, batch, WIDTH)
        if BEFORE != "identity":
            total = _derive(total, tl.load(mixed + places, mask, 0.0).to(tl.float32), BEFORE)
        if APART:
            tl.store(through + places, total, mask)
        if SHORTCUT:
            tl.debug_barrier()
            total += tl.load(around + _places(row * APART, rows, cols, batch, WIDTH), mask, 0.0).to(tl.float32)
        if not APART:
            tl.store(through + places, total, mask)
        _weigh(
            total, weights, outputs, grad_weights, first, parents, row, rows, cols, batch, num_rows, num_slots, WIDTH
        )
        tl.debug_barrier()

    for root in range(num_roots):
        node = tl.load(root_nodes + root)
        live, every = _send(
            through, around, weights, suitable, reader_first, reader_rows, reader_slots,
            node, rows, cols, batch, num_rows, num_slots, PROTECT, ROWS, COLS, WIDTH,
        )  # fmt: skip
        places = (rows * num_roots + root)[:, None] * WIDTH + cols[None, :]
        x = tl.load(roots + places, mask, 0.0).to(tl.float32)
        tl.store(grad_roots + places, _derive(live, x, ROOT_BEHIND), mask)
