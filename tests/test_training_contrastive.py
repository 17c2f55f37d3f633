"""Contrastive losses: by hand, in chunks, over two processes, and with cached gradients; always the full batch's."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from vol3d.training.contrastive import gather, grad_cache, in_chunks, infonce, siglip


def vectors(pairs: int = 6, seed: int = 0, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [F.normalize(torch.randn(pairs, dim, generator=generator), dim=1) for _ in range(2)]
    return made[0].requires_grad_(), made[1].requires_grad_()


def test_infonce_by_hand() -> None:
    volume, text = torch.eye(2), torch.eye(2)
    one = -math.log(math.exp(3) / (math.exp(3) + 1))
    assert float(infonce(volume, text, torch.tensor(3.0))) == pytest.approx(one)
    # Both say the same: each is half of the target, and nothing is a negative.
    shared = -(math.log(math.exp(3) / (math.exp(3) + 1)) + math.log(1 / (math.exp(3) + 1))) / 2
    assert float(infonce(volume, text, torch.tensor(3.0), same=["normal", "normal"])) == pytest.approx(shared)


def test_infonce_is_clips_when_all_texts_differ() -> None:
    volume, text = vectors()
    logits = 10 * volume @ text.T
    peer = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(infonce(volume, text, torch.tensor(10.0), same=list("abcdef")), peer)


def test_siglip_by_hand() -> None:
    volume, text, scale, bias = torch.eye(2), torch.eye(2), torch.tensor(4.0), torch.tensor(-1.0)
    right, wrong = -math.log(1 / (1 + math.exp(-3))), -math.log(1 / (1 + math.exp(-1)))
    assert float(siglip(volume, text, scale, bias)) == pytest.approx(right + wrong)
    same = -math.log(1 / (1 + math.exp(1)))  # a pair that says the same is a positive one, however far apart
    assert float(siglip(volume, text, scale, bias, same=["x", "x"])) == pytest.approx(right + same)


def losses(volume: torch.Tensor, text: torch.Tensor, same: list[str] | None, chunk: int | None) -> torch.Tensor:
    scale, bias = torch.tensor(7.0), torch.tensor(-2.0)
    return infonce(volume, text, scale, same=same, chunk=chunk) + siglip(
        volume, text, scale, bias, same=same, chunk=chunk
    )


@pytest.mark.parametrize("same", [None, list("aabbcd")])
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_of_rows_change_neither_loss_nor_gradient(same: list[str] | None, chunk: int) -> None:
    whole, parts = vectors(), vectors()
    losses(*whole, same, None).backward()
    losses(*parts, same, chunk).backward()
    torch.testing.assert_close(losses(*whole, same, None), losses(*parts, same, chunk))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_same_must_be_one_a_pair() -> None:
    with pytest.raises(ValueError, match=r"6 pairs, 2 entries in `same`"):
        infonce(*vectors(), torch.tensor(1.0), same=["a", "b"])


# --- towers -------------------------------------------------------------------------------------------------


def towers(seed: int = 0) -> torch.nn.ModuleDict:
    torch.manual_seed(seed)

    def tower() -> torch.nn.Sequential:
        return torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 5)
        )

    return torch.nn.ModuleDict({"volume": tower(), "text": tower()})


def cosine(scale: torch.Tensor, volume: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return infonce(F.normalize(volume, dim=1), F.normalize(text, dim=1), scale)


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in module.parameters()]


def test_cached_gradients_are_the_full_batchs() -> None:
    images, texts = torch.randn(7, 4), torch.randn(7, 4)
    whole, chunked, cached = towers().eval(), towers().eval(), towers().eval()
    scales = [torch.tensor(5.0, requires_grad=True) for _ in range(3)]
    full = cosine(scales[0], whole["volume"](images), whole["text"](texts))
    full.backward()
    parts = cosine(scales[1], in_chunks(chunked["volume"], images, 3), in_chunks(chunked["text"], texts, 2))
    parts.backward()
    value = grad_cache(
        [cached["volume"], cached["text"]], [images, texts], lambda *pair: cosine(scales[2], *pair), size=3
    )
    assert not value.requires_grad
    for other, module, scale in ((parts, chunked, scales[1]), (value, cached, scales[2])):
        torch.testing.assert_close(other, full)
        torch.testing.assert_close(gradients(module), gradients(whole))
        torch.testing.assert_close(scale.grad, scales[0].grad)


def test_the_second_pass_drops_what_the_first_dropped() -> None:
    images, texts = torch.randn(6, 4), torch.randn(6, 4)
    graph, checkpointed, cached = towers(), towers(), towers()
    scale = torch.tensor(5.0)

    def step(volumes: torch.nn.Module, words: torch.nn.Module, size: int | None) -> None:
        torch.manual_seed(3)
        parts = [images[:3], images[3:], texts[:3], texts[3:]]
        if size is None:
            vectors = [volumes(parts[0]), volumes(parts[1]), words(parts[2]), words(parts[3])]
            cosine(scale, torch.cat(vectors[:2]), torch.cat(vectors[2:])).backward()
        else:
            cosine(scale, in_chunks(volumes, images, size), in_chunks(words, texts, size)).backward()

    step(graph["volume"], graph["text"], None)
    step(checkpointed["volume"], checkpointed["text"], 3)
    torch.manual_seed(3)
    grad_cache([cached["volume"], cached["text"]], [images, texts], lambda *pair: cosine(scale, *pair), size=3)
    torch.testing.assert_close(gradients(checkpointed), gradients(graph))
    torch.testing.assert_close(gradients(cached), gradients(graph))


@pytest.mark.parametrize("size", [None, 2])
def test_a_chunked_tower_keeps_no_activations(size: int | None) -> None:
    tower, widths = towers()["text"], set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        widths.add(tensor.shape[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        in_chunks(tower, torch.randn(8, 4), size)
    assert (16 in widths) == (size is None), "16 is the width inside the tower; its inputs are 4 wide"


# --- ranks --------------------------------------------------------------------------------------------------

SPLITS = {"even": (4, 4), "uneven": (5, 3), "none on one": (8, 0)}
SAME = list("abcdabxy")


def _rank(rank: int, folder: str, counts: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    volume, text = vectors(8)
    place = slice(0, counts[0]) if rank == 0 else slice(counts[0], 8)
    weight = torch.eye(5, requires_grad=True)
    scale = torch.tensor(7.0, requires_grad=True)
    same = SAME[place]
    pair = (volume.detach()[place] @ weight, text.detach()[place] @ weight)
    loss = infonce(*pair, scale, same=same, chunk=2) + siglip(*pair, scale, torch.tensor(-2.0), same=same)
    loss = loss + infonce(*pair, scale)
    loss.backward()
    for value in (loss.detach(), weight.grad, scale.grad):  # what DDP does: the mean over ranks
        dist.all_reduce(value)
        value /= 2
    rows = gather(torch.full((rank + 1, 2), float(rank)))
    torch.save((loss.detach(), weight.grad, scale.grad, rows), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("counts", SPLITS.values(), ids=SPLITS)
def test_two_processes_equal_one(counts: tuple[int, int], tmp_path: Path) -> None:
    mp.start_processes(_rank, (str(tmp_path), counts), nprocs=2, start_method="fork")
    volume, text = vectors(8)
    weight, scale = torch.eye(5, requires_grad=True), torch.tensor(7.0, requires_grad=True)
    pair = (volume.detach() @ weight, text.detach() @ weight)
    loss = infonce(*pair, scale, same=SAME) + siglip(*pair, scale, torch.tensor(-2.0), same=SAME)
    loss = loss + infonce(*pair, scale)
    loss.backward()
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(got[:3], (loss.detach(), weight.grad, scale.grad))
        assert got[3].tolist() == [[0, 0], [1, 1], [1, 1]]
