"""Model cards say what was done, in the form that the hub reads."""

import argparse

import pytest
from huggingface_hub import ModelCard

from subllm.assets import ASSETS
from subllm.convert.card import model_card
from subllm.convert.distillation import AdaptOptions
from subllm.convert.fidelity import Fidelity
from tests.conftest import tiny_config


def test_a_card_names_a_base_that_is_on_the_hub():
    given = ["llama", "--model", "someone/a-llama"]
    arguments = argparse.Namespace(model="someone/a-llama", given=given)
    card = model_card(arguments, tiny_config("T(T)T"), AdaptOptions(), [(8, Fidelity(3.0, 4.0, 0.1, 0.7, [0.6], 96))])
    assert ModelCard(card).data.base_model == "someone/a-llama"
    assert "| perplexity over dense | 1.333 |" in card


@pytest.mark.parametrize(
    ("structure", "fields", "trained", "routers", "retention"),
    [
        ("T(T)T(T)T", {}, ", bypass scales, scorers", "subllm", "0.64"),
        (
            "T(T)T",
            {"router": "stride", "retention_ratio": 0.5},
            ", bypass scales, weights of merged tokens",
            "stride",
            "0.5",
        ),
        ("TCT", {}, ", scorers", "colt5", "0.125, 0.25, 0.125"),
        ("C(T)", {"router": "mod"}, ", scorers", "colt5, colt5, colt5, mod", "0.125, 0.25, 0.125, 0.64"),
        ("TT", {}, "", "none", "none"),
    ],
)
def test_a_card_says_what_there_was_to_train(structure, fields, trained, routers, retention):
    arguments = argparse.Namespace(model="a-llama", given=[])
    found = [(8, Fidelity(3.0, 4.0, 0.1, 0.7, [0.6], 96))]
    lines = model_card(arguments, tiny_config(structure, **fields), AdaptOptions(rank=3), found).splitlines()
    assert f"| trained | rank-3 adapters{trained} |" in lines
    assert f"| router | {routers} |" in lines
    assert f"| nominal retention | {retention} |" in lines


@pytest.mark.parametrize("name", ["demo", "small"])
def test_shipped_cards_have_metadata_that_the_hub_reads(name):
    metadata = ModelCard.load(ASSETS / name / "README.md").data
    assert (metadata.license, metadata.library_name, metadata.pipeline_tag) == (
        "apache-2.0", "transformers", "text-generation",
    )  # fmt: skip
    assert "subllm" in metadata.tags and metadata.language == ["en"]
