"""How many tokens each router keeps in training is what its class says."""

import pytest
import torch

from subllm.routing import router_class
from tests.conftest import DEVICE, tiny_model


@pytest.mark.parametrize(
    ("router", "structure"), [("subllm", "T(T)T"), ("random", "T(T)T"), ("mod", "T(T)T"), ("colt5", "C")]
)
@pytest.mark.parametrize("length", [1, 7, 30])
def test_training_keeps_the_quota_of_the_router(router, structure, length):
    fields = (
        {"routed": {"query": 0.3, "key_value": 1.0, "mlp": 0.6}}
        if router == "colt5"
        else {"router": router, "retention_ratio": 0.3}
    )
    model = tiny_model(structure, **fields).to(DEVICE).train()
    ids = torch.randint(1, 97, (2, length)).to(DEVICE)
    records = model(ids, output_routing=True, use_cache=False).routing
    for record, name, ratio in zip(records, model.config.routers, model.config.retention_ratios, strict=True):
        assert name == router
        expected = router_class(name).quota(ratio, torch.tensor(length))
        assert record.kept.sum(1).tolist() == [int(expected)] * 2
