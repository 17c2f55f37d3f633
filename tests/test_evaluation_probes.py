"""Probes: what they do to a volume."""

import numpy as np
import pytest

from vol3d.evaluation.probes import (
    ROBUST,
    blank,
    contrast_phase,
    erase,
    mirror,
    missing_slices,
    noise,
    shift_hu,
    thick_slices,
)

HU = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 10)).astype(np.int16)


@pytest.mark.parametrize("probe", [blank, mirror, *ROBUST.values()])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_shape_type_and_input_stay(probe, dtype):
    before = HU.astype(dtype)
    given = before.copy()
    changed = probe(given)
    assert changed.shape == before.shape
    assert changed.dtype == dtype
    assert (given == before).all()
    assert (changed != before).any()
    assert (probe(given) == changed).all()
    assert probe(given[None]).shape == (1, *before.shape)


def test_mirror_twice_is_nothing():
    assert (mirror(mirror(HU)) == HU).all()
    assert (mirror(HU)[0] == HU[-1]).all()


def test_blank_is_air():
    assert (blank(HU) == -1024).all()


def test_shift_and_noise_have_their_size():
    assert (shift_hu(HU, 15) - HU == 15).all()
    big = np.zeros((40, 40, 40), dtype=np.float32)
    assert noise(big, 25).std() == pytest.approx(25, rel=0.02)
    assert shift_hu(np.full((1, 1, 1), 32767, dtype=np.int16), 10).item() == 32767


def test_thick_slices_average_and_keep_the_mean():
    volume = HU.astype(np.float32)
    thick = thick_slices(volume, 3)
    assert thick[..., 0] == pytest.approx(volume[..., :3].mean(-1))
    assert (thick[..., 0] == thick[..., 2]).all()
    assert (thick[..., 9] == volume[..., 9]).all()  # a group of one at the end
    assert thick.mean() == pytest.approx(volume.mean(), abs=0.01)


def test_missing_slices_repeat_the_one_before():
    volume = np.broadcast_to(np.arange(20, dtype=np.int16), (2, 2, 20))
    got = missing_slices(volume, 0.25)[0, 0]
    assert (got != np.arange(20)).sum() == 5
    assert (np.diff(got) >= 0).all()
    assert set(got) < set(range(20))


def test_erase_fills_with_what_is_around():
    hu = np.full((20, 20, 20), 50, dtype=np.int16)
    mask = np.zeros(hu.shape, dtype=bool)
    mask[8:12, 8:12, 8:12] = True
    hu[mask] = 900
    assert (erase(hu, mask) == 50).all()
    with pytest.raises(ValueError, match="mask has 0 of 8000 voxels"):
        erase(hu, np.zeros_like(mask))


def test_the_other_contrast_phase():
    rng = np.random.default_rng(0)
    organs = np.zeros((12, 12, 12), dtype=np.int16)
    organs[:4], organs[4:8], organs[8:] = 1, 2, 3
    labels = {"aorta": 1, "left kidney": 2, "spine": 3}
    plain = rng.normal(40, 5, organs.shape).astype(np.int16)
    venous = contrast_phase(plain, organs, labels)
    assert np.median(venous[organs == 1]) == pytest.approx(150, abs=3)
    assert np.median(venous[organs == 2]) == pytest.approx(188, abs=3)
    assert (venous[organs == 3] == plain[organs == 3]).all()
    assert (contrast_phase(venous, organs, labels) == plain).all()  # and back
    assert (contrast_phase(plain, organs, {"spine": 3}) == plain).all()
