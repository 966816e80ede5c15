"""How the programs of one launch hand results to each other: tickets, arrivals, flags.

Where not all programs have a slot of the GPU at once, work is taken from a ticket, channel block by channel block:
whatever a program waits for was started before it, by programs that hold a slot already, or needs at most chunks - 1
slots more. So any launch ends on `chunks` free slots, whatever the size of its grid and the order in which the hardware
starts it; on a GPU of several dies, among which the hardware deals programs out, each needs as many. Launches on
several streams starve each other only if together they can hold all slots while incomplete, which is ruled out where a
strategy is chosen (choice/space.py, waits_safely). Programs wait for their own block of channels, never for the grid.

counters (int32) are all zero before and after a launch: the next ticket, the number of finished blocks, the gate of
every block, then the arrivals at every span of chunks, if there are spans (partials.py); SPACING apart, so that blocks
do not contend. Whoever completes a count sets it back. Chunks count themselves at their block's gate as they arrive; at
2 BLOCK_K or more, taken as an unsigned number, it is open, and those who go through bring it round to zero.
"""

import triton
import triton.language as tl

SPACING = tl.constexpr(64)
"""256 bytes."""

EVERYONE_MERGES = tl.constexpr(128)
"""BLOCK_C^2 BLOCK_K up to which every program merges its block itself; of more the last to arrive publishes it."""


@triton.jit
def take_ticket(exchange):
    """The number of programs of this launch that took one before."""
    ticket = tl.atomic_add(exchange.counters, 1, sem="relaxed")
    if ticket == tl.num_programs(0) - 1:
        tl.atomic_xchg(exchange.counters, 0, sem="relaxed")
    return ticket


@triton.jit
def my_items(exchange, AT_ONCE: tl.constexpr):
    """Begin, end and step of the items of a resident program: one, or, where all programs run at once, perhaps many.

    AT_ONCE is how many items, 2 for any number, a program has where all run at once; otherwise 0.
    """
    begin = tl.program_id(0)
    if AT_ONCE == 0 and exchange.BLOCK_K > 1:
        begin = take_ticket(exchange)
    if AT_ONCE > 1:
        end, step = exchange.blocks * exchange.chunks, tl.num_programs(0)
    else:
        end, step = begin + 1, 1
    return begin, end, step


def is_cdna(_semantic=None):
    """Whether a kernel is being compiled for one of AMD's CDNA GPUs."""
    options = _semantic and _semantic.builder.options
    return tl.constexpr(bool(options) and options.backend_name == "hip" and options.arch.startswith("gfx9"))


is_cdna.__triton_builtin__ = True


@triton.jit
def everyone_stored():
    """Return when all that the threads of this program stored is seen by whoever sees what one of them releases next.

    A barrier promises so much, but not on CDNA: a wave comes to it with stores under way, and waits for its own alone.
    """
    if is_cdna():
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)", "=v,0", [tl.program_id(0)], tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def is_last(counter, expected):
    """Whether `expected` programs are here, this one the last: it then sees all that they stored before."""
    everyone_stored()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1
    if last:
        tl.atomic_xchg(counter, 0, sem="relaxed")
    return last


@triton.jit
def last_block(exchange):
    """Whether this is the last block of channels to be finished."""
    return is_last(exchange.counters + SPACING, exchange.blocks)


@triton.jit
def last_chunk(item, arriving, exchange):
    """Whether this is the last of its block's chunks, or spans, to arrive, of so many."""
    return is_last(gate_of(item.block, exchange), arriving)


@triton.jit
def last_of_span(item, exchange):
    """Whether this is the last chunk of its span to arrive."""
    span = item.chunk // exchange.SPAN
    spans = exchange.BLOCK_K // exchange.SPAN
    arrivals = gate_of(exchange.blocks, exchange) + SPACING * (item.block * spans + span)
    return is_last(arrivals, tl.minimum(exchange.SPAN, exchange.chunks - span * exchange.SPAN))


@triton.jit
def gate_of(block, exchange):
    """The gate of a block; of the block behind the last, where they end."""
    return exchange.counters + SPACING * (2 + block)


@triton.jit
def passing(number, exchange):
    """What so many chunks add to a gate as they go through; BLOCK_K of them bring it from 2 BLOCK_K to 2^32, zero."""
    return tl.cast(number, tl.int64) * (2**32 // exchange.BLOCK_K - 2)


@triton.jit
def release(block, waiting, exchange):
    """Open the gate to so many chunks of a block: they see all that this program stored or saw."""
    everyone_stored()
    absent = passing(exchange.BLOCK_K - waiting, exchange)
    tl.atomic_add(gate_of(block, exchange), (absent + 2 * exchange.BLOCK_K).to(tl.int32), sem="release")


@triton.jit
def wait(item, shares, exchange):
    """Return when the gate of this chunk's block is open; go through for so many of the BLOCK_K that have to."""
    gate = gate_of(item.block, exchange)
    seen = 0  # one compare-and-swap: LLVM makes of two a loop that AMD's waves do not leave (Triton 3.5 to 3.7)
    while (seen >= 0) & (seen < 2 * exchange.BLOCK_K):  # from the middle on the gate counts as a negative number
        seen = tl.atomic_cas(gate, 0, 0, sem="acquire")
    tl.atomic_add(gate, passing(shares, exchange).to(tl.int32), sem="relaxed")


@triton.jit
def meet(item, exchange):
    """Return when all chunks of a block have come here: each then sees what the others stored.

    The last to come opens the gate, whoever it is; the first chunk counts for those that BLOCK_K is more than chunks.
    """
    everyone_stored()
    is_first = item.chunk == 0
    arriving = tl.where(is_first, 2 * exchange.BLOCK_K - exchange.chunks + 1, 1)
    tl.atomic_add(gate_of(item.block, exchange), arriving, sem="release")
    wait(item, tl.where(is_first, exchange.BLOCK_K - exchange.chunks + 1, 1), exchange)


def everyone_merges(exchange, view, _semantic=None):
    """Whether every resident program merges its block's partial results itself."""
    few = view.BLOCK_C * view.BLOCK_C * exchange.BLOCK_K <= EVERYONE_MERGES and exchange.SPAN >= exchange.BLOCK_K
    return tl.constexpr(exchange.BLOCK_K == 1 or few)


everyone_merges.__triton_builtin__ = True


@triton.jit
def dataflow_item(exchange, window):
    """Block, chunk, and whether this program's item is of the second half, which waits for the block's first.

    A window is so many blocks. The first halves of window w + 1 come before the second halves of window w: what an item
    waits for has a lower ticket, and the L2 still has it when it is read again. The list is as if every window were
    full: items of blocks that do not exist do nothing.
    """
    ticket = take_ticket(exchange)
    size = window * exchange.chunks
    group, item = ticket // size, ticket % size
    windows = tl.cdiv(exchange.blocks, window)
    second = (group > 0) & (group % 2 == 0)
    number = tl.where(second, group // 2 - 1, (group + 1) // 2)
    final = group == 2 * windows - 1
    second = second | final
    number = tl.where(final, windows - 1, number)
    return number * window + item // exchange.chunks, item % exchange.chunks, second
