"""One step of the recurrence written out in plain numbers and compared with the model.

A step is a linear map of the input and the state, followed by a nonlinearity:

    RNN   a  = W e + U h + b            h' = tanh(a)
    LSTM  i, f, o = σ(W e + U h + b)    g  = tanh(W e + U h + b), each with rows of its own
          c' = f ∘ c + i ∘ g            h' = o ∘ tanh(c')
    GRU   r, z = σ(W e + U h + b)       n  = tanh(W e + b + r ∘ (U h + d))
          h' = (1 - z) ∘ n + z ∘ h

where e is the embedding of the character (or the h' of the layer below). At the top are the
logits y = V h' + v and the probabilities p = softmax(y). Here these lines are computed as they
stand, in numpy and float64, from the numbers in a checkpoint: no torch, no kernel, no window.
That the model's fast path gives the same results proves that it computes nothing else.

The recurrences are those of Elman (1990), Gers, Schmidhuber and Cummins (2000) and Cho et al.
(2014), in one notation. In place of tanh, Elman uses the logistic function, and Gers et al. a
shifted and scaled one. The GRU is torch's and cuDNN's: its reset gate multiplies U h plus a bias
of its own; in Cho et al. it multiplies h, before the product: n = tanh(W e + U (r ∘ h)).

Axis letters: T time, V vocabulary, H hidden, E embedding, G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from charrnn.config import CellName
from charrnn.network.cells import GRU, Cell
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import Vocabulary

#: Characters of the text computed both ways, and the most logits at them, T x V: each takes some
#: 40 bytes, and a vocabulary of 65,536 symbols or less sets no limit.
CHARACTERS, LOGITS = 256, 1 << 24
#: Number of units (at the top, of symbols) whose values are shown.
SHOWN = 4

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quantity:
    """The values of one line of the equations at the last character."""

    layer: int
    """Counted from 1."""
    name: str
    equation: str
    units: tuple[float, ...]
    """Its values in the first units; for y and p, at the likeliest next symbols."""
    model: tuple[float, ...] | None
    """The same values from the model; None for what the model does not return."""


@dataclass(frozen=True)
class Step:
    """The step at the last character, and how closely many such steps match the model's."""

    read: str
    """The character that this step reads."""
    quantities: tuple[Quantity, ...]
    """In the order of their computation."""
    likeliest: tuple[str, ...]
    """The likeliest next characters, likeliest first; a symbol that is no character is U+FFFD."""
    characters: int
    """Number of steps from the zero state that were computed both ways."""
    state_difference: float
    """Largest difference in any unit of any state after the last of them."""
    logits_difference: float
    """Largest difference in any logit at any of them."""
    written_nats: float
    """Nats per character by the equations, over all these characters but the first."""
    model_nats: float
    """The same by the model."""


@torch.inference_mode()
def write_out(model: CharModel, text: str, ids: NDArray[np.int64], vocabulary: Vocabulary) -> Step:
    """Compute the steps at the last characters of a text by the equations and by the model.

    Args:
        model: in evaluation mode.
        text: at least two characters, one per symbol.
        ids: the model's symbols for it, [T].
        vocabulary: the model's.
    """
    ids_T = ids[-max(2, min(CHARACTERS, LOGITS // vocabulary.size)) :]
    ids_T1 = torch.from_numpy(ids_T)[:, None].to(model.device)
    logits_T1V, hidden = model(ids_T1)
    logits_TV = _array(logits_T1V[:, 0])

    layers = model.layers()
    embedding_VE, head_VH = _array(model.embedding.weight), _array(model.head.weight)
    head_bias_V = _array(model.head.bias)
    states = [[np.zeros(cell.hidden) for _ in cell.states] for cell in layers]
    steps = [_STEPS[model.config.cell](cell) for cell in layers]
    written_TV = np.zeros_like(logits_TV)
    lines: dict[tuple[int, str], tuple[str, Array]] = {}  # of the latest step
    for t, symbol in enumerate(ids_T.tolist()):
        x_E = embedding_VE[symbol]
        for number, (cell, step) in enumerate(zip(layers, steps, strict=True), start=1):
            for name, equation, value_H in step(x_E, states[number - 1]):
                lines[number, name] = equation, value_H
            # The line of a state's next value has its name and a prime.
            states[number - 1] = [lines[number, name + "'"][1] for name in cell.states]
            x_E = states[number - 1][0]
        written_TV[t] = head_VH @ x_E + head_bias_V

    of_model = {
        (number, name + "'"): _array(part_BH[0])
        for number, (cell, state) in enumerate(zip(layers, hidden, strict=True), start=1)
        for name, part_BH in zip(cell.states, state, strict=True)
    }
    quantities = [
        Quantity(
            *key, equation, _first(value_H), _first(of_model[key]) if key in of_model else None
        )
        for key, (equation, value_H) in lines.items()
    ]
    likeliest = np.argsort(-written_TV[-1], kind="stable")[:SHOWN]
    y_V, model_V = written_TV[-1], logits_TV[-1]
    for name, equation, own_V, other_V in (
        ("y", "V h' + v", y_V, model_V),
        ("p", "softmax(y)", _softmax(y_V), _softmax(model_V)),
    ):
        shown = (_first(values_V[likeliest]) for values_V in (own_V, other_V))
        quantities.append(Quantity(len(layers), name, equation, *shown))
    return Step(
        read=text[-1],
        quantities=tuple(quantities),
        likeliest=tuple(vocabulary.decode([symbol]) for symbol in likeliest.tolist()),
        characters=len(ids_T),
        state_difference=max(
            float(np.abs(lines[key][1] - value_H).max()) for key, value_H in of_model.items()
        ),
        logits_difference=float(np.abs(written_TV - logits_TV).max()),
        written_nats=_nats(written_TV, ids_T),
        model_nats=_nats(logits_TV, ids_T),
    )


#: Name, equation and value of one line of the equations.
_Line = tuple[str, str, Array]


def _rnn(cell: Cell) -> Callable[[Array, list[Array]], list[_Line]]:
    W_HE, U_HH, b_H = _weights(cell)

    def step(e_E: Array, state: list[Array]) -> list[_Line]:
        a_H = W_HE @ e_E + U_HH @ state[0] + b_H
        return [("a", "W e + U h + b", a_H), ("h'", "tanh(a)", np.tanh(a_H))]

    return step


def _lstm(cell: Cell) -> Callable[[Array, list[Array]], list[_Line]]:
    W_GE, U_GH, b_G = _weights(cell)

    def step(e_E: Array, state: list[Array]) -> list[_Line]:
        h_H, c_H = state
        i_H, f_H, g_H, o_H = np.split(W_GE @ e_E + U_GH @ h_H + b_G, 4)
        i_H, f_H, g_H, o_H = _sigmoid(i_H), _sigmoid(f_H), np.tanh(g_H), _sigmoid(o_H)
        after_H = f_H * c_H + i_H * g_H
        return [
            ("i", "σ(W_i e + U_i h + b_i)", i_H),
            ("f", "σ(W_f e + U_f h + b_f)", f_H),
            ("g", "tanh(W_g e + U_g h + b_g)", g_H),
            ("o", "σ(W_o e + U_o h + b_o)", o_H),
            ("c'", "f ∘ c + i ∘ g", after_H),
            ("h'", "o ∘ tanh(c')", o_H * np.tanh(after_H)),
        ]

    return step


def _gru(cell: Cell) -> Callable[[Array, list[Array]], list[_Line]]:
    W_GE, U_GH, b_G = _weights(cell)
    assert isinstance(cell, GRU)
    d_H = _array(cell.bias_recurrent)

    def step(e_E: Array, state: list[Array]) -> list[_Line]:
        (h_H,) = state
        input_G, recurrent_G = W_GE @ e_E + b_G, U_GH @ h_H
        (x_r, x_z, x_n), (u_r, u_z, u_n) = np.split(input_G, 3), np.split(recurrent_G, 3)
        r_H, z_H = _sigmoid(x_r + u_r), _sigmoid(x_z + u_z)
        n_H = np.tanh(x_n + r_H * (u_n + d_H))
        return [
            ("r", "σ(W_r e + U_r h + b_r)", r_H),
            ("z", "σ(W_z e + U_z h + b_z)", z_H),
            ("n", "tanh(W_n e + b_n + r ∘ (U_n h + d))", n_H),
            ("h'", "(1 - z) ∘ n + z ∘ h", (1 - z_H) * n_H + z_H * h_H),
        ]

    return step


_STEPS: dict[CellName, Callable[[Cell], Callable[[Array, list[Array]], list[_Line]]]] = {
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
}


def _weights(cell: Cell) -> tuple[Array, Array, Array]:
    return _array(cell.weight_input), _array(cell.weight_recurrent), _array(cell.bias)


def _sigmoid(x: Array) -> Array:
    y: Array = 0.5 * (1 + np.tanh(0.5 * x))  # 1 / (1 + exp(-x)) without overflow
    return y


def _softmax(y: Array) -> Array:
    powers = np.exp(y - y.max())
    p: Array = powers / powers.sum()
    return p


def _array(tensor: Tensor) -> Array:
    result: Array = tensor.detach().cpu().double().numpy()
    return result


def _first(values: Array) -> tuple[float, ...]:
    return tuple(values[:SHOWN].tolist())


def _nats(logits_TV: Array, ids_T: NDArray[np.int64]) -> float:
    """Return the mean -ln p of each character but the first, given those before it."""
    logits, targets = torch.from_numpy(logits_TV[:-1]), torch.from_numpy(ids_T[1:])
    return float(F.cross_entropy(logits, targets))
