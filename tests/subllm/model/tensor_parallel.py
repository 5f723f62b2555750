"""One of two processes that share the weights of a SUBLLM, and compare it with one that is whole; see the tests."""

import sys
from pathlib import Path

import torch
from torch import distributed
from transformers.distributed import DistributedConfig

from subllm import Probe, SubllmForCausalLM


@torch.no_grad()
def main():
    whole = SubllmForCausalLM.from_pretrained(Path(sys.argv[1]))
    half = SubllmForCausalLM.from_pretrained(Path(sys.argv[1]), distributed_config=DistributedConfig(tp_plan="auto"))
    for name, part in half.named_parameters():
        if "proj" in name or "embed" in name or "lm_head" in name:
            assert part.to_local().numel() == part.numel() // 2, name
    ids = torch.randint(1, 90, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    ours, theirs = (each(ids, attention_mask=mask, probe=Probe(record=True)) for each in (half, whole))
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    for one, other in zip(ours.routing, theirs.routing, strict=True):
        assert torch.equal(one.kept, other.kept)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    generated = [each.generate(ids, attention_mask=mask, **options) for each in (half, whole)]
    assert torch.equal(*generated)
    distributed.destroy_process_group()
    print("equal")  # noqa: T201


if __name__ == "__main__":
    main()
