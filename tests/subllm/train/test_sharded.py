"""Fully sharded training (FSDP) takes the steps of a model that is whole."""

import subprocess
import sys


def test_two_processes_with_half_of_the_weights_each_take_the_same_steps_as_one():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.subllm.train.sharded"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2  # both processes got to the end
