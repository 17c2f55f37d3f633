"""Training that begins from a saved model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import world

import vol3d
from vol3d.model.language import Lora, Pretrained, Scratch
from vol3d.model.pretrained import base_of, build, save
from vol3d.tasks import FindingMaps, ReportGeneration
from vol3d.training.callbacks import SaveModel
from vol3d.training.module import VolumeModule

GRID = vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=[(-1000, 1000)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the small world, with weights that no start from nothing would give."""
    module = world.module()
    module.language = module.language.build(["There is a left pleural effusion."])
    module.configure_model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    folder = tmp_path_factory.mktemp("base") / "model"
    return save(folder, module.model, dict(module.tasks.items()), GRID)


def tuned(base: Path, language: Scratch | Pretrained | None = None) -> VolumeModule:
    module = world.module(base=str(base))
    module.language = language or module.language
    module.language = module.build_language(["Words that the base has never read."])
    module.configure_model()
    return module


def test_every_part_begins_with_the_bases_weights_and_the_language_with_its_words(base: Path) -> None:
    model, tasks, _ = build(base)
    got = tuned(base)
    wanted = torch.nn.ModuleDict({"model": model, "tasks": torch.nn.ModuleDict(tasks)}).state_dict()
    own = torch.nn.ModuleDict({"model": got.model, "tasks": got.tasks}).state_dict()
    assert own.keys() == wanted.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)
    assert got.model.language.tokenizer.get_vocab() == model.language.tokenizer.get_vocab()


def test_a_manifest_in_memory_leaves_a_model(tmp_path: Path) -> None:
    rows = vol3d.Manifest.read(vol3d.phantom.write(tmp_path / "data", studies=2, shape=(32, 32, 16)))
    table = tmp_path / "ct.csv"
    lines = [f"{s.study},{s.image},train,Normal.\n" for s in rows]
    table.write_text("id,file,set,text\n" + "".join(lines), encoding="utf-8")
    columns = {"study": "id", "image": "file", "split": "set", "report": "text"}
    manifest = vol3d.Manifest.from_csv(table, columns)
    module, data = world.module(stages={"speak": world.SPEAK}), vol3d.VolumeData(manifest, GRID, batch_size=2)
    world.trainer(1, tmp_path, callbacks=[SaveModel(tmp_path / "run")]).fit(module, data)
    assert vol3d.load(tmp_path / "run/model").report(rows[0].image) is not None
    assert "Manifest in memory, 2 training studies" in (tmp_path / "run/model/card.md").read_text()


def test_another_grid_than_the_bases_is_told(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = world.World([world.study(number) for number in range(8)])
    for window, told in (((-1000, 1000), False), ((-160, 240), True)):
        caplog.clear()
        data.grid = vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=window, name="other")
        world.trainer(1, tmp_path).fit(world.module(base=str(base), stages={"speak": world.SPEAK}), data)
        said = "was trained on another grid (window [[-1000.0, 1000.0]], here [[-160.0, 240.0]]): for"
        assert (said in caplog.text) is told


def test_a_run_from_a_base_learns_and_its_model_names_the_base(base: Path, tmp_path: Path) -> None:
    module = world.module(base=str(base), stages={"speak": world.SPEAK})
    losses, data = world.Losses(), world.World([world.study(number) for number in range(16)])
    data.grid, data.manifest.path = GRID, tmp_path / "manifest.jsonl"
    world.trainer(3, tmp_path, callbacks=[losses, SaveModel(tmp_path / "run")]).fit(module, data)
    assert losses.values[-1] < losses.values[0]
    folder = tmp_path / "run" / "model"
    assert base_of(folder).resolve() == base.resolve()
    assert "Fine-tuned from" in (folder / "card.md").read_text()
    assert base_of(base) is None


def test_a_new_task_keeps_its_own_weights_and_another_encoder_is_refused(base: Path) -> None:
    module = world.module(base=str(base))
    module.task_factories = {
        "report": ReportGeneration,
        "other": partial(FindingMaps, findings=["ascites"], cells=(1, 1, 1)),
    }
    module.language = module.build_language([])
    module.configure_model()
    assert set(module.tasks) == {"report", "other"}
    wide = world.module(base=str(base))
    wide.encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 2))
    wide.language = wide.build_language([])
    with pytest.raises(ValueError, match=r"its encoder is another one, 25 of 25 .* is \(192,\) there and \(96,\) here"):
        wide.configure_model()


def test_a_head_of_the_same_size_for_other_names_is_refused(base: Path, tmp_path: Path) -> None:
    """Its rows would begin as other findings'."""
    findings = ["ascites", "left pleural effusion"]

    def module(findings: list[str], **given: str) -> VolumeModule:
        made = world.module(**given)
        made.task_factories = {"maps": partial(FindingMaps, findings=findings, cells=(1, 1, 1))}
        made.language = made.language.build(["A text."])
        made.configure_model()
        return made

    one = module(findings)
    folder = save(tmp_path / "model", one.model, dict(one.tasks.items()), GRID)
    module(findings, base=str(folder))
    said = r"'maps' answers 'ascites' where this one answers 'left pleural effusion' \(number 0 of 2\)"
    with pytest.raises(ValueError, match=said):
        module(findings[::-1], base=str(folder))


def test_other_arguments_that_no_shape_tells_are_told(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned(base)
    assert "was built with other arguments" not in caplog.text
    module = world.module(base=str(base))
    module.encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=4, patch_size=(4, 4, 2))
    module.language = module.build_language([])
    module.configure_model()
    assert "its encoder was built with other arguments: num_heads 2, here 4" in caplog.text


def test_pretrained_puts_adapters_of_its_own_around_the_bases_language(base: Path, tmp_path: Path) -> None:
    adapted = tuned(base, Pretrained("unread", lora=Lora(rank=2, targets=["q_proj"])))
    language = adapted.model.language
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    ids = torch.arange(6)[None]
    once = language.model(input_ids=ids).logits
    folder = save(tmp_path / "adapted", adapted.model, {}, GRID, base=base)
    again = tuned(folder, Pretrained("unread", lora=Lora(rank=2, targets=["v_proj"]))).model.language
    torch.testing.assert_close(again.model(input_ids=ids).logits, once, rtol=1e-4, atol=1e-4)
    plain = tuned(folder, Scratch()).model.language
    assert plain.lora == Lora(rank=2, targets=["q_proj"])
    with pytest.raises(ValueError, match="to be held in 4 bits"):
        tuned(base, Pretrained("unread", lora=Lora(), quantization="4bit"))
