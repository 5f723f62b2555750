"""What is recorded of a text is the same whether it is read alone or packed with others, and is what the models say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.corpus.reading import NotFinite, Reader, batches
from analysis.corpus.schema import Options
from analysis.debug.attention import attention_of
from analysis.errors import CorpusError
from analysis.trace.prefill import prefill
from subllm.checkpoints.dense import DenseModel, routing_off
from tests.conftest import tiny_model

FIELDS = ("scores", "norms", "surprisal", "entropy", "dense_surprisal", "attention")
STRUCTURES = {
    "TT(T(T)T)T": {},
    "TTT": {},
    "T(T)(T)T": {"router": ["mod", "even"]},
    "TCT": {},
    "T(TT)T": {"router": "stride"},
}


def reader_of(structure, **fields):
    torch.set_num_threads(1)
    model = tiny_model(structure, **fields)
    return Reader(model, DenseModel(_other(model), is_twin=True), attention="C" not in structure)


def _other(model):
    """A LLaMA of the same sizes and other weights; one that shares weights cannot be made of all structures."""
    torch.manual_seed(1)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = LlamaConfig(num_hidden_layers=2, **{name: getattr(model.config, name) for name in names})
    return LlamaForCausalLM(config).eval()


def ids(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 97, length) for length in lengths]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_packed_text_is_read_as_it_is_alone(structure):
    reader = reader_of(structure, **STRUCTURES[structure])
    windows = ids(7, 1, 12, 30, 2)
    together = reader.read([windows[:3], windows[3:]])
    for window, found in zip(windows, [*together[0], *together[1]], strict=True):
        ((alone,),) = reader.read([[window]])
        assert (found.kept == alone.kept).all() and (found.agrees == alone.agrees).all()
        for name in FIELDS:
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), atol=1e-4, rtol=1e-4, err_msg=name)


def test_what_is_recorded_is_what_the_trace_and_the_logits_say():
    reader = reader_of("TT(T(T)T)T")
    (window,) = ids(20)
    ((found,),) = reader.read([[window]])
    row = torch.tensor(window)[None]
    routing = prefill(reader.model, row).routing
    assert (found.kept == routing.kept).all()
    np.testing.assert_allclose(found.scores, routing.scores, atol=1e-5)
    np.testing.assert_allclose(found.norms, routing.stream_norm, rtol=1e-5)
    with torch.no_grad():
        ours, dense = (model(row).logits[0].double().log_softmax(-1) for model in (reader.model, reader.dense.model))
    after = torch.arange(19), row[0, 1:]
    np.testing.assert_allclose(found.surprisal[1:], -ours[:-1][after], rtol=1e-4)
    np.testing.assert_allclose(found.dense_surprisal[1:], -dense[:-1][after], rtol=1e-4)
    np.testing.assert_allclose(found.entropy[1:], -(ours.exp() * ours).sum(-1)[:-1], rtol=1e-4)
    assert (found.agrees == (ours.argmax(-1) == dense.argmax(-1)).numpy()).all()
    assert np.isnan([found.surprisal[0], found.entropy[0], found.dense_surprisal[0]]).all()


def test_attention_received_is_the_mean_of_what_later_tokens_pay():
    reader = reader_of("TT(T)T")
    (window,) = ids(9)
    ((found,),) = reader.read([[window]])
    paid = np.stack([np.nan_to_num(attention_of(reader.model, window, token)[1].mean(0)) for token in range(9)])
    expected = [paid[token + 1 :, token].mean() for token in range(8)]
    np.testing.assert_allclose(found.attention[:-1], expected, rtol=1e-4)
    assert np.isnan(found.attention[-1])


@pytest.mark.parametrize("structure", ["(T)T(T)T", "CCCC"])
def test_attention_is_refused_where_no_block_before_the_levels_has_all_tokens(structure):
    with pytest.raises(CorpusError, match="Leave out --attention") as error:
        Reader(tiny_model(structure), None, attention=True)
    assert structure in str(error.value)


def test_numbers_that_are_not_finite_are_refused():
    model = tiny_model("T(T)T")
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = torch.inf
    reader = Reader(model, DenseModel(routing_off(model), is_twin=False), attention=False)
    with pytest.raises(NotFinite):
        reader.read([[np.array([1, 2, 3])]])
    assert len(reader.read([[np.array([1, 2])]])) == 1


@given(
    st.lists(st.integers(1, 40), max_size=30),
    st.integers(1, 3),
    st.integers(1, 60),
)
def test_every_window_is_in_one_batch_and_rows_are_no_longer_than_they_need_be(lengths, rows, row_tokens):
    found = list(batches(lengths, Options(rows=rows, row_tokens=row_tokens)))
    assert sorted(window for batch in found for row in batch for window in row) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= rows
        for row in batch:
            assert len(row) == 1 or sum(lengths[window] for window in row) <= row_tokens
