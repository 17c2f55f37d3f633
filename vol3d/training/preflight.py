"""What would teach nothing, or stop a run in its middle, told before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from vol3d.data.study import Study
from vol3d.model.interfaces import Task
from vol3d.model.language import LanguageModel


def check_batch(module: Any, data: Any, processes: int) -> None:
    """Every task finds as many studies in a step, over all processes, as it learns from at the least.

    Not checked where nobody says how many there are (loaders without a `VolumeData`).

    Raises:
        ValueError: a task is given fewer; names both numbers.
    """
    studies = processes * (getattr(data, "batch_size", None) or 0)
    for name in {name for stage in module.stages.values() for name in stage.tasks or module.tasks}:
        if 0 < studies < (least := module.tasks[name].least):
            raise ValueError(
                f"task {name!r} learns from the differences between the studies of a step, which are {studies}: "
                f"give data.batch_size {least} or more (accumulate_grad_batches does not put studies together)"
            )


def check_lengths(module: Any, data: Any) -> None:
    """Every prompt and text that a stage may learn fits into the language model, visual tokens included.

    Not checked where volumes differ in their number of tokens (a grid without a shape).

    Raises:
        ValueError: some do not; the longest of them is named, with both numbers.
    """
    language, shape = module.model.language, getattr(getattr(data, "grid", None), "shape", None)
    if language is None or shape is None:
        return
    visual = module.model.projector.num_tokens(module.model.encoder.grid_size(shape))
    for name, stage in module.stages.items():
        studies = (data.manifest if stage.data is None else data.others[stage.data]).split("train")
        studies = studies[: getattr(data, "limit", None)]
        for task in stage.tasks or module.tasks:
            long = list(_too_long(language, module.tasks[task], studies, visual))
            if long:
                tokens, study = max(long)
                raise ValueError(
                    f"stage {name!r}, task {task!r}: prompt and text of study {study!r} take {tokens} tokens, "
                    f"{visual} of them the volume's; the language model holds {language.max_length}. It is the longest "
                    f"of {len({study for _, study in long})} such among {len(studies)} training studies: use fewer "
                    "visual tokens (projector), a longer max_length, or shorter texts"
                )


def _too_long(language: LanguageModel, task: Task, studies: Any, visual: int) -> Iterator[tuple[int, str]]:
    """Tokens and name of each study that learns more than the language model holds."""

    @cache
    def asked(prompt: str) -> int:
        return len(language.prompt_ids(prompt, visual))

    study: Study
    for study in studies:
        for prompt, text in task.lessons(study):
            # A token holds a byte or more, so most texts need not be read, and none for a language model of today.
            most = asked(prompt) + len(text.encode()) + 8
            if most > language.max_length:
                tokens = asked(prompt) + len(language.answer_ids(text))
                if tokens > language.max_length:
                    yield tokens, study.study
