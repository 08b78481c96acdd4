"""The one training loop: steps, schedule, validation, best checkpoint, resuming.

A run's folder is its checkpoint folder; everything else about the run lies in ``run/`` below
it: ``train.log``, figures, samples and pictures (:mod:`training.curves`), and ``state.pt``,
from which a killed run goes on to the same weights as if it had not been killed.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.averaging import AveragedWeights
from training.curves import Curves
from training.distributed import Processes
from training.interruption import InterruptedRunError, StopRequests
from training.optimization import (
    autocast_dtype,
    learning_rate_factor,
    make_optimizer,
    precision_name,
)
from training.preset import Optimization
from training.progress import Progress
from training.resuming import (
    STATE_FILE,
    RunError,
    by_process,
    changes,
    random_state,
    require_a_common_beginning,
    restore_random_state,
    write_state,
)
from training.task import AnyBatch, Task

LOGGER = logging.getLogger("training")


@dataclass
class _Window:
    """Sums since the last line of the log."""

    likelihood: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Trainer:
    """One run.

    Attributes:
        task: what is trained.
        settings: of the loop.
        device: where.
        run_dir: the folder ``run/`` of the checkpoint.
        record: what a saved state must agree with to be resumed (the preset).
        save_best: writes the checkpoint.
        show_progress: whether to draw a progress bar.
        processes: that train together. The first alone validates, logs and writes.
    """

    task: Task
    settings: Optimization
    device: torch.device
    run_dir: Path
    record: dict[str, Any]
    save_best: Callable[[Progress], None]
    show_progress: bool = True
    processes: Processes = field(default_factory=Processes)
    progress: Progress = field(default_factory=Progress)
    _curves: Curves = field(init=False)  # of the first process

    def __post_init__(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(self.task.model, self.settings)
        self._dtype = autocast_dtype(self.settings, self.device)
        decay = self.settings.average_decay
        self._average = AveragedWeights(self.task.model, decay) if decay else None
        self._window = _Window()
        self._resume()
        require_a_common_beginning(
            self.processes, self.task.model, self.record, self.progress.step, self._precision
        )
        if self.processes.is_first:
            self._curves = Curves(self.run_dir, self.progress.step)

    def run(self, stop_after_steps: int | None = None) -> None:
        """Train to the last step, or for so many more steps.

        Raises:
            RunError: the loss is no longer a number, or the disk refuses the state.
            InterruptedRunError: SIGINT or SIGTERM came; the state is saved.
            LostProcessError: another process has ended.
        """
        last = self.settings.steps
        if stop_after_steps is not None:
            last = min(last, self.progress.step + stop_after_steps)
        LOGGER.info(
            "training %.2f M parameters on %s%s in %s from step %d to %d",
            sum(p.numel() for p in self.task.model.parameters()) / 1e6,
            self.device,
            f" by {self.processes.count} processes" if self.processes.count > 1 else "",
            self._dtype or torch.float32,
            self.progress.step,
            self.settings.steps,
        )
        self.task.model.train()
        try:
            with (
                StopRequests() as stop,
                logging_redirect_tqdm(),
                tqdm(
                    total=self.settings.steps,
                    initial=self.progress.step,
                    unit="step",
                    disable=None if self.show_progress and self.processes.is_first else True,
                    dynamic_ncols=True,
                ) as bar,
            ):
                while self.progress.step < last:
                    self._epoch(last, bar, stop)
                if received := self.processes.agree_on_signal(stop.received):
                    raise InterruptedRunError(self.progress.step, received)
        finally:
            if self.processes.is_first:
                self._curves.close()

    def _epoch(self, last: int, bar: "tqdm[Any]", stop: StopRequests) -> None:
        progress = self.progress
        for batch in islice(self.task.batches(progress.epoch), progress.batch, None):
            if progress.step >= last:
                break
            self._update(batch)
            progress.batch += 1
            bar.update()
            if progress.step % self.settings.log_every_steps == 0 and self.processes.is_first:
                self._log(bar)
            is_last = progress.step == self.settings.steps
            if progress.step % self.settings.validate_every_steps == 0 and not is_last:
                self._validate()
            if progress.step % self.settings.save_every_steps == 0 and not is_last:
                self.save_state()
            if not is_last and (received := self.processes.agree_on_signal(stop.received)):
                self.save_state()
                raise InterruptedRunError(progress.step, received)
        else:
            self._end_epoch()
        if progress.step >= self.settings.steps:
            self._validate()
            self.save_state()

    def _end_epoch(self) -> None:
        progress = self.progress
        progress.train_perplexity = _perplexity(progress.epoch_likelihood, progress.epoch_tokens)
        progress.epoch_likelihood, progress.epoch_tokens = 0.0, 0
        batches, progress.batch = progress.batch, 0
        progress.epoch += 1
        # Epochs shorter than the way from one validation to the next are seen by those.
        is_validated = not progress.step % self.settings.validate_every_steps
        is_validated |= progress.step == self.settings.steps
        is_long = batches >= self.settings.validate_every_steps
        if self.processes.is_first and is_long and not is_validated:
            with self._averaged():
                self._show_samples()

    def _averaged(self) -> AbstractContextManager[None]:
        """Where the average of the weights is what the model computes with, if there is one."""
        return self._average.in_place() if self._average else nullcontext()

    def _update(self, batch: AnyBatch) -> None:
        began = time.perf_counter()
        factor = learning_rate_factor(self.settings, self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        likelihood, tokens = self._accumulate_gradients(batch)
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), self.settings.clip_norm)
        self._require_finite("loss", likelihood)
        self._require_finite("gradient's norm", float(norm))
        self.optimizer.step()
        seconds = time.perf_counter() - began
        progress, window = self.progress, self._window
        progress.step += 1
        if self._average:
            self._average.update(progress.step)
        progress.tokens += tokens
        progress.seconds += seconds
        progress.epoch_likelihood += likelihood
        progress.epoch_tokens += tokens
        window.likelihood += likelihood
        window.tokens += tokens
        window.seconds += seconds

    def _accumulate_gradients(self, batch: AnyBatch) -> tuple[float, int]:
        """Gradients of the whole batch; its negative log-likelihood (nats) and target tokens."""
        self.optimizer.zero_grad()
        likelihood, tokens = 0.0, 0
        if batch is not None:
            with torch.autocast(
                self.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None
            ):
                loss = self.task.loss(batch)
            loss.objective.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            likelihood, tokens = float(loss.negative_log_likelihood), loss.tokens
        all_likelihood, all_tokens = self.processes.sum([likelihood, tokens])
        self.processes.sum_gradients(list(self.task.model.parameters()), tokens / all_tokens)
        return all_likelihood, int(all_tokens)

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"the {name} is {value} at step {self.progress.step}: lower "
                "training.learning_rate and begin anew; a checkpoint written before is kept"
            )

    def _log(self, bar: "tqdm[Any]") -> None:
        window, self._window = self._window, _Window()
        figures = {
            "train_loss": window.likelihood / window.tokens,
            "train_perplexity": _perplexity(window.likelihood, window.tokens),
            "tokens_per_second": window.tokens / window.seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self._curves.add(self.progress.step, figures)
        bar.set_postfix_str(
            f"loss {figures['train_loss']:.3f}, perplexity {figures['train_perplexity']:.2f}, "
            f"{figures['tokens_per_second']:.0f} tokens/s",
            refresh=False,
        )

    def _validate(self) -> None:
        if not self.processes.is_first:
            return
        with self._averaged():
            self._measure()
        self._curves.draw()

    def _measure(self) -> None:
        figures = self.task.validate()
        progress = self.progress
        for name, value in figures.items():
            self._require_finite(f"validation {name}", value)
        if figures:
            self._curves.add(
                progress.step, {f"validation_{name}": value for name, value in figures.items()}
            )
            loss = figures["loss"]
        else:
            loss = self._training_loss()
        # Between two ends of epochs the training loss is the same: the later weights are better.
        is_lower = loss < progress.best_loss or (not figures and loss == progress.best_loss)
        best = is_lower or not math.isfinite(progress.best_loss)
        summary = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        known = math.isfinite(progress.train_perplexity)  # once an epoch is complete
        LOGGER.info(
            "step %d, epoch %d: %s%.0f tokens/s; validation: %s%s",
            progress.step,
            progress.epoch,
            f"training perplexity {progress.train_perplexity:.4f}, " if known else "",
            progress.tokens_per_second,
            summary or "none",
            " (best)" if best else "",
        )
        self._show_samples()
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            self.save_best(progress)

    def _training_loss(self) -> float:
        """Of the last complete epoch, in nats a token; infinite where that says nothing."""
        perplexity, epoch = self.progress.train_perplexity, self.progress.epoch - 1
        is_known = math.isfinite(perplexity) and self.task.may_decide(epoch)
        return math.log(perplexity) if is_known else math.inf

    def _show_samples(self) -> None:
        samples = self.task.samples()
        for sample in samples:
            LOGGER.info("sample: %s", sample)
        self._curves.add_samples(self.progress.step, samples)

    def save_state(self) -> None:
        """Write everything that resuming needs, whole or not at all.

        Raises:
            RunError: the disk refuses.
            LostProcessError: another process has ended.
        """
        carried = [part.cpu() for part in self.task.carried()]
        own = (carried, *random_state(self.device))
        all_carried, random, cuda_random = zip(*self.processes.gather(own), strict=True)
        if not self.processes.is_first:
            return
        state = {
            "record": self.record,
            "precision": self._precision,
            "progress": vars(self.progress),
            "window": vars(self._window),
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self._average.state() if self._average else [],
            # The rows of the whole batch, whichever process has them next time.
            "carried": [torch.cat(parts) for parts in zip(*all_carried, strict=True)],
            "random": torch.stack(random),
            "cuda_random": torch.stack(cuda_random),
        }
        write_state(self.run_dir, state)

    def _resume(self) -> None:
        file = self.run_dir / STATE_FILE
        if not file.exists():
            # Each process drops other units out.
            torch.manual_seed(self.settings.seed + self.processes.rank)
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            changed = changes(state, self.record, self._precision)
            count = len(by_process(state["random"]))
            if count != self.processes.count and self._has_dropout:
                changed.append(f"{count} processes, whose dropout has random numbers of its own")
            if not changed:
                self._restore(state)
        except Exception as error:  # whatever the unpickler or load_state_dict stumbles over
            raise RunError(
                f"{file} is damaged or of another version; delete {self.run_dir} to begin anew"
            ) from error
        if changed:
            raise RunError(
                f"{file} belongs to a run with other settings ({', '.join(changed)}); choose "
                f"another --out or --name, or delete {self.run_dir} to begin anew"
            )
        LOGGER.info("resuming at step %d", self.progress.step)

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self._window = _Window(**state.get("window", {}))
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average:
            self._average.restore(state["average"])
        self.task.restore([part[self.processes.rows(len(part))] for part in state["carried"]])
        random, cuda_random = by_process(state["random"]), state["cuda_random"]
        # Where their number has changed, none of them needs random numbers.
        own = min(self.processes.rank, len(random) - 1)
        restore_random_state(
            self.device, random[own], cuda_random[own] if len(cuda_random) else None
        )

    @property
    def _precision(self) -> str:
        """What ``training.precision`` stands for on this device."""
        return precision_name(self._dtype)

    @property
    def _has_dropout(self) -> bool:
        return bool(self.record.get("model", {}).get("dropout"))


def _perplexity(likelihood: float, tokens: int) -> float:
    return math.exp(min(likelihood / tokens, 700.0)) if tokens else math.inf
