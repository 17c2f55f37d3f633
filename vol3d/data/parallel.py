"""One function over many things in several processes, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Calls:
    """The calls as a dataset, so that torch's DataLoader brings its worker processes."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function = function
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def _as_it_is(result: Any) -> Any:
    return result


def map_in_order(function: Callable[[Item], Result], items: Sequence[Item], workers: int = 0) -> Iterator[Result]:
    """`function` of each item, in order, by `workers` processes (0: in this one).

    What `function` raises ends the iteration; it should return what may go wrong with a single item.

    Raises:
        RuntimeError: a worker was killed, most often because memory ran out.
    """
    if workers < 1 or len(items) < 2:
        yield from map(function, items)
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Calls(function, items),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_as_it_is,
        prefetch_factor=4,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise RuntimeError(
                f"a worker process died ({error}): often memory ran out; use fewer than {workers} workers. "
                "What was finished is kept: run the same command again"
            ) from error
        raise


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most `size` items, as they come.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"a batch of {size}: ask for 1 or more")
    left = iter(items)
    while held := list(islice(left, size)):
        yield held
