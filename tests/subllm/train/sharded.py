"""One of two processes that train a sharded SUBLLM, and compare it with one that is whole; see test_sharded.py."""

import copy

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.conftest import tiny_model

STEPS = 3


def train(model, batches):
    """Losses of a few steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # Adam turns rounding into steps
    losses = []
    for step, ids in enumerate(batches):
        torch.manual_seed(step)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return torch.stack(losses)


def main():
    mesh = init_device_mesh("cpu", (2,))
    rank = distributed.get_rank()
    torch.manual_seed(0)
    # without the balancer, which looks at all rows of a batch together and so is not a mean over rows
    settings = {"balancer_probability": [0.0, 0.0], "bypass_minimum": [0.0, 0.0]}
    whole = tiny_model("T(T(T)T)T", retention_ratio=0.6, **settings).train()
    sharded = copy.deepcopy(whole)
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    batches = torch.randint(1, whole.config.vocab_size, (STEPS, 2, 24), generator=torch.Generator().manual_seed(1))
    losses = train(sharded, batches[:, rank : rank + 1])
    distributed.all_reduce(losses, op=distributed.ReduceOp.SUM)
    torch.testing.assert_close(losses / 2, train(whole, batches), atol=1e-5, rtol=1e-5)
    for (name, part), (_, all_of_it) in zip(sharded.named_parameters(), whole.named_parameters(), strict=True):
        assert part.to_local().numel() <= all_of_it.numel() // 2 + all_of_it.shape[-1], name
        torch.testing.assert_close(
            part.full_tensor(), all_of_it, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    distributed.destroy_process_group()
    print("equal")  # noqa: T201


if __name__ == "__main__":
    main()
