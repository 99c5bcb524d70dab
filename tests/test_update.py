from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from charrnn.compute import kernels
from charrnn.config import CellName, ModelConfig, OptimiserName, TrainConfig
from charrnn.network.capture import UpdateResult
from charrnn.network.model import CharModel, Hidden
from charrnn.network.optimiser import OPTIMISERS, MuonAdamW
from charrnn.network.update import Update, clip, window_loss
from charrnn.text.scanning import scan
from charrnn.text.stream import Batch, Lanes
from charrnn.text.vocabulary import Vocabulary
from tests.conftest import make_prose


class Setting:
    """A text of 103 characters in lanes, and a float64 model with its update.

    The learning rates are zero until a test sets them, so the weights stand still.
    """

    def __init__(
        self, folder: Path, cell: CellName, *, lanes: int, bptt: int, device: str = "cpu",
        **training: Any,
    ) -> None:  # fmt: skip
        path = folder / "text"
        path.write_text(make_prose(103))
        corpus = scan([str(path)])
        vocabulary = Vocabulary.from_counts(corpus.counts, "utf-8", 1)
        torch.manual_seed(5)
        shape = ModelConfig(cell=cell, vocabulary=vocabulary.size, layers=2, hidden=6, embedding=4)
        self.model = CharModel(shape).double().to(device)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(2)
        self.weights = list(self.model.parameters())
        config = TrainConfig(
            batch_size=lanes, bptt=bptt, lr=0.1, lr_adam=0.1, warmup_steps=0, steps=1, **training
        )
        part = corpus.part(0, corpus.characters)
        self.lanes = Lanes(part, vocabulary, lanes, bptt, config.loss_last)
        self.update = Update(self.model, MuonAdamW(self.model), config)
        self.length = 102 // lanes
        ids = torch.from_numpy(vocabulary.encode(make_prose(103)).astype("int64"))
        cuts = [(lane * self.length, (lane + 1) * self.length) for lane in range(lanes)]
        self.x_TB = torch.stack([ids[start:stop] for start, stop in cuts], dim=1)
        self.y_TB = torch.stack([ids[start + 1 : stop + 1] for start, stop in cuts], dim=1)

    def prices(self, start: int, stop: int, hidden: Hidden | None = None) -> Tensor:
        """Return -ln p of the lanes' predictions from ``start`` to ``stop``, by the definition."""
        logits_TBV, _ = self.model(self.x_TB[start:stop], hidden)
        p_TBV = logits_TBV.exp() / logits_TBV.exp().sum(dim=2, keepdim=True)
        price_TB: Tensor = -p_TBV.gather(2, self.y_TB[start:stop, :, None])[..., 0].log()
        return price_TB

    def state_before(self, time: int) -> Hidden:
        """Return the state before a time step of the pass, as a constant."""
        hidden = self.model.initial_hidden(self.x_TB.shape[1])
        with torch.no_grad():
            for x_B in self.x_TB[:time]:
                _, hidden = self.model(x_B[None], hidden)
        return hidden

    def gradient(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.weights))

    def last_gradient(self) -> list[Tensor]:
        return [weight.grad for weight in self.weights if weight.grad is not None]


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_window_as_long_as_the_lane_is_full_bptt(
    tmp_path: Path, cell: CellName, lanes: int
) -> None:
    setting = Setting(tmp_path, cell, lanes=lanes, bptt=102 // lanes, clip_norm=None)
    loss = setting.prices(0, setting.length).mean()
    gradient = setting.gradient(loss)
    first, second = islice(setting.lanes.batches(), 2)
    assert first.begins_epoch
    assert second.begins_epoch, "one window is one pass"
    result = setting.update(first)
    assert_close(result.loss, loss.detach())
    assert_close(setting.last_gradient(), gradient)
    assert_close(result.norm.item(), math.hypot(*(grad.norm().item() for grad in gradient)))


def test_gradients_stop_at_the_window_and_values_do_not(tmp_path: Path, cell: CellName) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=8, clip_norm=None)
    for index, batch in enumerate(islice(setting.lanes.batches(), setting.lanes.steps_per_epoch)):
        start = 8 * index
        stop = start + len(batch.x_TB)
        # What the window sees of its past is a constant ...
        truncated = setting.prices(start, stop, setting.state_before(start)).mean()
        gradient = setting.gradient(truncated)
        # ... with the value that the whole past gives it.
        uncut = setting.prices(0, stop)[start:].mean()
        assert_close(truncated, uncut)
        full = setting.gradient(uncut)
        result = setting.update(batch)
        assert_close(result.loss, truncated.detach())
        assert_close(setting.last_gradient(), gradient)
        for a, b in zip(gradient[:-2], full[:-2], strict=True):  # the head's do not reach back
            assert torch.allclose(a, b) == (start == 0)
        assert not result.loss.requires_grad, "keeping it would keep the whole window in memory"
        assert_close(setting.update.hidden, setting.state_before(stop))
        assert not any(part.requires_grad for state in setting.update.hidden for part in state)


def test_the_state_is_zero_where_a_pass_begins(tmp_path: Path, cell: CellName) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=8)
    steps_per_epoch = setting.lanes.steps_per_epoch
    losses = []
    for batch in islice(setting.lanes.batches(), 2 * steps_per_epoch):
        losses.append(setting.update(batch).loss.item())
        assert any(part.any() for state in setting.update.hidden for part in state)
    assert losses[:steps_per_epoch] == losses[steps_per_epoch:]


def test_a_state_that_is_reset_is_zero_before_every_window(tmp_path: Path, cell: CellName) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=8, clip_norm=None, reset_state=True)
    for index, batch in enumerate(islice(setting.lanes.batches(), setting.lanes.steps_per_epoch)):
        start = 8 * index
        loss = setting.prices(start, start + len(batch.x_TB)).mean()
        gradient = setting.gradient(loss)
        result = setting.update(batch)
        assert_close(result.loss, loss.detach())
        assert_close(setting.last_gradient(), gradient)


@pytest.mark.parametrize(("bptt", "last"), [(8, 3), (8, 8), (9, 1), (34, 5), (8, None)])
def test_loss_last_counts_every_prediction_once_with_its_context(
    tmp_path: Path, cell: CellName, bptt: int, last: int | None
) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=bptt, loss_last=last, clip_norm=None)
    stride = last or bptt
    counted_before = bptt - stride
    for index, batch in enumerate(islice(setting.lanes.batches(), setting.lanes.steps_per_epoch)):
        start = index * stride
        stop = start + len(batch.x_TB)
        prices_TB = setting.prices(start, stop, setting.state_before(start))
        loss = prices_TB[counted_before - start :].mean()
        gradient = setting.gradient(loss)
        result = setting.update(batch)
        assert batch.characters == 3 * (stop - counted_before)
        assert_close(result.loss, loss.detach())
        assert_close(setting.last_gradient(), gradient)
        counted_before = stop
    assert counted_before == setting.length


@pytest.mark.parametrize("last", [2, 5])
def test_the_head_reads_no_output_that_does_not_count(
    tmp_path: Path, cell: CellName, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def linear(x_TBK: Tensor, *weights: Tensor) -> Tensor:
        read.append(len(x_TBK))
        return kernels.linear(x_TBK, *weights)

    monkeypatch.setattr("charrnn.network.model.linear", linear)
    setting = Setting(tmp_path, cell, lanes=3, bptt=8, loss_last=last)
    batches = list(islice(setting.lanes.batches(), 3))
    for batch in batches:
        setting.update(batch)
    assert read == [batch.characters // 3 for batch in batches]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_after_what_is_no_number_no_weight_moves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: float,
    broken: str,
    optimiser: OptimiserName,
    device: str,
) -> None:
    def no_number(*window: Any, **named: Any) -> tuple[Tensor, Hidden]:
        loss, after = window_loss(*window, **named)
        if broken == "loss":
            return loss + number, after  # its gradient is finite
        loss.register_hook(lambda grad: grad * number)
        return loss, after

    setting = Setting(tmp_path, "lstm", lanes=3, bptt=17)
    setting.update.optimiser = OPTIMISERS[optimiser](setting.model, weight_decay=0.1)
    setting.update.device = torch.device(device)  # the tensors stay on the CPU

    def update(batch: Batch) -> UpdateResult:
        setting.update.optimiser.set_rates(0.02, 0.01)
        return setting.update._update(batch.x_TB, batch.y_TB, 17)

    before = [weight.detach().clone() for weight in setting.weights]
    first, second = islice(setting.lanes.batches(), 2)
    with monkeypatch.context() as patch:
        patch.setattr("charrnn.network.update.window_loss", no_number)
        result = update(first)
    assert bool(result.loss.isfinite()) == (broken != "loss")
    assert bool(result.norm.isfinite()) == (broken != "gradient")
    assert update(second).loss.isfinite()
    assert all(map(torch.equal, before, setting.weights))


class Recording:
    """Stands in for a CUDA graph on a CPU: a replay makes the recorded update."""

    def __init__(self) -> None:
        self.call: tuple[Any, ...] = ()
        nothing = torch.zeros((), dtype=torch.float64)
        self.held = UpdateResult(nothing, nothing.clone(), torch.zeros((), dtype=torch.bool))
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        result = UPDATE(*self.call)
        for name in ("loss", "norm", "clipped"):
            getattr(self.held, name).copy_(getattr(result, name))


UPDATE = Update._update


@pytest.fixture
def cuda_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """Let the GPU's code path run without a GPU; nothing is computed while it records."""
    cuda = Mock(CUDAGraph=Recording, stream=lambda _stream: nullcontext())
    cuda.default_generators = {None: Mock()}

    @contextmanager
    def graph(recording: Recording, stream: Mock) -> Iterator[None]:
        assert stream is cuda.Stream.return_value  # that of the eager updates
        cuda.recordings.append(recording)
        cuda.recording = recording
        try:
            yield
        finally:
            cuda.recording = None
            if cuda.failure is not None:
                raise cuda.failure

    def update(*call: Any) -> UpdateResult:
        if cuda.recording is None:
            return UPDATE(*call)
        if cuda.failure_within is not None:
            raise cuda.failure_within
        cuda.recording.call = call
        held: UpdateResult = cuda.recording.held
        return held

    cuda.graph, cuda.recordings, cuda.recording = graph, [], None
    cuda.failure = cuda.failure_within = None
    monkeypatch.setattr("charrnn.network.capture.torch.cuda", cuda)
    monkeypatch.setattr(Update, "_update", update)
    return cuda


class OnACpu(str):
    """The CPU, under a name that passes for a GPU's."""

    type, index = "cuda", None  # type: ignore[assignment]


def captured_setting(folder: Path, cell: CellName) -> Setting:
    """Return a setting whose update takes the GPU's code path, with all tensors on the CPU."""
    setting = Setting(folder, cell, lanes=3, bptt=7)
    setting.update.device = OnACpu("cpu")  # type: ignore[assignment]
    return setting


def fourteen_updates(setting: Setting) -> list[Tensor]:
    """Make updates that include a pass's last, shorter window and a change of dropout."""
    setting.update.optimiser.set_rates(0.02, 0.01)
    measured: list[Tensor] = []
    for number, batch in enumerate(islice(setting.lanes.batches(), 14)):
        if number == 9:
            setting.model.set_dropout(0.0, 0.3)
            setting.update.capture.forget()
        result = setting.update(batch)
        measured += [result.loss, result.norm, result.clipped]
    return [*measured, *setting.weights]


def assert_streams_waited(cuda: Mock, updates: int) -> None:
    """Check that the streams waited for each other, the side stream first, in every update."""
    side, current = cuda.Stream.return_value, cuda.current_stream.return_value
    cuda.Stream.assert_called_once_with()
    assert side.wait_stream.mock_calls == updates * [call(current)]
    assert current.wait_stream.mock_calls == updates * [call(side)]


def test_a_captured_update_is_the_eager_one(
    tmp_path: Path, cell: CellName, cuda_on_a_cpu: Mock
) -> None:
    eager = fourteen_updates(Setting(tmp_path, cell, lanes=3, bptt=7))
    setting = captured_setting(tmp_path, cell)
    assert all(map(torch.equal, fourteen_updates(setting), eager))
    assert setting.update.capture.failure is None
    assert [recording.replays for recording in cuda_on_a_cpu.recordings] == [5, 1]
    assert_streams_waited(cuda_on_a_cpu, 6)


@pytest.mark.parametrize(
    ("within", "message", "reason"),
    [(None, "no\nmore", "no"), (None, "", "no reason given"), ("not\nso", "no", "not")],
)
def test_where_no_graph_can_be_captured_updates_go_on(
    tmp_path: Path, cuda_on_a_cpu: Mock, within: str | None, message: str, reason: str
) -> None:
    eager = fourteen_updates(Setting(tmp_path, "lstm", lanes=3, bptt=7))
    setting = captured_setting(tmp_path, "lstm")
    cuda_on_a_cpu.failure = RuntimeError(message)
    cuda_on_a_cpu.failure_within = within and RuntimeError(within)
    assert all(map(torch.equal, fourteen_updates(setting), eager))
    assert setting.update.capture.failure == reason
    assert len(cuda_on_a_cpu.recordings) == 1
    assert_streams_waited(cuda_on_a_cpu, 3)
    cuda_on_a_cpu.set_stream.assert_called_once_with(cuda_on_a_cpu.current_stream.return_value)
    (generator,) = cuda_on_a_cpu.default_generators.values()
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state.return_value)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("clipping", [{}, {"clip_value": 0.01}, {"scale_norm": 0.1}])
def test_an_update_on_a_gpu_never_asks_what_it_has_computed(
    tmp_path: Path, cell: CellName, optimiser: OptimiserName, clipping: dict[str, Any]
) -> None:
    """A captured graph can hold neither what makes the host wait nor a CPU's tensor.

    The meta device takes the GPU's code paths and has no numbers to read.
    """
    setting = Setting(
        tmp_path, cell, lanes=3, bptt=7, device="meta", loss_last=4, clip_norm=None,
        dropout_masks=3, **clipping,
    )  # fmt: skip
    setting.model.set_dropout(0.2, 0.3)
    setting.update.optimiser = OPTIMISERS[optimiser](
        setting.model, weight_decay=0.1, decay_embedding=True
    )
    setting.update.device = torch.device("cuda")
    batch = next(setting.lanes.batches())
    result = setting.update._update(batch.x_TB.to("meta"), batch.y_TB.to("meta"), 4)
    assert result.loss.is_meta
    assert result.norm.is_meta
    assert all(gradient.is_meta for gradient in setting.last_gradient())
    with pytest.raises(RuntimeError, match="meta"):
        result.loss.item()


@pytest.mark.gpu
def test_gpu_captured_update_is_the_eager_one(tmp_path: Path, cell: CellName) -> None:
    """The updates include a pass's last, shorter window and what a plan changes."""
    eager, captured = (Setting(tmp_path, cell, lanes=3, bptt=7, device="cuda") for _ in range(2))
    eager.update.capture.failure = "not wanted"
    for setting in (eager, captured):
        setting.update.optimiser = MuonAdamW(setting.model, weight_decay=1.0, decay_embedding=True)
        for number, batch in enumerate(islice(setting.lanes.batches(), 24)):
            if number == 14:
                setting.update.optimiser.weight_decay = 3.0
                setting.update.config = replace(setting.update.config, loss_temperature=0.5)
                setting.update.capture.forget()
            setting.update.optimiser.set_rates(0.02 / (1 + number), 0.01 / (1 + number))
            setting.update(batch)
    assert captured.update.capture.failure is None
    assert captured.update.capture._graph is not None
    for ours, expected in zip(captured.weights, eager.weights, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_gpu_no_replay_moves_a_weight_after_what_is_no_number(
    tmp_path: Path, optimiser: OptimiserName
) -> None:
    setting = Setting(tmp_path, "lstm", lanes=3, bptt=7, device="cuda")
    setting.update.optimiser = OPTIMISERS[optimiser](setting.model, weight_decay=0.1)

    def update(batch: Batch) -> UpdateResult:
        setting.update.optimiser.set_rates(0.02, 0.01)
        return setting.update(batch)

    batches = setting.lanes.batches()
    for batch in islice(batches, 7):
        assert update(batch).loss.isfinite()
    assert setting.update.capture.failure is None
    assert setting.update.capture._graph is not None
    before = [weight.detach().clone() for weight in setting.weights]
    setting.update.hidden[0][0].fill_(math.nan)
    assert update(next(batches)).loss.isnan()
    losses = [update(batch).loss for batch in islice(batches, 4)]
    assert losses[-1].isfinite(), "a new pass begins from the zero state"
    assert all(map(torch.equal, before, setting.weights))


@pytest.mark.gpu
def test_gpu_every_replay_drops_other_units(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "lstm", lanes=3, bptt=7, device="cuda", dropout_masks=3)
    setting.model.set_dropout(0.5, 0.3)
    batch = replace(next(iter(setting.lanes.batches())), begins_epoch=True)
    losses = [setting.update(batch).loss.item() for _ in range(9)]
    assert setting.update.capture.failure is None
    assert setting.update.capture._graph is not None
    assert len(set(losses)) == 9


@pytest.mark.parametrize("counted", [7, 4])
def test_the_loss_is_the_mean_of_all_masks(
    tmp_path: Path, cell: CellName, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=7)
    model, hidden = setting.model, setting.state_before(5)
    model.set_dropout(0.5, 0.0)
    x_TB, y_TB = setting.x_TB[5:12], setting.y_TB[5:12]
    masks_MNBH = (torch.rand(3, counted, 3, 6) < 0.5).double()

    def masked(x_TBH: Tensor, share: float, masks: int | None = None) -> Tensor:
        assert share == 0.5
        if masks is None:
            return x_TBH  # between layers: only the masks before the head differ
        assert masks == 3
        return (x_TBH * masks_MNBH).flatten(0, 1)

    monkeypatch.setattr("charrnn.network.model.dropout", masked)
    out_NBH = model.read(x_TB, hidden)[0][-counted:]
    loss, _ = window_loss(model, x_TB, y_TB, hidden, counted, masks=3)
    each = [
        F.cross_entropy(
            (out_NBH * mask_NBH @ model.head.weight.T + model.head.bias).flatten(0, 1),
            y_TB[-counted:].flatten(),
        )
        for mask_NBH in masks_MNBH
    ]
    mean = torch.stack(each).mean()
    assert_close(loss, mean)
    assert_close(setting.gradient(loss), setting.gradient(mean))
    model.eval()
    scored, _ = window_loss(model, x_TB, y_TB, hidden, counted, masks=3)
    whole, _ = window_loss(model, x_TB, y_TB, hidden, counted)
    assert_close(scored, whole)


@pytest.mark.parametrize("masks", [1, 3])
def test_an_update_draws_as_many_masks_as_are_set(
    tmp_path: Path, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def dropout(x_TBH: Tensor, share: float, masks: int = 1) -> Tensor:
        drawn.append(masks)
        return kernels.dropout(x_TBH, share, masks)

    monkeypatch.setattr("charrnn.network.model.dropout", dropout)
    setting = Setting(tmp_path, "lstm", lanes=3, bptt=7, dropout_masks=masks)
    setting.model.set_dropout(0.5, 0.0)
    setting.update(next(setting.lanes.batches()))
    assert drawn == [1, masks], "one between the layers, and those before the head"


def test_the_temperature_divides_the_logits_of_the_loss_alone(
    tmp_path: Path, cell: CellName
) -> None:
    setting = Setting(tmp_path, cell, lanes=3, bptt=7, loss_temperature=0.8, clip_norm=None)
    model = setting.model
    torch.nn.init.normal_(model.head.bias)
    before = model(setting.x_TB)[0]
    logits_NV = (before[:7] / 0.8).flatten(0, 1)
    expected = F.cross_entropy(logits_NV, setting.y_TB[:7].flatten())
    gradient = setting.gradient(expected)
    model.eval()
    assert_close(model(setting.x_TB)[0], before)
    model.train()
    setting.update.optimiser.set_rates(0.0, 0.0)
    result = setting.update(next(setting.lanes.batches()))
    assert_close(result.loss, expected.detach())
    assert_close(setting.last_gradient(), gradient)


def gradients(scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = ((5, 3), (7,), (2, 3))
    return [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def flat(grads: list[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads])


class TestClip:
    @pytest.mark.parametrize("limit", [1e-6, 0.25, 3.0])
    def test_by_norm_keeps_the_direction_and_gives_the_length(self, limit: float) -> None:
        grads, before = gradients(), flat(gradients())
        norm, clipped = clip(grads, limit, None)
        after = flat(grads)
        assert norm.item() == pytest.approx(before.norm().item(), rel=1e-12)
        assert bool(clipped)
        assert after.norm().item() == pytest.approx(limit, rel=1e-9)
        assert torch.cosine_similarity(before, after, dim=0).item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("limits", [(100.0, None), (None, 100.0), (None, None)])
    def test_a_gradient_within_the_limit_stays(
        self, limits: tuple[float | None, float | None]
    ) -> None:
        grads = gradients()
        _, clipped = clip(grads, *limits)
        assert not bool(clipped)
        assert torch.equal(flat(grads), flat(gradients()))

    def test_a_gradient_at_the_limit_stays(self) -> None:
        norm = clip(gradients(), None, None)[0].item()
        largest = flat(gradients()).abs().max().item()
        for limits in ((norm, None, None), (None, largest, None), (None, None, norm)):
            grads = gradients()
            _, clipped = clip(grads, *limits)
            assert not bool(clipped)
            assert torch.equal(flat(grads), flat(gradients()))

    def test_a_gradient_just_beyond_the_limit_is_cut(self) -> None:
        """By value, only one entry of one weight is beyond it."""
        norm = clip(gradients(), None, None)[0].item()
        largest = flat(gradients()).abs().max().item()
        for limits in ((0.999 * norm, None, None), (None, 0.999 * largest, None)):
            grads = gradients()
            _, clipped = clip(grads, *limits)
            assert bool(clipped)
            assert not torch.equal(flat(grads), flat(gradients()))

    def test_by_value_cuts_every_entry_by_itself(self) -> None:
        grads = gradients()
        norm, clipped = clip(grads, None, 0.5)
        expected = [max(-0.5, min(0.5, value)) for value in flat(gradients()).tolist()]
        assert flat(grads).tolist() == expected
        assert bool(clipped)
        assert norm.item() == pytest.approx(flat(gradients()).norm().item())

    @pytest.mark.parametrize("wanted", [1e-6, 0.25, 300.0])
    def test_scaled_to_a_norm_whatever_it_was(self, wanted: float) -> None:
        grads, before = gradients(), flat(gradients())
        norm, clipped = clip(grads, None, None, wanted)
        assert norm.item() == pytest.approx(before.norm().item(), rel=1e-12)
        assert bool(clipped) == (wanted < 300)
        torch.testing.assert_close(flat(grads), before * (wanted / before.norm()))

    @pytest.mark.parametrize("limits", [(1.0, None, None), (None, None, 1.0)])
    def test_a_gradient_of_zero_stays_zero(
        self, limits: tuple[float | None, float | None, float | None]
    ) -> None:
        grads = gradients(0.0)
        norm, clipped = clip(grads, *limits)
        assert norm.item() == 0
        assert not bool(clipped)
        assert not flat(grads).any()

    @pytest.mark.parametrize("size", [0.0, 1e-24, 1e-30])
    @pytest.mark.parametrize("wanted", [1.0, 5.0, 1e38])
    def test_a_gradient_that_float32_cannot_measure_is_not_scaled(
        self, size: float, wanted: float
    ) -> None:
        """The squares underflow to 0 or nearly so: a scale factor from them would be infinite."""
        grads = [torch.full((3, 5), size), torch.full((7,), -size)]
        before = flat(grads)
        clip(grads, None, None, wanted)
        assert torch.equal(flat(grads), before)

    def test_a_factor_beyond_float32_is_its_largest(self) -> None:
        grads = [torch.full((3, 5), 1e-13), torch.full((7,), -1e-13)]
        expected = flat(grads) * torch.finfo(torch.float32).max
        clip(grads, None, None, 1e38)
        assert torch.equal(flat(grads), expected)

    @pytest.mark.parametrize(
        ("training", "limit"),
        [
            ({"clip_norm": 0.01}, 0.01),
            ({"clip_norm": None}, math.inf),
            ({"clip_norm": None, "scale_norm": 0.01}, 0.01),
        ],
    )
    def test_an_update_clips_what_the_optimiser_sees(
        self, tmp_path: Path, training: dict[str, Any], limit: float
    ) -> None:
        setting = Setting(tmp_path, "lstm", lanes=3, bptt=8, **training)
        result = setting.update(next(setting.lanes.batches()))
        assert bool(result.clipped) == (result.norm.item() > limit)
        length = min(limit, result.norm.item())
        assert flat(setting.last_gradient()).norm().item() == pytest.approx(length)
        assert result.norm.item() > 0.01

    def test_an_update_cuts_the_entries_that_the_optimiser_sees(self, tmp_path: Path) -> None:
        setting = Setting(tmp_path, "lstm", lanes=3, bptt=8, clip_norm=None, clip_value=1e-3)
        result = setting.update(next(setting.lanes.batches()))
        assert bool(result.clipped)
        assert flat(setting.last_gradient()).abs().max().item() == 1e-3
