"""The loop that pretraining and fine-tuning share: steps, clock, checkpoints, signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.checkpoints.checkpoint import Checkpoint
from model.training.config import TrainingConfig
from model.training.dataset import Batch, Loader
from model.training.distributed import DistributedContext
from model.training.optimiser import Average, learning_rate, set_learning_rate
from model.training.progress import TrainingProgress
from model.training.run import Run, RunError

COLUMNS = ("step", "epoch", "images", "loss", "lr", "grad_norm", "images_per_s", "seconds")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


class DivergedError(RunError):
    """The loss is no longer a number."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved; `number` says which."""

    def __init__(self, number: int, step: int) -> None:
        """Of signal `number`, after `step` steps."""
        super().__init__(f"ended by {signal.Signals(number).name} after {step} steps: --resume goes on from there")
        self.number = number


class Trainer:
    """Takes an objective down its gradient and keeps what is needed to go on after an interruption."""

    def __init__(
        self,
        objective: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: TrainingConfig,
        place: DistributedContext,
        run: Run,
        images: int,
        checkpoint: Callable[[dict[str, Tensor]], Checkpoint],
        ema: float = 0,
    ) -> None:
        """Makes the step.

        Args:
            objective: a batch's arrays as tensors (`Batch`) -> the loss, a scalar; on this process's device.
            optimiser: over the objective's parameters; each group has a `scale` of the learning rate.
            schedule: how long, how fast; one of its bounds is set.
            place: this process among its peers.
            run: the folder.
            images: number of images in one epoch.
            checkpoint: the objective's state -> what is served.
            ema: decay of the average of the weights that is kept in place of the weights; 0 for none.
        """
        self.step = 0
        self.seconds = 0.0
        self._objective = objective
        self._optimiser = optimiser
        self._schedule = schedule
        self._place = place
        self._run = run
        self._images = images
        self._checkpoint = checkpoint
        self._average = Average(objective, ema) if ema else None
        self._signal = 0
        self._window = _Window()
        half = HALVES.get(precision_of(schedule, place.device))
        self._autocast = torch.autocast(place.device.type, half or torch.bfloat16, enabled=half is not None)
        # fp16 alone has too little range for gradients
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=half is torch.float16)
        self._forward = self._wrapped(objective)

    def fit(
        self, loader: Loader, progress: TrainingProgress, preview: Callable[[], None], every_minutes: float
    ) -> None:
        """Trains to the end of the schedule.

        Args:
            loader: gives this process's part of each step.
            progress: told how it goes.
            preview: called now and then, by the leading process alone.
            every_minutes: how often.

        Raises:
            Interrupted: by SIGTERM or SIGINT, the state saved.
            DivergedError: the loss is not a number; what was saved last is whole.
            OSError: the disk is full, or the like; what was saved last is whole.
        """
        if self._place.is_main:
            self._run.open_metrics(COLUMNS, self.step)
        batches = loader.batches(self.step)
        saved = previewed = began = time.monotonic()
        spent = self.seconds
        with self._signals_noted():
            while True:
                self.seconds, stop = self._place.all_max(
                    spent + time.monotonic() - began if self._place.is_main else 0, self._signal
                )
                done = self._done()
                if stop or done >= 1:
                    break
                self._take_step(next(batches), done)
                now = time.monotonic()
                if self.step % self._schedule.log_steps == 0 and self._place.is_main:
                    self._log(spent + now - began, progress)
                if self._place.is_main:
                    if now - previewed >= 60 * every_minutes:
                        preview()
                        previewed = now
                    if now - saved >= 60 * self._schedule.save_minutes:
                        self.save()
                        saved = now
        if self._place.is_main:
            self.save()
            preview()
            self._run.close()
        if stop:
            raise Interrupted(int(stop), self.step)

    def served(self) -> Checkpoint:
        """The weights as they are to be served: averaged if there is an average."""
        state = self._objective.state_dict()
        return self._checkpoint(self._average.over(state) if self._average else state)

    def save(self) -> None:
        """Keeps the state in the run's folder."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "objective": self._objective.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "window": vars(self._window),
        }
        self._run.save(state, self.served())

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `save` kept."""
        self.step, self.seconds = state["step"], state["seconds"]
        self._objective.load_state_dict(state["objective"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self._window = _Window(**state["window"])
        if self._average:
            self._average.load_state_dict(state["average"])

    def _wrapped(self, objective: nn.Module) -> Callable[..., Tensor]:
        device, wanted = self._place.device, self._schedule.compile
        step: nn.Module = objective
        if self._place.size > 1:
            devices = [device.index] if device.type == "cuda" else None
            step = DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)
        compiled = wanted or (wanted is None and device.type == "cuda")
        return cast(Callable[..., Tensor], torch.compile(step) if compiled else step)

    def _done(self) -> float:
        """The share of the schedule that lies behind, from 0 to 1."""
        bound = self._schedule
        if bound.minutes is not None:
            return min(1.0, self.seconds / (60 * bound.minutes))
        return min(1.0, self.step / self._steps())

    def _steps(self) -> int:
        if self._schedule.steps is not None:
            return self._schedule.steps
        return max(1, round((self._schedule.epochs or 0) * self._images / self._schedule.batch_size))

    def _take_step(self, batch: Batch, done: float) -> None:
        s, device = self._schedule, self._place.device
        # in the middle of the step, so that neither the first nor the last one has a rate of zero
        half_step = 0.5 / self._steps() if s.minutes is None else 0.0
        self._window.lr = learning_rate(done + half_step, s.lr, s.min_lr, s.warmup)
        set_learning_rate(self._optimiser, self._window.lr)
        with self._autocast:
            loss = self._forward(*(torch.from_numpy(array).to(device, non_blocking=True) for array in batch))
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, s.clip or float("inf"))
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average:
            self._average.update()
        self.step += 1
        self._window.add(self._place.mean(loss.detach()), float(norm))
        if self._window.loss != self._window.loss:
            raise DivergedError(
                f"the loss is not a number any more (step {self.step}): --resume goes on from the last checkpoint; "
                "a lower --lr or a longer --warmup may help"
            )

    def _log(self, seconds: float, progress: TrainingProgress) -> None:
        window = self._window
        images = window.steps * self._schedule.batch_size
        rate = images / max(seconds - window.since, 1e-9)
        row = {
            "step": self.step,
            "epoch": self.step * self._schedule.batch_size / self._images,
            "images": self.step * self._schedule.batch_size,
            "loss": window.loss / window.steps,
            "lr": window.lr,
            "grad_norm": window.norm / window.steps,
            "images_per_s": rate,
            "seconds": seconds,
        }
        self._run.log(row)
        if self._schedule.minutes is not None:
            left = 60 * self._schedule.minutes - seconds
        else:
            left = (self._steps() - self.step) * self._schedule.batch_size / rate
        progress.show(self._done(), self.step, row["loss"], rate, left)
        self._window = _Window(since=seconds)

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            if self._signal:  # a second time: at once
                raise KeyboardInterrupt
            self._signal = number

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Window:
    """Sums over the steps since the last row of metrics."""

    def __init__(
        self, since: float = 0.0, steps: int = 0, loss: float = 0.0, norm: float = 0.0, lr: float = 0.0
    ) -> None:
        self.since, self.steps, self.loss, self.norm, self.lr = since, steps, loss, norm, lr

    def add(self, loss: float, norm: float) -> None:
        self.steps += 1
        self.loss += loss
        self.norm += norm


def precision_of(schedule: TrainingConfig, device: torch.device) -> str:
    """Arithmetic of the products on `device`."""
    if schedule.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return schedule.precision


def resumed(run: Run, trainer: Trainer, folder: Path) -> None:
    """Loads what the run in `folder` saved last, if it came that far."""
    state = run.state()
    if state is None:
        log.warning("%s was ended before its first checkpoint: it begins anew", folder)
    else:
        trainer.load(state)
