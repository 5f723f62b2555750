"""The device, and a model on both devices."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import tiny_model

from . import NAME, REAL, pretend


@pytest.fixture(autouse=True, scope="session")
def one_kernel():
    """Attention by plain products on both devices, so that their numbers can be compared."""
    if not REAL:
        pretend.register()
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=["TTTT", "TT(TT)T", "T(T(T)T)T", "(T)T(TT)"])
def models(request):
    """A model, and the same one on the device."""
    model = tiny_model(request.param)
    return model, copy.deepcopy(model).to(NAME)


@pytest.fixture
def ids():
    """(4, 24) tokens."""
    return torch.randint(1, 97, (4, 24), generator=torch.Generator().manual_seed(0))
