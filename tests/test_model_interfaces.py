"""What the parts share: they remember how they were built, also when copied, and features can be selected."""

import copy
import pickle

import torch

import vol3d
from vol3d.model.interfaces import Features


def test_a_part_remembers_its_arguments_and_survives_copying() -> None:
    projector = vol3d.PerceiverProjector(24, 32, num_latents=5, num_heads=2)
    assert projector.init_args == {"in_dim": 24, "out_dim": 32, "num_latents": 5, "num_heads": 2}
    for twin in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert twin.init_args == projector.init_args
        torch.testing.assert_close(twin.state_dict(), projector.state_dict())


def test_features_of_some_studies_keep_what_belongs_to_them() -> None:
    affine = torch.arange(48, dtype=torch.float64).reshape(3, 4, 4)
    features = Features(torch.randn(3, 8, 4), (2, 2, 2), affine, torch.randn(3, 4), (torch.randn(3, 2, 4, 4, 4),))
    some = features[[2, 0]]
    assert len(some) == 2
    torch.testing.assert_close(some.tokens, features.tokens[[2, 0]])
    torch.testing.assert_close(some.affine, affine[[2, 0]])
    torch.testing.assert_close(some.scales[0], features.scales[0][[2, 0]])
    assert some.visual is None
