"""Models of the small world that read its voxels by rule, and models that do not look at all."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from world import study as box_study

import vol3d
from vol3d.data.batch import collate
from vol3d.data.manifest import Manifest
from vol3d.model.inference import TrainedModel
from vol3d.model.interfaces import Features, Task, TaskOutput
from vol3d.model.language import VOLUME_TOKEN

LEFT, RIGHT = "left pleural effusion", "right pleural effusion"
QUESTIONS = {LEFT: "Is there a left pleural effusion?", RIGHT: "Is there a right pleural effusion?"}
NORMAL = "The chest is normal."


def sees(hu) -> list[str]:
    """The world's boxes are 32 voxels, 300 HU brighter: x 2 to 6 is left, 10 to 14 right; air is nothing."""
    blocks = {name: hu[x - 2 : x + 2].astype(float) for name, x in ((LEFT, 4), (RIGHT, 12))}
    return [name for name, block in blocks.items() if (block - np.median(block)).sum() > 3500]


def words(found) -> str:
    return " ".join(f"There is a {name}." for name in found) or NORMAL


class Nothing(Task):
    """Nothing to learn."""

    def loss(self, model, features, batch):
        return TaskOutput(None, 0)


class Says(Nothing):
    """A report task that looks (says=None), or says of every volume what `says` makes of study and prompt."""

    kind = target = "report"
    prior = False
    prompt = f"{VOLUME_TOKEN}\nReport:"

    def __init__(self, says=None) -> None:
        super().__init__()
        self.says = (lambda study, prompt: says) if isinstance(says, str) else says

    def asked(self, study, prompt):
        return prompt

    def write(self, model, features, prompts):
        if self.says is None:
            return [words(sees(image[0].numpy())) for image in features.image]
        return [self.says(study, prompt) for study, prompt in zip(features.studies, prompts, strict=True)]

    def predict(self, model, features, batch):
        return [{self.target: text} for text in self.write(model, features, [self.prompt] * len(batch.studies))]

    labelled, score = vol3d.tasks.ReportGeneration.labelled, vol3d.tasks.ReportGeneration.score
    text, reads = vol3d.tasks.ReportGeneration.text, vol3d.tasks.ReportGeneration.reads


def sampler(seed=0):
    """A text prior: any report of training, a new one at every look."""
    rng = np.random.default_rng(seed)
    reports = [words(found) for found in ([], [LEFT], [RIGHT], [LEFT, RIGHT])]
    return lambda study, prompt: reports[rng.integers(len(reports))]


def named(study, prompt):
    """A report drawn by the study's name, the same at every look."""
    number = zlib.crc32(study.study.encode())
    return words([name for place, name in enumerate((LEFT, RIGHT)) if number >> (3 + place) & 1])


def believes(study, prompt):
    """What the prompt says, and else always the same."""
    return prompt.split("there is a ")[1] if "there is a " in prompt else words([LEFT])


class Answers(Nothing):
    """Yes or no, with the scores of both."""

    kind = "vqa"

    def __init__(self, looks: bool = True) -> None:
        super().__init__()
        self.looks = looks

    def questions(self, study):
        return study.questions

    def predict(self, model, features, batch):
        rows = []
        for image, study in zip(batch.image, batch.studies, strict=True):
            found = sees(image[0].numpy()) if self.looks else []
            brightness = float(image.float().mean()) / 100 if self.looks else 0.0
            said = []
            for question in study.questions:
                yes = question["finding"] in found
                scores = [-0.1 - brightness, -2.0] if yes else [-2.0, -0.1 - brightness]
                said.append({"question": question["question"], "answer": "yes" if yes else "no", "scores": scores})
            rows.append({"answers": said})
        return rows

    answered, score, reads = vol3d.tasks.VQA.answered, vol3d.tasks.VQA.score, vol3d.tasks.VQA.reads
    labelled = vol3d.tasks.VQA.labelled


class Codes(Nothing):
    """Probabilities of the two findings as codes."""

    kind, codes, min_positives = "codes", (LEFT, RIGHT), 1

    def __init__(self, looks: bool = True) -> None:
        super().__init__()
        self.looks = looks

    def predict(self, model, features, batch):
        found = [sees(image[0].numpy()) if self.looks else [LEFT] for image in batch.image]
        return [{"codes": {code: 0.9 if code in some else 0.2 for code in self.codes}} for some in found]

    def truth(self, study):
        return np.array([float(code in study.codes) for code in self.codes])

    def labelled(self, study):
        return True

    score = vol3d.tasks.EHRCodes.score


class Toy(TrainedModel):
    """The world's samples instead of files, and tasks that read the voxels."""

    def __init__(self, *tasks, samples=()):
        grid = vol3d.Grid(spacing=(1, 1, 1), shape=(16, 16, 8), window=(-1000, 1000))
        self.model, self.tasks, self.grid, self.folder = (
            nn.Linear(1, 1),
            {task.kind: task for task in tasks},
            grid,
            None,
        )
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.samples = {sample.study.study: sample for sample in samples}
        self.shown = 0

    def sample(self, volume):
        self.shown += 1
        found = self.samples[volume.study]
        mask = found.finding_mask if volume.finding_mask else None
        return replace(found, study=volume, finding_mask=mask)

    def read_ahead(self, studies, *, masks=True, workers=0):
        for study in studies:
            yield self.sample(study if masks else replace(study, mask=None, finding_mask=None))

    def predict(self, samples, tasks=None):
        batch = collate(list(samples))
        seen = Features(torch.zeros(len(batch), 1, 1), (1, 1, 1))
        seen.image, seen.studies = batch.image, batch.studies
        rows = [{"study": sample.study.study} for sample in samples]
        for task in tasks:
            for row, own in zip(rows, task.predict(None, seen, batch), strict=True):
                row.update(own)
        return rows


def samples(count=24, **fields):
    found = []
    for number in range(count):
        sample = box_study(number, "test")
        present = [name for name in (LEFT, RIGHT) if name in (sample.study.report or "")]
        asked = [
            {"question": text, "answer": "yes" if name in present else "no", "choices": ["yes", "no"], "finding": name}
            for name, text in QUESTIONS.items()
        ]
        meta = {"sex": "FM"[number % 2], "age": 30 + number}
        study = replace(
            sample.study,
            questions=asked,
            meta=meta,
            finding_mask=Path("none.nii.gz"),
            codes=present,
            codes_absent=[name for name in (LEFT, RIGHT) if name not in present],
            **fields,
        )
        found.append(replace(sample, study=study))
    return found


def toy(*tasks, count=24, **fields):
    found = samples(count, **fields)
    return Toy(*tasks, samples=found), Manifest([sample.study for sample in found])
