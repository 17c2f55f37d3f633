import numpy as np
import pytest
from hypothesis import given, settings
from volume_files import geometries, oblique

from vol3d.volume.geometry import Geometry, canonical_turn, turn, turn_back


@given(geometries())
@settings(max_examples=60, deadline=None)
def test_index_to_mm_and_back(geometry: Geometry) -> None:
    index = np.random.default_rng(0).uniform(-5, 20, (7, 3))
    np.testing.assert_allclose(geometry.to_index(geometry.to_mm(index)), index, atol=1e-8)


@given(geometries())
@settings(max_examples=60, deadline=None)
def test_canonical_keeps_every_voxel_where_it_is(geometry: Geometry) -> None:
    places = geometry.to_mm(np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), -1))
    order, flips = canonical_turn(geometry.affine)
    turned = np.stack([turn(places[..., axis], order, flips) for axis in range(3)], -1)
    canonical = geometry.canonical()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in canonical.shape], indexing="ij"), -1)
    np.testing.assert_allclose(canonical.to_mm(index), turned, atol=1e-8)
    assert canonical.axcodes == "RAS"
    back = turn_back(turn(places[..., 0], order, flips), order, flips)
    np.testing.assert_array_equal(back, places[..., 0])


def test_spacing_origin_and_codes() -> None:
    geometry = Geometry(np.array([[0, 0, -2.0, 5], [0.5, 0, 0, 6], [0, -3.0, 0, 7], [0, 0, 0, 1]]), (4, 5, 6))
    assert geometry.spacing == (0.5, 3.0, 2.0)
    assert geometry.origin == (5.0, 6.0, 7.0)
    assert geometry.axcodes == "AIL"
    assert geometry.canonical().shape == (6, 4, 5)


def test_box_holds_whole_voxels() -> None:
    geometry = Geometry(np.diag([2.0, 2, 5, 1]), (6, 6, 6))
    mask = np.zeros((6, 6, 6), bool)
    mask[1:3, 2, 4] = True
    assert geometry.box(mask) == ((1.0, 3.0, 17.5), (5.0, 5.0, 22.5))
    with pytest.raises(ValueError, match="empty"):
        geometry.box(np.zeros((6, 6, 6)))
    with pytest.raises(ValueError, match=r"\(5, 6, 6\), the grid is \(6, 6, 6\)"):
        geometry.box(mask[1:])


def test_closeness() -> None:
    one = Geometry(oblique(), (9, 9, 9))
    moved = oblique()
    moved[0, 3] += 1e-6
    assert one == Geometry(moved, (9, 9, 9))
    moved[0, 3] += 0.5
    assert one != Geometry(moved, (9, 9, 9))
    assert one != Geometry(oblique(), (9, 9, 8))


def test_shear_is_measured() -> None:
    sheared = np.eye(4)
    sheared[1, 2] = np.tan(np.radians(15))
    assert Geometry(sheared, (2, 2, 2)).shear_degrees == pytest.approx(15)
    assert Geometry(oblique(), (2, 2, 2)).shear_degrees == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_impossible_affine(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="invertible"):
        Geometry(bad, (2, 2, 2))


def test_affine_is_a_copy_and_cannot_be_written() -> None:
    affine = np.eye(4)
    geometry = Geometry(affine, (2, 2, 2))
    affine[0, 0] = 5
    assert geometry.spacing == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2
