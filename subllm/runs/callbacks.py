"""Callbacks of a run: the log, snapshots of the routing, and stopping."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .folder import append_log, go_back
from .routing_snapshot import RoutingSnapshot

_LOGGED = ("loss", "grad_norm", "learning_rate", "eval_loss")


class Journal(TrainerCallback):
    """Writes `log.jsonl`, which `resume` brings to the step from which a run resumes.

    Args:
        path: path of the log.
        tokens: number of tokens per step.
        also: names of further entries to write.
    """

    def __init__(self, path: Path, tokens: int, also: Collection[str] = ()) -> None:
        self._path, self._tokens, self._names = path, tokens, {*_LOGGED, *also}
        self._started = self._seconds = 0.0
        self._steps = 0
        self._last: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring the log and the snapshots to the step from which the run resumes."""
        if state.is_world_process_zero:
            self.resume(state)

    def resume(self, state: TrainerState) -> None:
        """Bring the log and the snapshots to the step of a state, which knows what was logged until then."""
        known = []
        for logs in state.log_history:
            entry = self._named(logs)
            if entry:
                if "loss" in entry:
                    entry["tokens"] = logs["step"] * self._tokens
                known.append({"step": logs["step"], **entry})
        go_back(self._path.parent, state.global_step, known)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, which leaves out evaluations and checkpoints."""
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._started
        self._steps += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a line to the log."""
        entry = self._named(logs or {})
        if not state.is_world_process_zero or not entry or entry == self._last:  # the last evaluation comes twice
            return
        self._last = dict(entry)
        if "loss" in entry:
            entry["tokens"] = state.global_step * self._tokens
            if self._seconds:
                entry["tokens_per_second"] = self._steps * self._tokens / self._seconds
            self._seconds, self._steps = 0.0, 0
        append_log(self._path, {"step": state.global_step, **entry})

    def _named(self, logs: dict[str, float]) -> dict[str, float]:
        return {key: value for key, value in logs.items() if key in self._names}


class Snapshots(TrainerCallback):
    """Records the routing of fixed prompts.

    Args:
        folder: folder of the snapshots.
        model: the SUBLLM.
        prompts: token ids of each prompt.
        every: number of steps between snapshots.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, prompts: list[list[int]], every: int) -> None:
        self._folder, self._model, self._prompts, self._every = folder, model, prompts, every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a snapshot before the first step."""
        if state.global_step == 0:
            self._take(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take a snapshot if it is due, and after the last step."""
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._take(state)

    def _take(self, state: TrainerState) -> None:
        snapshot = RoutingSnapshot.take(self._model, self._prompts, state.global_step)
        if state.is_world_process_zero:
            snapshot.save(self._folder)


class StopWhen(TrainerCallback):
    """Saves and stops after the step during which a stop was requested, in all processes if in any of them."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop if requested."""
        stopped = self._stopped()
        if args.world_size > 1:  # a signal may reach one process only, which would wait for the others in vain
            stopped = bool(gather(torch.tensor([int(stopped)], device=args.device)).any())  # type: ignore[union-attr]
        if stopped:
            control.should_save = control.should_training_stop = True
        return control
