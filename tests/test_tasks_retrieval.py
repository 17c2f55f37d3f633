"""Retrieval: it learns to tell volumes apart by their texts, and only by looking; towers, sections, equal texts."""

import json
import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from world import FINDINGS, World, dealt, study, trainer

import vol3d
from vol3d.data.batch import Batch, Sample, collate
from vol3d.evaluation.groups import score_groups
from vol3d.model.interfaces import Evidence, Features
from vol3d.model.pretrained import build, save
from vol3d.model.text_encoder import PretrainedText, SentenceEncoder, text_encoder
from vol3d.model.volume_lm import VolumeLM
from vol3d.model.words import sentences, word_ids
from vol3d.tasks import Retrieval
from vol3d.tasks.retrieval import says
from vol3d.training.contrastive import infonce
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
GRID = Grid(spacing=(4.0, 4.0, 8.0), shape=(16, 16, 8), window=(-300, 300))
SECTIONS = "FINDINGS:\nLungs: {}\nLiver: The liver is normal.\nIMPRESSION:\n{}"


def encoder() -> torch.nn.Module:
    return vol3d.encoders.create("vit3d-tiny", embed_dim=32, depth=1, num_heads=2, patch_size=(4, 4, 2))


def shared(*, language: bool = False) -> VolumeLM:
    torch.manual_seed(0)
    if not language:
        return VolumeLM(encoder())
    source = vol3d.LanguageModel.scratch(FINDINGS, embed_dim=32, depth=2, num_heads=2, vocab_size=300)
    return VolumeLM(encoder(), partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2), source)


def batch_of(*samples: Sample) -> Batch:
    batch = collate(list(samples))
    return replace(batch, image=batch.image.float() / 300)


def seen(model: VolumeLM, batch: Batch) -> Features:
    return model.encode(batch.image, batch.affine)


@cache
def trained(deal: int | None = None) -> tuple[VolumeModule, list[Sample]]:
    """Sixty steps on the toy world; with a deal, each report lies beside another study's volume."""
    train, test = [study(number) for number in range(96)], [study(1000 + number) for number in range(48)]
    train = train if deal is None else dealt(train, deal)
    torch.manual_seed(0)
    task = partial(Retrieval, text_encoder=SMALL, embed_dim=32, queries=4, equal="findings")
    module = VolumeModule(encoder(), {"retrieval": task}, stages={"all": Stage(learning_rate=3e-3)})
    trainer(60, Path()).fit(module, World(train, test, batch_size=16))
    return module.eval(), test


def judged(module: VolumeModule, samples: list[Sample]) -> dict:
    task, batch = module.tasks["retrieval"], batch_of(*samples)
    with torch.inference_mode():
        rows = task.predict(module.model, seen(module.model, batch), batch)
    rows = json.loads(json.dumps(rows))
    predictions = {sample.study.study: row for sample, row in zip(samples, rows, strict=True)}
    return task.score(Evidence([sample.study for sample in samples], predictions, replicates=50))["retrieval"]


def unseen_loss(module: VolumeModule, samples: list[Sample]) -> float:
    """Of sixteen studies; who knows nothing has log 16, and no order of studies can hide what is known."""
    with torch.inference_mode():
        batch = batch_of(*samples[:16])
        return float(module.tasks["retrieval"].loss(module.model, seen(module.model, batch), batch).loss)


@pytest.mark.learn
def test_it_finds_the_text_of_a_volume_it_has_not_seen() -> None:
    scores = judged(*trained())
    assert (scores["pool"], scores["distinct"], scores["equal"]) == (4, 4, "findings")
    assert scores["recall@1"]["value"] > 0.9
    assert scores["text_to_image"]["recall@1"]["value"] > 0.9
    assert scores["baselines"]["chance"]["recall@1"] == pytest.approx(0.25)
    assert scores["baselines"]["blind"]["recall@1"] < 0.5
    assert unseen_loss(*trained()) < 0.6 * math.log(16)


def test_studies_that_cannot_be_dealt_or_that_say_the_same_are_scored() -> None:
    """One patient with most of the studies has no blind baseline; equal texts leave nothing to choose from."""
    rng = np.random.default_rng(0)
    task = Retrieval(shared(), text_encoder=SMALL, queries=4, embed_dim=16)
    for reports, patients, score in (
        (["One.", "Two.", "Three."], "AAB", 1.0),
        (["Normal."] * 4, "ABCD", None),
    ):
        studies = [
            replace(study(number).study, study=f"s{number}", patient=patient, report=report)
            for number, (patient, report) in enumerate(zip(patients, reports, strict=True))
        ]
        vectors = [vector.tolist() for vector in rng.normal(size=(len(studies), 16))]
        rows = {s.study: {"retrieval": {"volume": v, "text": v}} for s, v in zip(studies, vectors, strict=True)}
        scores = task.score(Evidence(studies, rows, replicates=20))["retrieval"]
        assert scores["recall@1"]["value"] == score
        assert scores["baselines"]["blind"]["recall@1"] is None
    assert scores["recall@1"]["note"] == "one text: nothing to choose from"


def test_a_group_is_found_among_everybody() -> None:
    """Among its own twelve a small group would find more than a large one, whatever the model."""
    rng = np.random.default_rng(0)
    task = Retrieval(shared(), text_encoder=SMALL, queries=4, embed_dim=16)
    studies = [
        replace(study(number).study, report=f"Study {number}.", meta={"sex": "F" if number < 12 else "M"})
        for number in range(60)
    ]
    rows = {}
    for one in studies:
        vector = rng.normal(size=16)
        rows[one.study] = {"retrieval": {"volume": vector, "text": vector + 1.2 * rng.normal(size=16)}}
    evidence = Evidence(studies, rows, replicates=20)
    blocks = task.score(evidence)
    scores = score_groups([task], evidence, blocks, ["sex"])["sex"]["retrieval"]["scores"]
    for metric in ("recall@1", "mrr"):
        few, many = (scores[metric]["groups"][sex]["value"] for sex in "FM")
        assert (12 * few + 48 * many) / 60 == pytest.approx(blocks["retrieval"][metric]["value"])


@pytest.mark.slow
@pytest.mark.learn
def test_it_learns_nothing_from_shuffled_volumes() -> None:
    runs = [trained(deal) for deal in range(3)]
    assert min(unseen_loss(*run) for run in runs) > 0.99 * math.log(16)
    assert np.mean([judged(*run)["recall@1"]["value"] for run in runs]) < 0.4


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
@pytest.mark.parametrize("text", ["report", "sections"])
def test_every_parameter_learns_and_chunks_change_nothing(loss: str, text: str) -> None:
    model, batch = shared(), batch_of(*(study(number) for number in range(6)))
    reports = [SECTIONS.format(s.report, s.report) for s in batch.studies]
    batch.studies = [replace(s, report=report) for s, report in zip(batch.studies, reports, strict=True)]
    outputs, tasks = [], []
    for chunk in (None, 2):
        torch.manual_seed(1)
        tasks.append(Retrieval(model, text=text, loss=loss, text_encoder=SMALL, queries=4, embed_dim=16, chunk=chunk))
        outputs.append(tasks[-1].loss(model, seen(model, batch), batch))
        outputs[-1].loss.backward()
    assert outputs[0].count == 6
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for (name, one), other in zip(tasks[0].named_parameters(), tasks[1].parameters(), strict=True):
        if one.requires_grad:
            assert one.grad.abs().sum() > 0, name
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_a_step_of_one_study_is_refused_because_nothing_is_compared() -> None:
    """Its loss is 0 whatever the vectors are (InfoNCE), however many such steps are accumulated."""
    module = VolumeModule(encoder(), {"retrieval": partial(Retrieval, text_encoder=SMALL, embed_dim=32, queries=4)})
    data = World([study(number) for number in range(4)], batch_size=1)
    with pytest.raises(
        ValueError, match=r"'retrieval' learns from the differences .* are 1: give data.batch_size 2 or more"
    ):
        trainer(2, Path(), accumulate_grad_batches=2).fit(module, data)


def test_a_study_without_text_costs_nothing() -> None:
    model = shared()
    task = Retrieval(model, text_encoder=SMALL, queries=2, embed_dim=16)
    mixed = batch_of(study(0), study(1, report=False), study(2))
    output = task.loss(model, seen(model, mixed), mixed)
    both = mixed.select([0, 2])
    assert output.count == 2
    torch.testing.assert_close(output.loss, task.loss(model, seen(model, both), both).loss)
    none = mixed.select([1])
    assert task.loss(model, seen(model, none), none).loss is None
    assert task.predict(model, seen(model, none), none)[0]["retrieval"]["text"] is None


def test_sections_are_compared_organ_by_organ() -> None:
    model, batch = shared(), batch_of(study(0), study(1), study(2))
    said = ["There is a left pleural effusion.", "Normal lungs.", None]
    batch.studies = [
        replace(s, report="FINDINGS:\n" + (f"Lungs: {text}\n" if text else "") + "Liver: Normal liver.")
        for s, text in zip(batch.studies, said, strict=True)
    ]
    task = Retrieval(model, text="sections", text_encoder=SMALL, queries=2, embed_dim=16)
    volume = task.embed_volume(model, seen(model, batch))
    lungs = infonce(volume[:2], task.embed_text(model, said[:2]), task.scale)
    liver = infonce(volume, task.embed_text(model, ["Normal liver."] * 3), task.scale, same=["x"] * 3)
    torch.testing.assert_close(task.loss(model, seen(model, batch), batch).loss, (lungs + liver) / 2)


def test_what_counts_as_saying_the_same() -> None:
    one, other = "There is a 12 mm stone in the left kidney.", "A 12 mm left renal stone is seen. No ascites."
    assert says(one, "findings") == says(other, "findings") != says("Normal.", "findings")
    assert says(one, "text") != says(other, "text")
    assert says("Normal.  Study", "text") == says("normal. study", "text")


def test_the_temperature_is_exponentiated_and_kept_at_a_hundred() -> None:
    model, batch = shared(), batch_of(study(0), study(1))
    task = Retrieval(model, text_encoder=SMALL, queries=2, embed_dim=16)
    assert float(task.scale) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        task.log_scale.fill_(9.0)
    assert float(task.scale) == pytest.approx(100)
    assert float(task.loss(model, seen(model, batch), batch).log["scale"]) == pytest.approx(100)


def test_beyond_a_hundred_the_temperature_is_lowered_and_not_raised() -> None:
    """Also where the weights are divided and what a step sees is a copy: nothing is written into the parameter."""
    task = Retrieval(shared(), text_encoder=SMALL, queries=2, embed_dim=16)
    with torch.no_grad():
        task.log_scale.fill_(4.5)
    optimizer = torch.optim.AdamW([task.log_scale], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    told = []
    for direction, steps in ((-1.0, 400), (1.0, 100)):
        for _ in range(steps):
            optimizer.zero_grad()
            (direction * task.scale).backward()
            optimizer.step()
        told.append(float(task.log_scale.detach()))
    assert math.log(100) <= told[0] < math.log(100) + 0.02
    assert told[1] < math.log(100) - 0.02


# --- text towers --------------------------------------------------------------------------------------------


def test_words_are_read_in_their_order_and_sentences_in_none() -> None:
    torch.manual_seed(0)
    tower = SentenceEncoder(**SMALL)
    swapped = tower(
        ["Left effusion. No right nodule.", "No right nodule.\nleft effusion.", "Left nodule. No right effusion."]
    )
    torch.testing.assert_close(swapped[0], swapped[1])
    assert (swapped[0] - swapped[2]).abs().max() > 1e-3
    assert word_ids("a 1.4 cm nodule", 4096) == word_ids("a 14 mm nodule", 4096)
    assert tower(["", "…"]).isfinite().all()


@pytest.mark.parametrize(
    ("text", "other", "words"),
    [
        ("Großer Pleuraerguß.", "Großer Pleuratumor.", 2),
        ("Épanchement pleural gauche.", "E\u0301panchement pleural droit.", 3),
        ("Плевральный выпот слева.", "Плевральный выпот справа.", 3),
        ("左侧胸腔积液。肝脏正常。", "右侧胸腔积液。肝脏正常。", 6),
        ("ตับปกติ", "ไตปกติ", 5),
        ("बायाँ फेफड़ा सामान्य है।", "दायाँ फेफड़ा सामान्य है।", 4),
        ("انصباب جنبي أيسر.", "انصباب جنبي أيمن.", 3),
    ],
)  # fmt: skip
def test_every_script_is_read(text: str, other: str, words: int) -> None:
    torch.manual_seed(0)
    first, second = SentenceEncoder(**SMALL)([text, other])
    assert (first - second).abs().max() > 1e-3
    assert len(word_ids(sentences(text)[0], 4096)) == words


def test_english_words_keep_their_rows() -> None:
    """Saved towers know words by these numbers."""
    assert sentences("Liver: no T12-L1 x_y.\nA 3.5 cm cyst; 2 cm² (new)") == [
        "liver:", "no t12-l1 x_y.", "a 3.5 cm cyst;", "2 cm² (new)"
    ]  # fmt: skip
    rows = [word_ids(word, 4096) for word in ("liver", "x_y", "cm²", "t12")]
    assert rows == [(3785,), (1668, 1558), (1919,), (2729, 1230)]


def test_texts_of_a_batch_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    tower = SentenceEncoder(**SMALL).eval()
    texts = ["A left effusion.", "There is a very large right pneumothorax of the lung. Ascites.", "Normal."]
    torch.testing.assert_close(tower(texts), torch.cat([tower([text]) for text in texts]), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a word tokenizer, as a folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "there", "is", "a", "left", "pleural", "effusion", "normal", "no"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def test_a_hugging_face_tower_averages_its_tokens(bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tower, texts = text_encoder(str(bert)).eval(), ["There is a left pleural effusion", "Normal"]
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1) for text in texts]
    torch.testing.assert_close(tower(texts), torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_tower_stored_in_half_precision_learns_and_embeds_in_float32(
    stored: torch.dtype, bert: Path, tmp_path: Path
) -> None:
    """A step of 2e-5 is lost on a bfloat16 weight of 0.05, and a float32 head does not take half-precision states."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(bert).to(stored).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    tower = text_encoder(str(tmp_path))
    for built in (tower, PretrainedText(**tower.spec), PretrainedText({**tower.spec["config"], "dtype": "bfloat16"})):
        assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    task = Retrieval(shared(), text_encoder=str(tmp_path), queries=2, embed_dim=16).eval()
    assert task.embed_text(shared(), ["Normal"]).dtype == torch.float32


@pytest.mark.parametrize("source", ["bert", "small", "language"])
def test_a_saved_model_embeds_the_same_without_the_towers_folder(source: str, bert: Path, tmp_path: Path) -> None:
    import shutil

    model, gone = shared(language=source == "language"), tmp_path / "gone"
    shutil.copytree(bert, gone)
    tower = {"bert": str(gone), "small": SMALL, "language": "language"}[source]
    task = Retrieval(model, text_encoder=tower, queries=2, embed_dim=16).eval()
    save(tmp_path / "model", model, {"retrieval": task}, GRID)
    shutil.rmtree(gone)
    again, tasks, _ = build(tmp_path / "model")
    batch, texts = batch_of(study(0), study(1)), ["There is a left pleural effusion", "no effusion"]
    for one, other in (
        (task.embed_text(model, texts), tasks["retrieval"].embed_text(again, texts)),
        (task.embed_volume(model, seen(model, batch)), tasks["retrieval"].embed_volume(again, seen(again, batch))),
    ):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(2))
    assert str(gone) not in (tmp_path / "model" / "config.yaml").read_text()


def test_the_language_model_reads_texts_and_volumes_one_by_one_as_in_a_batch() -> None:
    model = shared(language=True).eval()
    task = Retrieval(model, text_encoder="language", embed_dim=16).eval()
    texts = ["There is a left pleural effusion.", "Normal."]
    torch.testing.assert_close(
        task.embed_text(model, texts),
        torch.cat([task.embed_text(model, [text]) for text in texts]),
        atol=1e-5,
        rtol=1e-4,
    )
    batch = batch_of(study(0), study(1))
    assert task.uses == {"visual"}
    output = task.loss(model, seen(model, batch), batch)
    output.loss.backward()
    assert model.language.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_towers_that_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='text_encoder="language" needs a model with a language model'):
        Retrieval(shared(), text_encoder="language")
    with pytest.raises(ValueError, match=r"text encoder '.*nothing' could not be loaded .*give a folder with config"):
        text_encoder(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="no tokenizer yet"):
        PretrainedText({"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 9})(["x"])
