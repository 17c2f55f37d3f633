"""Questions: choices scored by likelihood, conversations seen, bad lists refused, and no answer without the volume."""

import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import world

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.data.study import Study
from vol3d.evaluation.metrics.vqa import score_questions
from vol3d.model.interfaces import Evidence
from vol3d.model.likelihood import answer_likelihoods
from vol3d.tasks import VQA, FindingMaps

TEXTS = ["On which side is the pleural effusion? left right both neither\nChoices: left; right; both; neither."]
SIDE = {"question": "On which side?", "answer": "left", "choices": ["left", "right", "both", "neither"]}
OPEN = {"question": "What is there?", "answer": "an effusion"}


def model(**settings) -> vol3d.VolumeLM:
    torch.manual_seed(0)
    return vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)),
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        vol3d.LanguageModel.scratch(TEXTS, **{"embed_dim": 48, "depth": 2, "num_heads": 2, "vocab_size": 320}),
    )


@cache
def sample(number: int) -> world.Sample:
    made = world.study(number)
    labels = {name: int(name in made.study.report) for name in world.FINDINGS}
    return replace(made, study=replace(made.study, labels_known=labels))


def batch(numbers: range, *, turned: int = 0, **fields) -> Batch:
    """Studies; turned, each with the volume of one further on."""
    made = collate([sample(number) for number in numbers])
    order = torch.arange(len(made)).roll(turned)
    studies = [replace(study, **fields) for study in made.studies] if fields else made.studies
    masks = made.finding_mask[order]
    return replace(made, studies=studies, image=made.image[order].float() / 300, finding_mask=masks)


def encoded(lm: vol3d.VolumeLM, part: Batch):
    return lm.encode(part.image, part.affine)


# --- choices -----------------------------------------------------------------------------------------------


def test_likelihoods_equal_those_of_one_answer_at_a_time() -> None:
    lm, part = model().eval(), batch(range(2))
    features, prompts = (
        encoded(lm, part),
        ["<volume>\nOn which side?\n", "<volume>\nIs there a left effusion, or not?\n"],
    )
    answers = [["left", "right or both sides"], ["no", "yes", "neither"]]
    found = answer_likelihoods(lm, features, prompts, answers)
    for row, given in enumerate(answers):
        with torch.no_grad():
            losses = [float(lm.language_loss(features[[row]], [prompts[row]], [answer])) for answer in given]
        assert found[row] == pytest.approx([-loss for loss in losses], abs=1e-4)


def test_a_long_choice_is_not_held_unlikely_for_its_length() -> None:
    """By the sum of its tokens a choice of forty would lose to one of a single token, by their mean it need not."""
    lm = model().eval()
    features, long = encoded(lm, batch(range(1))), "left " * 40
    ((short_mean, long_mean),) = answer_likelihoods(lm, features, ["<volume>"], [["left", long]])
    count = len(lm.language.answer_ids(long))
    assert count * long_mean < 2 * short_mean
    assert abs(long_mean - short_mean) < 3


def test_the_likeliest_choice_is_the_answer_and_any_number_of_them_is_scored() -> None:
    lm = model().eval()
    task = VQA(lm)
    features = encoded(lm, batch(range(1)))
    choices = [["left", "right"], None, [f"T{level}" for level in range(1, 13)]]
    rows = task.answer(lm, features, ["On which side?", "What is there?", "At which level?"], choices)
    closed = {"question", "answer", "choices", "scores"}
    assert [set(row) for row in rows] == [closed, {"question", "answer"}, closed]
    for row, given in zip(rows, choices, strict=True):
        if given is not None:
            assert row["choices"] == given
            assert row["answer"] == given[max(range(len(given)), key=row["scores"].__getitem__)]
    prompt = task.prompt(lm, "At which level?", choices[2])
    logits = torch.tensor(answer_likelihoods(lm, features, [prompt], [choices[2]])[0])
    torch.testing.assert_close(torch.tensor(rows[2]["scores"]), logits, atol=1e-3, rtol=0)


def test_a_question_without_words_and_choices_that_are_letters_are_refused() -> None:
    lm = model().eval()
    with pytest.raises(ValueError, match="has the choices 'yes': give two or more"):
        VQA(lm).answer(lm, encoded(lm, batch(range(1))), ["Effusion?"], ["yes"])
    with pytest.raises(ValueError, match=r"the question is ' ': ask in words"):
        VQA(lm).answer(lm, encoded(lm, batch(range(1))), [" "], [None])


def test_a_volume_is_projected_once_for_all_its_questions() -> None:
    lm = model()
    task, part, calls = VQA(lm, per_study=None), batch(range(2), questions=[SIDE] * 3), []
    lm.projector.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    task.loss(lm, encoded(lm, part), part)
    task.eval().predict(lm, encoded(lm, part), part)
    assert calls == [2, 2]


# --- prompts -----------------------------------------------------------------------------------------------


def test_a_conversation_stands_before_the_question() -> None:
    lm = model()
    task, history = VQA(lm), [("Is there an effusion?", "yes")]
    said = task.prompt(lm, "On which side?", ["left", "right"], history)
    assert said == "<volume>\nIs there an effusion?\nyes\nOn which side?\nChoices: left; right.\n"
    hidden = VQA(lm, show_choices=False).prompt(lm, "On which side?", ["left", "right"])
    assert hidden == "<volume>\nOn which side?\n"
    lm.language.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    turns = task.prompt(lm, "On which side?", None, history)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"].startswith("<volume>\n")
    ids = lm.language.prompt_ids(turns, 4)
    text = lm.language.tokenizer.decode([i for i in ids if i != lm.language.volume_id])
    assert text == "[user]\nIs there an effusion?[assistant]yes[user]On which side?[assistant]"
    assert ids.count(lm.language.volume_id) == 4


def test_the_answer_depends_on_what_was_said_before() -> None:
    lm = model().eval()
    task, features = VQA(lm), encoded(lm, batch(range(1)))
    asked = ["On which side?"], [["left", "right"]]
    alone = task.answer(lm, features, *asked)[0]["scores"]
    after = task.answer(lm, features, *asked, history=[("Is there a left effusion?", "no")])[0]["scores"]
    assert max(abs(one - two) for one, two in zip(alone, after, strict=True)) > 1e-3


def test_history_in_training_is_drawn_from_the_studys_other_questions() -> None:
    lm = model()
    task = VQA(lm, per_study=None, history=2)
    (part,) = [batch(range(1), questions=[SIDE, OPEN, {**OPEN, "question": "Why?"}])]
    drawn = [task._drawn(part.studies[0]) for task.step in map(torch.tensor, range(20))]
    lengths = {len(history) for rows in drawn for _, history in rows}
    assert lengths == {0, 1, 2}
    assert all((row["question"], row["answer"]) not in history for rows in drawn for row, history in rows)


def test_draws_change_with_the_step_and_come_back_with_the_weights() -> None:
    lm, questions = model(), [{"question": f"Question {n}?", "answer": "yes"} for n in range(12)]
    part = batch(range(2), questions=questions)
    task = VQA(lm, per_study=2)

    def drawn(of: VQA) -> list[str]:
        return [row["question"] for study in part.studies for row, _ in of._drawn(study)]

    first = drawn(task)
    task.loss(lm, encoded(lm, part), part)
    assert drawn(task) != first
    resumed = VQA(lm, per_study=2)
    resumed.load_state_dict(task.state_dict())
    assert drawn(resumed) == drawn(task)
    assert drawn(task.eval()) == drawn(resumed.eval()), "validation asks the same at every step"


# --- labels ------------------------------------------------------------------------------------------------


def test_a_study_without_questions_costs_nothing() -> None:
    lm = model().eval()
    task = VQA(lm, questions="manifest").eval()
    part = batch(range(4), questions=[SIDE])
    silent = replace(part, studies=[part.studies[0], *(replace(s, questions=[]) for s in part.studies[1:])])
    features = encoded(lm, part)
    alone = task.loss(lm, features[[0]], part.select([0]))
    together = task.loss(lm, features, silent)
    assert (alone.count, together.count) == (1, 1)
    torch.testing.assert_close(alone.loss, together.loss)
    nothing = task.loss(lm, features[1:], silent.select([1, 2, 3]))
    assert (nothing.loss, nothing.count) == (None, 0)
    assert task.predict(lm, features, silent)[1] == {"answers": []}


def test_questions_are_built_where_a_row_has_none() -> None:
    lm, part = model(), batch(range(1))
    assert VQA(lm, questions="manifest").questions(part.studies[0]) == []
    built = VQA(lm, kinds=["side", "presence"]).questions(part.studies[0])
    assert {row["kind"] for row in built} <= {"side", "presence"}
    given = replace(part.studies[0], questions=[SIDE, OPEN])
    assert VQA(lm).questions(given) == [SIDE, OPEN]
    assert VQA(lm, closed_only=True).questions(given) == [SIDE]
    assert VQA(lm, questions="built", kinds=["side"]).questions(given) != [SIDE]


def test_bad_lists_are_refused() -> None:
    lm = model().eval()
    task, part = VQA(lm), batch(range(1), questions=[{**SIDE, "answer": "up"}])
    with pytest.raises(ValueError, match=r"study 's0'.*'up' is not among its 4 choices.*add it"):
        task.loss(lm, encoded(lm, part), part)
    features = encoded(lm, batch(range(2)))
    with pytest.raises(ValueError, match="2 volumes, 3 questions, 3 choice lists"):
        task.answer(lm, features, ["a", "b", "c"], [None] * 3)
    with pytest.raises(ValueError, match=r"has the choices \['left'\]: give two or more"):
        task.answer(lm, features[[0]], ["a"], [["left"]])
    with pytest.raises(ValueError, match=r"kinds \['colour'\] are not built"):
        VQA(lm, questions="built", kinds=["colour"])
    with pytest.raises(ValueError, match="needs a model with a language model"):
        VQA(vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2)))


# --- scores ------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    questions = {f"s{n}": [{**SIDE, "kind": "side"}, OPEN] for n in range(4)}
    said = {f"s{n}": [{"answer": "left" if n < 3 else "both"}, {"answer": "An effusion."}] for n in range(4)}
    blind = {f"s{n}": [{"answer": "left" if n < 1 else "both"}, {"answer": "nothing"}] for n in range(4)}
    training = [{**SIDE, "answer": "right"}] * 3 + [SIDE]
    patients = {study: study for study in questions}
    got = score_questions(questions, said, patients, blind=blind, training=training, replicates=20)
    closed = got["vqa_closed"]
    assert closed["accuracy"]["value"] == closed["m3d_substring_accuracy"]["value"] == 0.75
    assert {name: base["accuracy"] for name, base in closed["baselines"].items()} == {
        "blind": 0.25, "text_prior": 0.0, "chance": 0.25,
    }  # fmt: skip
    assert closed["per_kind"]["side"]["accuracy"]["value"] == 0.75
    assert got["vqa_open"]["exact_match"]["value"] == 1.0
    assert got["vqa_open"]["baselines"]["blind"]["exact_match"] == 0.0
    with pytest.raises(ValueError, match="study 's0' has 2 questions and 1 answers"):
        score_questions(questions, {**said, "s0": said["s0"][:1]}, patients)


def test_kept_answers_are_scored_by_their_questions_not_their_places() -> None:
    study = replace(sample(0).study, questions=[SIDE, SIDE | {"question": "On which other side?", "answer": "both"}])
    right = [dict(row) for row in study.questions]
    task = VQA(model(), questions="manifest")
    for kept in (right, right[::-1]):
        scores = task.score(Evidence([study], {study.study: {"answers": kept}}, replicates=20))
        assert scores["vqa_closed"]["accuracy"]["value"] == 1.0
    other = [right[0], right[0] | {"question": "On which side was it?"}]
    with pytest.raises(ValueError, match=r"none of its 2 answers is to 'On which other side\?' with the choices"):
        task.score(Evidence([study], {study.study: {"answers": other}}, replicates=20))


@pytest.fixture(scope="module")
def seeing() -> tuple[vol3d.VolumeLM, list, list]:
    """A model whose encoder has learnt where the boxes lie, its training batches, and what it sees in them."""
    lm = model()
    maps = FindingMaps(lm, findings=world.FINDINGS, cells=(1, 1, 1), top_cells=2)
    parts = [batch(range(first, first + 16)) for first in range(0, 192, 16)]
    optimizer = torch.optim.AdamW([*lm.encoder.parameters(), *maps.parameters()], lr=2e-3)
    for step in range(60):
        now = parts[step % len(parts)]
        _descend(optimizer, maps.loss(lm, encoded(lm, now), now).loss)
    with torch.no_grad():
        return lm, parts, [encoded(lm, now) for now in parts]


@pytest.mark.learn
@pytest.mark.parametrize("shuffled", [False, True], ids=["true", "shuffled"])
def test_answers_are_learnt_from_the_volume_and_not_without_it(seeing, shuffled: bool) -> None:
    """Unseen studies are answered right, of four choices; when each study is shown another's volume, they are not."""
    lm, parts, frozen = copy.deepcopy(seeing[0]), seeing[1], seeing[2]
    frozen = frozen[1:] + frozen[:1] if shuffled else frozen
    task = VQA(lm, questions="built", kinds=["side"], per_study=None, show_choices=False)
    optimizer = torch.optim.AdamW([*lm.projector.parameters(), *lm.language.parameters()], lr=2e-3)
    for step in range(140):
        now = step % len(parts)
        _descend(optimizer, task.loss(lm, frozen[now], parts[now]).loss)
    lm.eval(), task.eval()
    unseen = batch(range(1000, 1080))
    with torch.no_grad():
        rows = task.predict(lm, encoded(lm, unseen), unseen)
    predictions = {study.study: row for study, row in zip(unseen.studies, rows, strict=True)}
    accuracy = task.score(Evidence(unseen.studies, predictions, replicates=20))["vqa_closed"]["accuracy"]["value"]
    assert accuracy < 0.55 if shuffled else accuracy >= 0.85, accuracy


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_studies_of_any_name_and_file() -> None:
    """`ask` on a volume that stands in no manifest."""
    lm = model().eval()
    task = VQA(lm)
    part = batch(range(1))
    part.studies[0] = Study(study="ct.nii.gz", image=Path("ct.nii.gz"))
    assert task.predict(lm, encoded(lm, part), part) == [{"answers": []}]
