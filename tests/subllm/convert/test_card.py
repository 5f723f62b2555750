"""Model cards say what was done, in the form that the hub reads."""

import argparse

import pytest
from huggingface_hub import ModelCard

from subllm.assets import ASSETS
from subllm.convert.card import model_card
from subllm.convert.distillation import AdaptOptions
from subllm.convert.fidelity import Fidelity


def test_a_card_names_a_base_that_is_on_the_hub():
    given = ["llama", "--model", "someone/a-llama"]
    arguments = argparse.Namespace(model="someone/a-llama", structure="T(T)T", retention=[0.64], given=given)
    card = model_card(arguments, AdaptOptions(), [(8, Fidelity(3.0, 4.0, 0.1, 0.7, [0.6], 96))])
    assert ModelCard(card).data.base_model == "someone/a-llama"
    assert "| perplexity over dense | 1.333 |" in card


@pytest.mark.parametrize("name", ["demo", "small"])
def test_shipped_cards_have_metadata_that_the_hub_reads(name):
    metadata = ModelCard.load(ASSETS / name / "README.md").data
    assert (metadata.license, metadata.library_name, metadata.pipeline_tag) == (
        "apache-2.0", "transformers", "text-generation",
    )  # fmt: skip
    assert "subllm" in metadata.tags and metadata.language == ["en"]
