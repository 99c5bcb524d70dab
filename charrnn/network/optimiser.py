"""The update rules: Muon and AdamW side by side, AdamW alone, plain gradient descent.

By default Muon updates the recurrence's matrices and AdamW the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces a
matrix's momentum by the nearest semi-orthogonal matrix, so that every direction
of the gradient moves the weights by the same amount. Here one matrix is a gate's
[W U], which acts on [x; h]: gates are independent of each other, but within a gate
W x and U h are added. It is cut into bands of rows, each orthogonalised on its own:
the loss is the same, in half the time or less (all measured in docs/diary.md). The
rows are then scaled by what would give their U parts norm 1 on average, however wide
the input, if the rows had norm 1; after three iterations they have some 1.4. What goes
against the sign of the latest gradient is left out, except in a plain RNN
(``cautious``).

torch's own Muon takes each parameter whole. AdamW is written here too: its rates and
step count are tensors, so that the update can be captured as a graph, and its state
is saved in a checkpoint by name.

Axis letters: N matrices, K bands of all gates, R rows of a matrix or band, C columns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from charrnn.compute.device import multiplies_bf16
from charrnn.compute.passes import Passes, passes
from charrnn.config import OptimiserName
from charrnn.network.model import CharModel

#: Coefficients a, b, c of the successive quintics (Amsel, Persson, Musco, Gower 2025, "The Polar
#: Express", algorithm 1). Each quintic is optimal for the range that the ones before it leave of
#: singular values from 0.001 to 1. Three bring them to [0.13, 1.87], which is enough here, and
#: better than applying the Muon post's quintic three times (docs/diary.md).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
#: Muon's momentum; AdamW's decay rates for the running means of gradients and of their squares.
MOMENTUM, BETAS = 0.95, (0.9, 0.99)
#: The quintics are made for singular values up to 1: rounding must not push any above.
CUSHION = 1.01
#: The share of Muon's moves that have the gradient's sign: 0.59 to 0.61 with each cell, from the
#: hundredth update to the last. The others are left out (docs/diary.md).
AGREEING = 0.605
#: Most rows in a band. A band of r rows and C columns costs r (2C + r) multiply-adds per row, so
#: a square matrix in two halves costs 0.42 of the whole. A plain RNN of 512 units has only one
#: such matrix, and learns worse in bands of 128 rows; in bands of 171 (now 176) it does not.
BAND = 192
#: The rows of a larger band are rounded up to a multiple of this, for the processor's fast kernels.
_GRAIN = 16


def orthogonalise(matrices_NRC: Tensor, band: int) -> Tensor:
    """Return the (nearly) semi-orthogonal factors of N matrices, all at once.

    Args:
        matrices_NRC: N matrices of R rows and C columns; R at most C costs least.
        band: the most rows that are made orthogonal to each other, up to the next multiple
            of 16. A matrix is cut into as few bands as possible; the last one may have fewer
            rows than the others.

    Returns:
        A tensor of the same shape; each band keeps its singular vectors.
    """
    count, rows, columns = matrices_NRC.shape
    height = band_height(rows, band)
    # The last band is padded with zero rows, which stay zero and change no others.
    x = F.pad(matrices_NRC, (0, 0, 0, -rows % height)).reshape(-1, height, columns)
    x = newton_schulz(x / (x.norm(dim=(1, 2), keepdim=True) * CUSHION + 1e-12))
    return x.reshape(count, -1, columns)[:, :rows]


def band_height(rows: int, band: int) -> int:
    """Return how many rows each band of a matrix has but the last, if none has more than ``band``.

    There may be up to the next multiple of 16.
    """
    bands = -(-rows // band)
    height = -(-rows // bands)
    return height + -height % _GRAIN if bands > 1 and height > _GRAIN else height


def newton_schulz(x: Tensor) -> Tensor:
    """Push all singular values of matrices [N, R, C], each of norm at most 1, towards 1.

    Newton-Schulz iteration: X <- aX + (bA + cA²)X where A = XXᵀ.
    """
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def cautious(moves: Tensor, grads: Tensor) -> Tensor:
    """Return moves without those that do not have the gradient's sign, and the others scaled up.

    Source: Liang, Chen, Liu, Liu 2024, "Cautious Optimizers", arXiv:2411.16085; there what is left
    is divided by the share of it, which here hardly changes (``AGREEING``).
    """
    return torch.where(moves * grads > 0, moves / AGREEING, 0.0)


class Optimiser(ABC):
    """An update rule for all weights of a model, with its state as named tensors.

    Everything that changes from step to step is a tensor (learning rates and step
    count too), so that a CUDA graph can hold the update and a checkpoint the state.
    Only on a CPU is a tensor's value read back into Python, for C.

    Args:
        model: the model whose weights are updated.
        weight_decay: decoupled decay of the recurrence's matrices, multiplied by ``lr``.
        decay_embedding: whether embedding and head decay at the same rate.

    Attributes:
        copies: tensors of each weight's size that an update needs: the weight, its gradient, its
            moments, work space.
        lr: learning rate of the recurrence's matrices.
        lr_adam: learning rate of the rest.
    """

    copies: ClassVar[int]

    def __init__(
        self, model: CharModel, *, weight_decay: float = 0.0, decay_embedding: bool = False
    ) -> None:
        self.weight_decay = weight_decay
        #: The names of W and U of each layer.
        self._layers = [
            (f"cells.{index}.weight_input", f"cells.{index}.weight_recurrent")
            for index in range(len(model.layers()))
        ]
        weights: dict[str, Tensor] = dict(model.named_parameters())
        self._matrices = {name: weights.pop(name) for names in self._layers for name in names}
        self._others = weights
        self._decaying = [*self._matrices.values()]
        if decay_embedding:
            self._decaying += [model.embedding.weight, model.head.weight]
        self._like = model.head.weight
        device = self._like.device
        self.lr = torch.zeros((), device=device)
        self.lr_adam = torch.zeros((), device=device)
        self._state: dict[str, Tensor] = {}

    def set_rates(self, lr: float, lr_adam: float) -> None:
        """Set the next update's learning rates, of the matrices and of the rest."""
        self.lr.fill_(lr)
        self.lr_adam.fill_(lr_adam)

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight from its ``.grad``."""
        if self.weight_decay:
            torch._foreach_mul_(self._decaying, 1 - self.lr * self.weight_decay)
        self._update()

    @abstractmethod
    def _update(self) -> None:
        """Move the weights, to which weight decay is already applied."""

    def state(self) -> dict[str, Tensor]:
        """Return the state's tensors by name (the tensors themselves, not copies)."""
        return self._state

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Load a state that ``state`` returned.

        Raises:
            ValueError: a tensor is missing, unknown, or has the wrong shape.
        """
        for name in sorted(self._state.keys() ^ tensors.keys()):
            raise ValueError(
                f"{'missing' if name in self._state else 'unknown'} optimiser state {name}"
            )
        for name, tensor in self._state.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(
                    f"optimiser state {name} is {list(tensors[name].shape)}, the run needs "
                    f"{list(tensor.shape)}"
                )
            tensor.copy_(tensors[name])


class SGD(Optimiser):
    """Plain gradient descent, without a state."""

    copies = 3

    def _update(self) -> None:
        for weights, rate in ((self._matrices, self.lr), (self._others, self.lr_adam)):
            for weight, grad in zip(weights.values(), _grads(weights.values()), strict=True):
                weight.sub_(grad * rate)


class AdamW(Optimiser):
    """AdamW (Loshchilov, Hutter 2019) for all weights."""

    copies = 5

    def __init__(
        self, model: CharModel, *, weight_decay: float = 0.0, decay_embedding: bool = False
    ) -> None:
        super().__init__(model, weight_decay=weight_decay, decay_embedding=decay_embedding)
        self._state["updates"] = torch.zeros((), device=self.lr.device)
        for name, weight in self._adam_weights().items():
            self._state[f"mean.{name}"] = torch.zeros_like(weight)
            self._state[f"square.{name}"] = torch.zeros_like(weight)

    def _adam_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that AdamW moves."""
        return {**self._matrices, **self._others}

    def _update(self) -> None:
        named = self._adam_weights()
        weights, grads = list(named.values()), _grads(named.values())
        means = [self._state[f"mean.{name}"] for name in named]
        squares = [self._state[f"square.{name}"] for name in named]
        beta1, beta2 = BETAS
        updates = self._state["updates"].add_(1)
        correction1, correction2 = 1 - beta1**updates, (1 - beta2**updates).sqrt()
        lr, lr_adam = self.lr / correction1, self.lr_adam / correction1
        rates = [lr if name in self._matrices else lr_adam for name in named]
        compiled = passes(self._like, (torch.float32,))
        if compiled is not None:
            correction = float(correction2)
            for tensors, rate in zip(
                zip(grads, means, squares, weights, strict=True), rates, strict=True
            ):
                compiled.adam(*tensors, BETAS, correction, float(rate))
            return
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        for weight, mean, square, rate in zip(weights, means, squares, rates, strict=True):
            # In place: with a large vocabulary each copy is as large as embedding or head.
            move = square.sqrt().div_(correction2).add_(1e-8)
            weight.sub_(torch.div(mean, move, out=move).mul_(rate))


class MuonAdamW(AdamW):
    """Muon for the matrices of the recurrence, AdamW for the rest."""

    def __init__(
        self, model: CharModel, *, weight_decay: float = 0.0, decay_embedding: bool = False
    ) -> None:
        super().__init__(model, weight_decay=weight_decay, decay_embedding=decay_embedding)
        for name, weight in self._matrices.items():
            self._state[f"momentum.{name}"] = torch.zeros_like(weight)
        self._product_dtype = _product_dtype(model.head.weight)
        # It makes a plain RNN, which has no gates, learn worse (docs/diary.md).
        self._cautious = any(cell.gate_names for cell in model.layers())

    def _adam_weights(self) -> Mapping[str, Tensor]:
        return self._others

    def _update(self) -> None:
        compiled = passes(self._like, (torch.float32,))
        if compiled is None:
            self._update_matrices()
        else:
            self._update_matrices_in_c(compiled)
        super()._update()

    def _update_matrices(self) -> None:
        weights = list(self._matrices.values())
        grads = _grads(weights)
        moments = [self._state[f"momentum.{name}"] for name in self._matrices]
        torch._foreach_lerp_(moments, grads, 1 - MOMENTUM)
        nesterov = dict(
            zip(self._matrices, torch._foreach_lerp(grads, moments, MOMENTUM), strict=True)
        )
        for w, u in self._layers:
            joined = torch.cat([nesterov[w], nesterov[u]], dim=1).to(self._product_dtype)
            hidden, columns = nesterov[u].shape[1], joined.shape[1]
            orthogonal = orthogonalise(joined.view(-1, hidden, columns), BAND).to(weights[0].dtype)
            move = orthogonal.flatten(0, 1) * (self.lr * math.sqrt(columns / hidden))
            if self._cautious:
                both = _grads([self._matrices[w], self._matrices[u]])
                move = cautious(move, torch.cat(both, dim=1))
            inputs = self._matrices[w].shape[1]
            self._matrices[w].sub_(move[:, :inputs])
            self._matrices[u].sub_(move[:, inputs:])

    def _update_matrices_in_c(self, compiled: Passes) -> None:
        """Do the same, but with one pass before and one after the products."""
        for names in self._layers:
            weights = [self._matrices[name] for name in names]
            grads, moments = _grads(weights), [self._state[f"momentum.{name}"] for name in names]
            hidden = weights[1].shape[1]
            bands_KRC = compiled.muon_gather(
                grads, moments, band_height(hidden, BAND),
                MOMENTUM, CUSHION, self._product_dtype,
            )  # fmt: skip
            rate, signs = float(self.lr) * math.sqrt(bands_KRC.shape[2] / hidden), None
            if self._cautious:
                rate, signs = rate / AGREEING, grads
            compiled.muon_move(weights, signs, newton_schulz(bands_KRC), rate)


OPTIMISERS: dict[OptimiserName, type[Optimiser]] = {"muon": MuonAdamW, "adamw": AdamW, "sgd": SGD}


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Return the type for the orthogonalisation: bf16 where the hardware multiplies it.

    The iteration corrects its own rounding errors, so bf16 is enough (Jordan et al. 2024).
    It took a quarter off the time of an update of an LSTM of 256 units (docs/diary.md).
    """
    if weight.dtype != torch.float32:
        return weight.dtype
    return torch.bfloat16 if multiplies_bf16(weight.device) else torch.float32


def _grads(weights: Iterable[Tensor]) -> list[Tensor]:
    grads = [weight.grad for weight in weights]
    assert all(grad is not None for grad in grads), "step() before backward()"
    return [grad for grad in grads if grad is not None]
