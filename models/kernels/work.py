"""What the other threads of a team do: see :mod:`models.kernels.team`."""

from models.kernels.attention import attend_additively_share, attend_by_dot_share
from models.kernels.choice import choose_share
from models.kernels.gates import apply_gru_share, apply_lstm_share
from models.kernels.jit import kernel
from models.kernels.products import multiply_share
from models.kernels.team import (
    ADDITIVE_ATTENTION,
    CHOICE,
    DOT_ATTENTION,
    GRU_GATES,
    KIND,
    LSTM_GATES,
    PRODUCTS,
    TAKEN,
    add,
    claim,
    finish,
    load,
    wait_for_work,
)


@kernel
def _do_share(board, share):
    kind = load(board + 8 * KIND)
    if kind == PRODUCTS:
        multiply_share(board, share)
    elif kind == GRU_GATES:
        apply_gru_share(board, share)
    elif kind == LSTM_GATES:
        apply_lstm_share(board, share)
    elif kind == DOT_ATTENTION:
        attend_by_dot_share(board, share)
    elif kind == ADDITIVE_ATTENTION:
        attend_additively_share(board, share)
    elif kind == CHOICE:
        choose_share(board, share)


@kernel
def work_along(board, number):
    """Take shares of whatever comes, until nothing has come for a while.

    Args:
        board: its address.
        number: of this thread among those that share, from 1.
    """
    while wait_for_work(board):
        share = claim(board, number)
        while share >= 0:
            add(board + 8 * TAKEN, 1)
            _do_share(board, share)
            share = finish(board, number)
