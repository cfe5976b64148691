"""The training loop of pretraining and fine-tuning: steps, clock and checkpoints."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.checkpoints.checkpoint import Checkpoint
from model.training.config import TrainingConfig
from model.training.dataset import Augmentation, Batch, DataLoader, ImageDataset
from model.training.distributed import DistributedContext
from model.training.memory_loader import DeviceBatch, MemoryLoader
from model.training.optimiser import WeightAverage, learning_rate, set_learning_rate
from model.training.progress import TrainingProgress, format_duration
from model.training.run import Run, RunError
from model.training.signals import Interrupted, catch_signals

COLUMNS = ("step", "epoch", "images", "loss", "lr", "grad_norm", "images_per_s", "seconds")
HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}

log = logging.getLogger(__name__)


class DivergedError(RunError):
    """The loss is not a finite number any more."""


class Task(ABC):
    """The model and the data of one kind of training.

    Attributes:
        objective: takes the arrays of a `Batch` as tensors and gives the loss, a scalar; on this process's device.
        optimiser: updates the objective's parameters; each of its groups has a `scale` of the learning rate.
        dataset: the images.
        augmentation: makes a training sample of an image.
        images: the record of the images for the run's recipe.json.
        description: the images in a few words.
        measures: names of the columns that `report` adds to metrics.csv.
        report_minutes: minutes from one report to the next.
        reports_start: whether there is a report before the first step, too.
        ema: decay per step of the weights' moving average, which is then served in their place; 0 for none.
    """

    objective: nn.Module
    optimiser: torch.optim.Optimizer
    dataset: ImageDataset
    augmentation: Augmentation
    images: Mapping[str, Any]
    description: str
    measures: Sequence[str] = ()
    report_minutes: float
    reports_start: bool = False
    ema: float = 0

    @abstractmethod
    def checkpoint(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """The checkpoint to serve, of the objective's state."""

    @abstractmethod
    def report(self, step: int, checkpoint: Checkpoint, run: Run, progress: TrainingProgress) -> str:
        """Shows or measures the model's quality after `step` steps; the main process alone calls it.

        Returns:
            The measurement in a few words, to be shown beside the loss; nothing if there is none.
        """


class Trainer:
    """Trains the model of a task, and saves its state, so that it can go on after an interruption."""

    def __init__(
        self, task: Task, config: TrainingConfig, context: DistributedContext, run: Run, progress: TrainingProgress
    ) -> None:
        """Prepares the first step.

        Args:
            task: model and data.
            config: length, speed and arithmetic of the run; one of the bounds is set.
            context: this process among the others.
            run: the run's folder.
            progress: shows how far the run is.
        """
        self.step = 0
        self.seconds = 0.0
        self._task = task
        self._config = config
        self._context = context
        self._run = run
        self._progress = progress
        self._average = WeightAverage(task.objective, task.ema) if task.ema else None
        self._window = _Window()
        self._measurement = ""
        self._recent_losses: deque[float] = deque(maxlen=config.log_steps)
        half = HALF_PRECISION.get(resolve_precision(config, context.device))
        self._autocast = torch.autocast(context.device.type, half or torch.bfloat16, enabled=half is not None)
        # The range of float16 is too small for gradients.
        self._scaler = torch.amp.GradScaler(context.device.type, enabled=half is torch.float16)
        self._compute_loss = self._wrap(task.objective)

    def fit(self, loader: DataLoader | MemoryLoader) -> None:
        """Trains to the end of the schedule; `loader` gives this process's part of each step.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the state was saved.
            DivergedError: the loss is not finite; the last checkpoint is whole.
            OSError: a file cannot be written, as when the disk is full; the last checkpoint is whole.
        """
        context, config = self._context, self._config
        if context.is_main:
            self._run.open_metrics(COLUMNS, self.step)
            if self._task.reports_start and self.step == 0:
                self._report()
        first_step = self.step
        batches: Iterator[Batch | DeviceBatch] = loader.batches(first_step)
        saved = reported = start = time.monotonic()
        seconds_before = self.seconds
        with catch_signals() as signal:
            while True:
                elapsed = seconds_before + time.monotonic() - start
                # All processes must agree when to stop: the main process has the clock, any of them may get a signal.
                self.seconds, stop = context.all_max(elapsed if context.is_main else 0, signal.number)
                done = self._share_done()
                if stop or done >= 1:
                    break
                self._take_step(next(batches), done)
                if not context.is_main:
                    continue
                now = time.monotonic()
                if self.step % config.log_steps == 0:
                    self._log(seconds_before + now - start)
                self._show(seconds_before + now - start, (self.step - first_step) / (now - start))
                if now - reported >= 60 * self._task.report_minutes:
                    self._report()
                    reported = now
                if now - saved >= 60 * config.save_minutes:
                    self._save()
                    saved = now
        if context.is_main:
            if self._window.steps and not stop:  # the last steps of the schedule, fewer than a line of metrics has
                self._log(self.seconds)
            # A finished run that is resumed keeps its file of weights, which may hold a whitening by now.
            if self.step > first_step or first_step == 0:
                self._save()
            self._report()
            self._run.close()
        if stop:
            raise Interrupted(int(stop), f"{self.step} steps")

    def describe(self) -> str:
        """What the run will do, in one sentence."""
        c, context = self._config, self._context
        number = self._total_steps() if c.minutes is None else 0
        steps = f"{number} step{'' if number == 1 else 's'}" if number else f"{c.minutes:g} minutes of steps"
        passes = f" ({c.epochs:g} epochs)" if c.epochs is not None else ""
        processes = f", {context.world_size} processes" if context.world_size > 1 else ""
        return (
            f"{self._task.description}; {steps} of {c.batch_size} images{passes}, learning rate {c.lr:g}, "
            f"{resolve_precision(c, context.device)} on {context.device.type}{processes}; "
            f"the run is in {self._run.folder}"
        )

    def resume(self) -> None:
        """Goes on from the state that the run saved last, or begins anew if it was ended before that."""
        state = self._run.load_state()
        if state is None:
            log.warning("%s was ended before its first checkpoint: it begins anew", self._run.folder)
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self._task.objective.load_state_dict(state["objective"])
        self._task.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self._window = _Window(**state["window"])
        if self._average:
            self._average.load_state_dict(state["average"])

    def checkpoint(self) -> Checkpoint:
        """The weights as they are to be served: the moving average if there is one."""
        state = self._task.objective.state_dict()
        return self._task.checkpoint(self._average.apply_to(state) if self._average else state)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "objective": self._task.objective.state_dict(),
            "optimiser": self._task.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "window": vars(self._window),
        }
        self._run.save(state, self.checkpoint())

    def _report(self) -> None:
        self._measurement = self._task.report(self.step, self.checkpoint(), self._run, self._progress)

    def _wrap(self, objective: nn.Module) -> Callable[..., Tensor]:
        """Distributes the objective over the processes, and compiles it if the config says so, by default on CUDA."""
        device, compiled = self._context.device, self._config.compile
        wrapped: nn.Module = objective
        if self._context.world_size > 1:
            devices = [device.index] if device.type == "cuda" else None
            wrapped = DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)
        if compiled or (compiled is None and device.type == "cuda"):
            return cast(Callable[..., Tensor], torch.compile(wrapped))
        return wrapped

    def _share_done(self) -> float:
        """The share of the schedule that is done, from 0 to 1."""
        if self._config.minutes is not None:
            return min(1.0, self.seconds / (60 * self._config.minutes))
        return min(1.0, self.step / self._total_steps())

    def _total_steps(self) -> int:
        if self._config.steps is not None:
            return self._config.steps
        return max(1, round((self._config.epochs or 0) * len(self._task.dataset.paths) / self._config.batch_size))

    def _take_step(self, batch: Batch | DeviceBatch, done: float) -> None:
        c, device, optimiser = self._config, self._context.device, self._task.optimiser
        # The rate in the middle of the step, so that neither the first step nor the last has a rate of zero.
        half_step = 0.5 / self._total_steps() if c.minutes is None else 0.0
        self._window.lr = learning_rate(done + half_step, c.lr, c.min_lr, c.warmup)
        set_learning_rate(optimiser, self._window.lr)
        with self._autocast:
            loss = self._compute_loss(*(torch.as_tensor(array).to(device, non_blocking=True) for array in batch))
        optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimiser)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, c.clip or float("inf"))
        self._scaler.step(optimiser)
        self._scaler.update()
        if self._average:
            self._average.update()
        self.step += 1
        self._recent_losses.append(self._context.mean(loss.detach()))
        self._window.add(self._recent_losses[-1], float(norm))
        if not math.isfinite(self._window.loss):
            resume = "--resume goes on from the last checkpoint; " if self._run.is_saved else ""
            raise DivergedError(
                f"the loss is not a finite number any more (step {self.step}): {resume}"
                "a lower --lr or a longer --warmup may help"
            )

    def _log(self, seconds: float) -> None:
        window, batch_size = self._window, self._config.batch_size
        rate = window.steps * batch_size / max(seconds - window.since, 1e-9)
        loss = window.loss / window.steps
        self._run.log(
            {
                "step": self.step,
                "epoch": self.step * batch_size / len(self._task.dataset.paths),
                "images": self.step * batch_size,
                "loss": loss,
                "lr": window.lr,
                "grad_norm": window.norm / window.steps,
                "images_per_s": rate,
                "seconds": seconds,
            }
        )
        self._window = _Window(since=seconds)

    def _show(self, seconds: float, steps_per_s: float) -> None:
        """Shows the mean loss of the last steps, the speed and the time left."""
        c, done = self._config, self._share_done()
        left = 60 * c.minutes - seconds if c.minutes is not None else (self._total_steps() - self.step) / steps_per_s
        loss = sum(self._recent_losses) / len(self._recent_losses)
        figures = [f"step {self.step}{'' if c.minutes is not None else f' of {self._total_steps()}'}"]
        figures += [f"loss {loss:.4f}", *([self._measurement] if self._measurement else ())]
        figures += [f"{steps_per_s * c.batch_size:.1f} images/s", f"{format_duration(left)} left"]
        self._progress.show(done, "  ".join(figures))


def resolve_precision(config: TrainingConfig, device: torch.device) -> str:
    """The arithmetic of matrix products on `device`: the config's, or the default for the device."""
    if config.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return config.precision


class _Window:
    """Sums over the steps since the last line of metrics."""

    def __init__(
        self, since: float = 0.0, steps: int = 0, loss: float = 0.0, norm: float = 0.0, lr: float = 0.0
    ) -> None:
        self.since, self.steps, self.loss, self.norm, self.lr = since, steps, loss, norm, lr

    def add(self, loss: float, norm: float) -> None:
        self.steps += 1
        self.loss += loss
        self.norm += norm
