"""Probes: what they do to a volume, and that a model that ignores the image is caught by each that must change it."""

import numpy as np
import pytest

from vol3d.evaluation.faithfulness import swap_side
from vol3d.evaluation.probes import (
    ROBUST,
    blank,
    erase,
    mirror,
    missing_slices,
    noise,
    score_probes,
    shift_hu,
    thick_slices,
)

LEFT, RIGHT = "left pleural effusion", "right pleural effusion"
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


def cases():
    rng = np.random.default_rng(1)
    names = [LEFT, RIGHT, "ascites", "gallstones"]
    truths = [{name for name in names if rng.random() < 0.5} or {LEFT} for _ in range(60)]
    erased = [sorted(keys)[0] for keys in truths]
    return truths, erased, list(range(60))


def test_a_model_that_looks_passes_every_probe():
    truths, erased, patients = cases()
    probed = {
        "blank": [set()] * 60,
        "mirror": [{swap_side(key) for key in keys} for keys in truths],
        "erase": [keys - {key} for keys, key in zip(truths, erased, strict=True)],
        "noise": truths,
    }
    got = score_probes(truths, truths, probed, patients, erased=erased, replicates=100)
    assert [got[name]["value"] for name in ("blank", "mirror", "erase")] == [1, 1, 1]
    assert got["noise"]["same_findings"]["value"] == 1
    assert got["noise"]["f1_change"]["value"] == 0


def test_a_model_that_ignores_the_image_fails_every_probe_that_must_change_it():
    truths, erased, patients = cases()
    says = [{LEFT, "ascites", "gallstones"}] * 60
    got = score_probes(truths, says, dict.fromkeys(("blank", "mirror", "erase"), says), patients, erased=erased)
    assert [got[name]["value"] for name in ("blank", "mirror", "erase")] == [0, 0, 0]
    assert all(got[name]["high"] < 0.15 for name in got)


def test_noise_that_hurts_is_measured():
    truths, _, patients = cases()
    got = score_probes(truths, truths, {"noise": [set()] * 60}, patients, replicates=200)["noise"]
    assert got["same_findings"]["value"] == 0
    assert got["f1_change"]["value"] == -1
    assert got["f1_change"]["p"] < 0.05


def test_bad_probes_are_named():
    truths, _, patients = cases()
    with pytest.raises(ValueError, match="unknown probe 'rotate'"):
        score_probes(truths, truths, {"rotate": truths}, patients)
    with pytest.raises(ValueError, match="probe 'blank': 1 outputs for 60 studies"):
        score_probes(truths, truths, {"blank": [set()]}, patients)
    with pytest.raises(ValueError, match="'erase': 0 erased keys for 60 studies"):
        score_probes(truths, truths, {"erase": truths}, patients)
