"""The text that measurements read."""

from analysis.cost.benchmark_text import NEW_TOKENS, prompt_of
from subllm.checkpoints.load import load_checkpoint


def test_the_text_becomes_tokens_once_for_all_settings(tiny_checkpoint, monkeypatch):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    kind, texts = type(checkpoint.tokenizer), []
    plain = kind.__call__

    def heard(self, text, **options):
        texts.append(text)
        return plain(self, text, **options)

    monkeypatch.setattr(kind, "__call__", heard)
    rows = {(batch, length): prompt_of(checkpoint, length, batch) for length in (8, 16, 32) for batch in (1, 2)}
    assert len(texts) == 1
    assert all(ids.shape == (batch, length + NEW_TOKENS) for (batch, length), ids in rows.items())
