"""Class subspaces: cosine heads where they are lines, blind to the basis everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from spectrim.errors import InputError
from spectrim.linalg.grassmann import orthonormalize
from spectrim.linalg.manifold_parameter import GrassmannParameter
from spectrim.nn.grassmann_linear import GrassmannLinear, violation
from tests.tolerances import FLOAT64_RELATIVE


def head(dim: int) -> tuple[GrassmannLinear, torch.Tensor]:
    torch.manual_seed(0)
    layer = GrassmannLinear(7, 4, subspace_dim=dim).double()
    layer.subspaces.data = orthonormalize(layer.subspaces.data)
    return layer, torch.randn(2, 5, 7).double()


def test_lines_are_the_cosine_head_up_to_the_sign():
    layer, features = head(1)
    cosines = cosine_similarity(features.unsqueeze(-2), layer.subspaces[..., 0], dim=-1)
    torch.testing.assert_close(
        layer(features), 25 * cosines.abs(), rtol=FLOAT64_RELATIVE, atol=0
    )


def test_logits_depend_on_the_subspaces_alone():
    layer, features = head(3)
    before = layer(features)
    turns = torch.linalg.qr(torch.randn(4, 3, 3).double()).Q
    with torch.no_grad():
        layer.subspaces.copy_(layer.subspaces @ turns)
    torch.testing.assert_close(layer(features * 5), before, rtol=FLOAT64_RELATIVE, atol=0)


def test_whole_spaces_know_no_classes():
    layer, features = head(7)
    full = torch.full((2, 5, 4), 25.0).double()
    torch.testing.assert_close(layer(features), full, rtol=FLOAT64_RELATIVE, atol=0)


def test_start_is_orthonormal_and_of_its_class():
    layer, _ = head(3)
    assert isinstance(layer.subspaces, GrassmannParameter)
    assert violation(GrassmannLinear(7, 4, 3)) < 1e-5


@pytest.mark.parametrize("dim", [0, 8])
def test_a_subspace_fits_into_the_features(dim):
    with pytest.raises(InputError, match="from 1 to 7"):
        GrassmannLinear(7, 4, subspace_dim=dim)
