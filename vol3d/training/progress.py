"""One progress bar for a whole run, with the stage, the loss and the time left."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """Counts optimizer steps over the whole run (Lightning's own bar starts anew every epoch), and batches when
    validating, testing or predicting."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _start(self, total: int | float, name: str, unit: str, initial: int = 0) -> None:
        known = total if total != float("inf") and total >= 0 else None
        self._bar = tqdm(total=known, desc=name, unit=unit, initial=initial, disable=not self._enabled, mininterval=0.5)

    def _stop(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._start(trainer.estimated_stepping_batches, "train", "step", initial=trainer.global_step)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        bar = self._bar
        if bar is None or trainer.global_step == bar.n:
            return
        loss = trainer.callback_metrics.get("train/loss")
        bar.set_description(str(pl_module.stage), refresh=False)
        if loss is not None:
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._start(sum(trainer.num_predict_batches), "predict", "batch")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._start(sum(trainer.num_test_batches), "test", "batch")

    def _advance(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    on_predict_batch_end = on_test_batch_end = _advance
    on_train_end = on_predict_end = on_test_end = on_exception = _stop
