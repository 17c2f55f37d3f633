"""Files made to do harm: refused before memory is taken or code is run."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volume_files import body, save_nifti

from vol3d.volume.read import read, read_mask


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["ct.npy", "ct.nii", "ct.nii.gz", "ct.mha", "ct.nrrd"])
@pytest.mark.parametrize("reader", [read, read_mask])
def test_pickle_is_never_unpacked(name: str, reader: Any, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    with path.open("wb") as stream:
        np.save(stream, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=name):
        reader(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=name):
        reader(path)
    assert not mark.exists()


def test_a_trillion_voxels_take_no_memory(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii", body(), dim=[3, 10000, 10000, 10000, 1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"1e\+12 voxels"):
        read(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"1e\+12 voxels"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
