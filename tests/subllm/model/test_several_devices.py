"""A model whose weights lie on several devices or in several processes gives the numbers of one that is whole."""

import subprocess
import sys

import pytest
from transformers.distributed import DistributedConfig

from subllm import SubllmForCausalLM
from tests.conftest import tiny_model


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_two_processes_with_half_of_every_matrix_each(tied, tmp_path):
    tiny_model("T(T(T)T)T", vocab_size=98, tie_word_embeddings=tied).save_pretrained(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.subllm.model.tensor_parallel", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2  # both processes got to the end


def test_a_pipeline_is_refused_with_what_to_use(tmp_path):
    tiny_model("T(T)T").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pp_size is 2.*tp_size"):
        SubllmForCausalLM.from_pretrained(tmp_path, distributed_config=DistributedConfig(pp_size=2))
