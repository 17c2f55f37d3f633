"""The small interfaces between the parts: an encoder gives Features, a projector turns them into language
tokens, a task judges. Parts know each other only through this file."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vol3d.data.batch import Batch, Sample
from vol3d.data.study import Study
from vol3d.types import Affines, Pooled, Tokens, Triple, Volumes

if TYPE_CHECKING:
    from vol3d.model.volume_lm import VolumeLM


class Part(nn.Module):
    """A module that remembers the arguments it was built with, so that a saved model can be built again."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        self = super().__new__(cls)
        # Partly, because copying and unpickling call __new__ without arguments and restore them afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        recorded = dict(list(bound.arguments.items())[1:])
        recorded.update(recorded.pop("kwargs", {}))
        object.__setattr__(self, "init_args", recorded)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Every argument but modules, those left at their default among them, lists and tuples alike as lists."""
        known = inspect.signature(type(self).__init__).parameters.values()
        all_of_them = {each.name: each.default for each in known if each.default is not each.empty} | self.init_args
        return {name: plain(value) for name, value in all_of_them.items() if not isinstance(value, nn.Module)}


def plain(value: Any) -> Any:
    """The value as YAML gives it back: tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@dataclass
class Features:
    """What an encoder saw.

    Shape:
        tokens: (batch, tokens, embed_dim) in x-major order: token (i, j, k) of grid_size (gx, gy, gz) is
            number (i * gy + j) * gz + k.
        affine: (batch, 4, 4) float64, token index (i, j, k) → RAS mm of the token's centre.
        pooled: (batch, embed_dim), a CLS token or None.
        scales: finer feature maps (batch, channels, x, y, z), finest first, when the encoder has them.
        visual: (batch, visual tokens, language width), what the projector made of them, once it has run.
        added: decoder layer → the same shape, what it adds to them inside the language model; None before it has run.
        attention: (batch, 2, tokens), how much the encoder's first and its last block look at each token, when the
            encoder says so (ViT3D in eval mode).
    """

    tokens: Tokens
    grid_size: Triple
    affine: Affines | None = None
    pooled: Pooled | None = None
    scales: tuple[Tensor, ...] = field(default=())
    visual: Tensor | None = None
    added: Mapping[int, Tensor] | None = None
    attention: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: list[int] | Tensor | slice) -> Features:
        """The features of some studies of the batch."""
        return Features(
            tokens=self.tokens[index],
            grid_size=self.grid_size,
            affine=None if self.affine is None else self.affine[index],
            pooled=None if self.pooled is None else self.pooled[index],
            scales=tuple(scale[index] for scale in self.scales),
            visual=None if self.visual is None else self.visual[index],
            added=None if self.added is None else {layer: more[index] for layer, more in self.added.items()},
            attention=None if self.attention is None else self.attention[index],
        )


class Encoder(Part, ABC):
    """Image on a grid → Features. `embed_dim` is the width of its tokens, `patch_size` its stride in voxels."""

    embed_dim: int
    in_channels: int
    patch_size: Triple

    @abstractmethod
    def forward(self, image: Volumes, affine: Affines | None = None) -> Features: ...

    @property
    def smallest_shape(self) -> Triple:
        """Voxels along x, y, z of a small image that it takes, to look at what it gives."""
        return tuple(2 * size for size in self.patch_size)

    def grid_size(self, shape: Triple) -> Triple:
        """Number of tokens along x, y, z for an image of `shape` voxels."""
        for axis, (size, patch) in enumerate(zip(shape, self.patch_size, strict=True)):
            if size % patch:
                raise ValueError(
                    f"image is {size} voxels along {'xyz'[axis]}, not a multiple of the patch size {patch}: "
                    f"use a Grid whose shape is a multiple of {self.patch_size}"
                )
        return tuple(size // patch for size, patch in zip(shape, self.patch_size, strict=True))

    def check_channels(self, image: Tensor) -> None:
        if image.shape[1] != self.in_channels:
            raise ValueError(
                f"image has {image.shape[1]} channels, the encoder takes {self.in_channels}: give the Grid as many "
                f"windows as the encoder has channels, or build it with in_channels={image.shape[1]}"
            )

    def token_affine(self, affine: Affines | None) -> Affines | None:
        """Voxel affine → affine of the token grid, whose (0, 0, 0) is the centre of the first patch."""
        if affine is None:
            return None
        patch = torch.tensor(self.patch_size, dtype=affine.dtype, device=affine.device)
        scaled = affine.clone()
        scaled[:, :3, :3] = affine[:, :3, :3] * patch
        scaled[:, :3, 3] = affine[:, :3, 3] + affine[:, :3, :3] @ ((patch - 1) / 2)
        return scaled


class Projector(Part, ABC):
    """Features of width `in_dim` → language tokens of width `out_dim`; a subclass's first two arguments.

    `uses` says what it reads besides the tokens: with "scales" the features of a frozen encoder are not kept in memory.
    """

    uses: frozenset[str] = frozenset()

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim

    @abstractmethod
    def num_tokens(self, grid_size: Triple) -> int:
        """How many language tokens one volume costs."""

    @abstractmethod
    def forward(self, features: Features) -> Tokens: ...


@dataclass
class TaskOutput:
    """A task's loss over the studies of a batch that carry its labels.

    `loss` is the mean over `count` studies, or None when the batch carries none.
    """

    loss: Tensor | None
    count: int
    log: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What a task is judged on.

    Args:
        studies: the studies that are scored. training: of the same manifest, for baselines that know its labels.
        validation: for thresholds and calibration, which must never see `studies`.
        others: what else was predicted where `studies` are a group of it: they compete in retrieval.
        predictions: study name → its row, of `studies` and, for a task with `calibrates`, of `validation`.
        blind: predicts `studies` again, each from another patient's volume, study name → row. Costs a pass.
        sample: a study with its masks on the model's grid.
        replicates: bootstrap draws of each interval. seed: of the bootstrap and the baselines.
    """

    studies: Sequence[Study]
    predictions: Mapping[str, Mapping[str, Any]]
    training: Sequence[Study] = ()
    validation: Sequence[Study] = ()
    others: Sequence[Study] = ()
    blind: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None
    sample: Callable[[Study], Sample] | None = None
    replicates: int = 1000
    seed: int = 0


class Task(Part, ABC):
    """A head, a loss, a prediction and a judgement around the shared model. The first argument of a subclass is the
    model, from which it reads widths; it must not keep it.

    `kind` names what it predicts ("report", "findings", "vqa", "codes" …): a trained model's verbs find their task by
    it, and its field in a row of predictions and its entry in evaluation.json are called so, but for the "answers" of
    "vqa", which are scored as "vqa_closed" and "vqa_open", and the "boxes" of "grounding".
    `uses` says what the task reads besides the tokens: "visual" tokens are then projected once for all tasks of a
    step; with "scales" the features of a frozen encoder are not kept in memory. `encodes` says that it encodes an image
    of its own: a step of such tasks alone does not encode the batch, and gives them None for its features. `calibrates`
    asks the evaluation for predictions of the validation split too. `writes` names the fields of its predictions where
    they are not the one called `kind`; of two tasks that write the same only the first predicts (`predicting`).
    `least` is how many studies a step needs, of all processes together, for the task to learn anything.
    """

    kind: str = ""
    weight: float = 1.0
    uses: frozenset[str] = frozenset()
    encodes: bool = False
    calibrates: bool = False
    writes: tuple[str, ...] = ()
    least: int = 1

    @property
    def outputs(self) -> tuple[Any, ...]:
        """What its head's rows stand for, in order; empty where words say what is asked."""
        return ()

    @abstractmethod
    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput: ...

    @abstractmethod
    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        """One JSON-ready dictionary a study."""

    def reads(self, study: Study) -> Any:
        """What a prediction reads of the study's row beside its volume (questions, boxes …), as JSON; None for nothing.

        Kept predictions are stale when it changes, and it stays the study's own when another's volume is shown.
        """
        return None

    def labelled(self, study: Study) -> bool:
        """Whether the study carries a label this task can be judged by. False for a task that only helps training."""
        return False

    def learns(self, study: Study) -> bool:
        """Whether the study carries a label this task learns from, where others than those it is judged by."""
        return self.labelled(study)

    def lessons(self, study: Study) -> list[tuple[str, str]]:
        """Each prompt, with `<volume>`, and text behind it that a step may learn of the study, where these may be too
        long for a language model: they are measured before training starts."""
        return []

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        """Entries of `tasks` in evaluation.json from the labelled studies, each with its intervals and baselines."""
        return {}


def predicting(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks whose predictions stand in a study's row: of those that write the same field the first.

    The others (`ZeroShot` behind `Retrieval`) only train: in predictions and scores theirs would stand for the first's.
    """
    taken: set[str] = set()
    chosen: dict[str, Task] = {}
    for name, task in tasks.items():
        fields = set(task.writes or filter(None, (task.kind,)))
        if fields.isdisjoint(taken):
            chosen[name] = task
            taken |= fields
    return chosen
