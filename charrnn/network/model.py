"""The model: embedding, stacked cells and head; the hidden state goes in and comes out.

It is one recurrence with shared weights: for every character x_t

    e_t = embedding[x_t]
    s_t = cell(e_t, s_{t-1})            (each layer reads the one below)
    logits_t = head(h_t)

so the same weights serve a text of any length, and cutting a text into windows
changes nothing as long as the state is carried from one to the next. (In bf16 torch's
operators round the state between windows; our loops do not.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from charrnn.compute.kernels import dropout, linear
from charrnn.config import ModelConfig
from charrnn.network.cells import CELLS, Cell, State

#: One state per layer: (h_BH,) for RNN and GRU, (h_BH, c_BH) for the LSTM.
Hidden = tuple[State, ...]


def detach(hidden: Hidden) -> Hidden:
    """Return the hidden state without its history: the edge of a truncated-BPTT window."""
    return tuple(tuple(part_BH.detach() for part_BH in state) for state in hidden)


def take_lanes(hidden: Hidden, lanes: Sequence[int]) -> Hidden:
    """Return the hidden state of some lanes; a lane may be taken more than once."""
    return tuple(tuple(part_BH[list(lanes)] for part_BH in state) for state in hidden)


class CharModel(nn.Module):
    """A character-level language model.

    Dropout acts on every layer's output on its way up (Zaremba, Sutskever, Vinyals 2014),
    never on the recurrence or the embedding; ``weight_drop`` acts on the recurrent
    weights, inside the cells.

    Args:
        config: the model's shape.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        widths = [config.embedding] + [config.hidden] * (config.layers - 1)
        cell = CELLS[config.cell]
        self.cells = nn.ModuleList(
            cell(width, config.hidden, weight_drop=config.weight_drop) for width in widths
        )
        self.head = nn.Linear(config.hidden, config.vocabulary)
        nn.init.zeros_(self.head.bias)
        #: Type that the products are computed in; the weights themselves stay in float32.
        self.compute_dtype = torch.float32

    def set_dropout(self, dropout: float, weight_drop: float) -> None:
        """Change the shares that are dropped in training, in the config too."""
        self.config = replace(self.config, dropout=dropout, weight_drop=weight_drop)
        for cell in self.layers():
            cell.weight_drop = weight_drop

    def layers(self) -> list[Cell]:
        """Return the cells from the lowest layer to the highest, typed as ``Cell``."""
        return [cell for cell in self.cells if isinstance(cell, Cell)]

    def initial_hidden(self, lanes: int) -> Hidden:
        """Return the zero state of ``lanes`` lanes, in the type of the weights.

        It is not in ``compute_dtype``: what a window adds to a cell would often be lost in the
        8 significant bits of bf16. (torch's operators round it in any case.)
        """
        return tuple(cell.initial_state(lanes) for cell in self.layers())

    def forward(self, x_TB: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Predict the character after each of ``x_TB``.

        Args:
            x_TB: ids, T characters in each of B lanes.
            hidden: the state before the first character; None: zero.

        Returns:
            logits_TBV, and the state after the last character.
        """
        out_TBH, after = self.read(x_TB, hidden)
        return self.predict(out_TBH), after

    def read(self, x_TB: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Do ``forward`` without the head.

        Returns:
            The highest layer's out_TBH, and the state after the last character.
        """
        if hidden is None:
            hidden = self.initial_hidden(x_TB.shape[1])
        out, which_TB = self._embed(x_TB)
        after = []
        for layer, (cell, state) in enumerate(zip(self.layers(), hidden, strict=True)):
            if layer and self._drops():
                out = dropout(out, self.config.dropout)
            out, state = cell(out, state, which_TB)
            which_TB = None  # above the lowest layer every step has its own input
            after.append(state)
        return out, tuple(after)

    def _embed(self, x_TB: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the lowest layer's inputs, and which of them each time step reads (None: its own).

        On a CPU the cost of a cell's input product grows with the number of inputs, so each
        distinct character of the window is one input. Other devices would have to wait for the
        count.
        """
        which_TB = None
        if x_TB.device.type == "cpu":
            x_TB, which_TB = torch.unique(x_TB, return_inverse=True)
        return self.embedding(x_TB).to(self._dtype()), which_TB

    def predict(self, out_TBH: Tensor, masks: int = 1, temperature: float = 1.0) -> Tensor:
        """Return the head's logits_TBV for the highest layer's outputs.

        Args:
            out_TBH: outputs that ``read`` returned, of any T.
            masks: M. With dropout in training, predict under each of M dropout masks and return
                logits of M x T steps, one mask after the other. That takes hardly more time: the
                head is the smallest layer.
            temperature: divides the logits.
        """
        if self._drops():
            out_TBH = dropout(out_TBH, self.config.dropout, masks)
        if temperature == 1:
            return linear(out_TBH, self.head.weight, self.head.bias)
        # Dividing the head's weights is cheaper than dividing the logits: there are fewer.
        return linear(out_TBH, self.head.weight / temperature, self.head.bias / temperature)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.head.weight.device

    def parameter_count(self) -> int:
        """Return the number of trained weights."""
        return sum(weight.numel() for weight in self.parameters())

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the matrix products for one character."""
        head = self.head.weight.numel()
        return head + sum(cell.multiply_adds() for cell in self.layers())

    def _drops(self) -> bool:
        return self.training and self.config.dropout > 0

    def _dtype(self) -> torch.dtype:
        weight = self.head.weight.dtype
        return self.compute_dtype if weight == torch.float32 else weight


class _Unfilled(TorchFunctionMode):
    """Skip what loads torch's compiler on the meta device.

    A normal draw does and, in torch 2.11, the sign that an orthogonal initialisation takes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.__name__ in {"normal_", "sign"}:  # normal_: nn.init's and Tensor's
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def outline(config: ModelConfig) -> CharModel:
    """Return a model on the meta device: its weights have shapes but no data, and take no memory.

    Raises:
        RuntimeError: no tensor can have such a shape.
    """
    with torch.device("meta"), _Unfilled():
        return CharModel(config)
