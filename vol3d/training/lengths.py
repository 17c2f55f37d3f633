"""Reports that a language model cannot hold, told before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from vol3d.data.study import Study
from vol3d.model.interfaces import Task
from vol3d.model.language import LanguageModel


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
                    f"stage {name!r}, task {task!r}: prompt and report of study {study!r} take {tokens} tokens, "
                    f"{visual} of them the volume's; the language model holds {language.max_length}. It is the longest "
                    f"of {len({study for _, study in long})} such among {len(studies)} training studies: use fewer "
                    "visual tokens (projector), a longer max_length, or shorter reports"
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
