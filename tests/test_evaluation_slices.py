"""Pictures: radiological display, square pixels, window, masks on the same planes."""

import numpy as np
import pytest

from vol3d.evaluation.slices import WINDOWS, mask_slices, middle, slices, window_for

WIDE = (-1000.0, 1000.0)


def volume_with(corner):
    """Air, and one bright octant: corner says for x, y, z whether it is the high (right, anterior, superior) half."""
    hu = np.full((6, 8, 4), -1000, dtype=np.int16)
    half = [slice(size // 2, None) if high else slice(size // 2) for size, high in zip(hu.shape, corner, strict=True)]
    hu[tuple(half)] = 1000
    return hu


def bright_part(picture):
    rows, columns = np.nonzero(picture > 127)
    middle_row, middle_column = (picture.shape[0] - 1) / 2, (picture.shape[1] - 1) / 2
    return ("top" if rows.mean() < middle_row else "bottom", "left" if columns.mean() < middle_column else "right")


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("anterior", [True, False])
@pytest.mark.parametrize("superior", [True, False])
def test_display_is_radiological(right, anterior, superior):
    hu = volume_with((right, anterior, superior))
    at = tuple(int(i) for i in np.argwhere(hu > 0)[0])
    axial, coronal, sagittal = slices(hu, (1.0, 1.0, 1.0), WIDE, at)
    side = "left" if right else "right"  # the patient's right is shown on the left
    up = "top" if superior else "bottom"
    assert bright_part(axial) == ("top" if anterior else "bottom", side)
    assert bright_part(coronal) == (up, side)
    assert bright_part(sagittal) == (up, "left" if anterior else "right")


def test_pixels_are_square():
    got = slices(np.zeros((10, 20, 8), dtype=np.int16), (2.0, 1.0, 5.0), WIDE)
    assert [picture.shape for picture in got] == [(20, 20), (40, 20), (40, 20)]
    assert all(picture.dtype == np.uint8 for picture in got)


def test_window_goes_from_black_to_white():
    hu = np.broadcast_to(np.array([-2000, -160, 40, 240, 3000], dtype=np.int16)[:, None, None], (5, 5, 5))
    axial = slices(hu, (1.0, 1.0, 1.0), WINDOWS["soft tissue"]).axial
    assert axial[0].tolist() == [255, 255, 128, 0, 0]  # the highest x, patient right, first


def test_masks_lie_on_the_same_planes():
    hu = volume_with((True, False, True))
    mask = hu > 0
    pictures, outlines = slices(hu, (1.0, 1.0, 2.0), WIDE, mask), mask_slices(mask, (1.0, 1.0, 2.0), mask)
    for picture, outline in zip(pictures, outlines, strict=True):
        assert outline.dtype == bool
        assert ((picture > 127) == outline).mean() > 0.95


def test_cut_through_the_middle_of_a_ring_hits_the_ring():
    x, y = np.mgrid[-5:6, -5:6]
    ring = ((np.hypot(x, y) > 3) & (np.hypot(x, y) < 5))[..., None].repeat(3, axis=2)
    assert ring[middle(ring)]
    assert middle(np.zeros((4, 6, 8), dtype=bool)) == (2, 3, 4)


def test_window_for_a_finding():
    assert window_for({"left pneumothorax"}) == "lung"
    assert window_for({"vertebral fracture"}) == "bone"
    assert window_for({"ascites"}) == window_for(set()) == "soft tissue"


def test_errors_name_both_numbers():
    hu = np.zeros((4, 4, 4), dtype=np.int16)
    with pytest.raises(ValueError, match=r"\(4, 0, 0\) lies outside the volume of \(4, 4, 4\)"):
        slices(hu, (1.0, 1.0, 1.0), WIDE, (4, 0, 0))
    with pytest.raises(ValueError, match=r"mask is \(2, 2, 2\) voxels, volume is \(4, 4, 4\)"):
        slices(hu, (1.0, 1.0, 1.0), WIDE, np.zeros((2, 2, 2), dtype=bool))
