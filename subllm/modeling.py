"""The SUBLLM model: LLaMA blocks on a sequence that narrows at every "(" and widens again at every ")"."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaPreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .block import Block
from .cache import Level, SubllmCache
from .configuration import SubllmConfig
from .routing import RoutingRecord, StreamState
from .stream import Snapshot, Tokens, absolute, routing_record, uneven, unpack
from .structure import BLOCK, CLOSE, OPEN
from .subsampling import Rule, Subsampler
from .upsampling import Bypass, gather_tokens, scatter_add, upsample

Observer = Callable[[StreamState], None]


@dataclass
class SubllmOutput(BaseModelOutputWithPast):
    """Output of `SubllmModel`; `routing` has one record per subsampling module, in order of opening."""

    routing: tuple[RoutingRecord, ...] | None = None


@dataclass
class SubllmCausalLMOutput(CausalLMOutputWithPast):
    """Output of `SubllmForCausalLM`; `routing` has one record per subsampling module, in order of opening."""

    routing: tuple[RoutingRecord, ...] | None = None


class SubllmPreTrainedModel(LlamaPreTrainedModel):
    """Base class: weight initialisation and what transformers needs to know."""

    config: SubllmConfig
    config_class = SubllmConfig
    _no_split_modules: ClassVar = [Block.__name__]
    _supports_flex_attn = False
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Subsampler):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, Bypass):
            nn.init.constant_(module.scale, Bypass.INITIAL_SCALE)


class SubllmModel(SubllmPreTrainedModel):
    """Embedding, blocks, subsampling, upsampling and bypass, final norm.

    Args:
        config: configuration; its structure decides which blocks run on which tokens.
    """

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.parsed_structure.num_blocks))
        self.subsamplers = nn.ModuleList(Subsampler(config.hidden_size, ratio) for ratio in config.retention_ratios)
        self.bypasses = nn.ModuleList(Bypass(config.hidden_size) for _ in config.retention_ratios)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.structure = config.parsed_structure
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SubllmCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_routing: bool = False,
        observer: Observer | None = None,
        rule: Rule | None = None,
        snapshots: dict[int, Snapshot] | None = None,
        resume: Snapshot | None = None,
        **kwargs: Any,
    ) -> SubllmOutput:
        """Run the model.

        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`.
            attention_mask: (B, T) or (B, cached + T), 0 at padding; padding may be on either side.
            position_ids: (B or 1, T) rotary positions; by default each row counts its real tokens from 0.
            past_key_values: cache to continue from.
            inputs_embeds: (B, T, D) embeddings.
            use_cache: return a cache.
            output_routing: return `routing`.
            observer: called with the stream after the embedding and after every character of the structure. An
                exception that it raises stops the forward and leaves the cache as it was.
            rule: decides which tokens are kept, in place of the sign of their scores.
            snapshots: filled with the state before each span, by its number.
            resume: state to go on from; the steps before it are not run again. Every row goes on from the same one.
            **kwargs: for the attention kernel.

        Returns:
            `last_hidden_state` (B, T, D), zero at padding; the cache; the routing. `hidden_states`, if asked for,
            holds the input of every block with the tokens present there, packed.

        Raises:
            ValueError: if neither or both of `input_ids` and `inputs_embeds` are given.
            TypeError: if the cache is not a `SubllmCache`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if resume is not None and (past_key_values is not None or attention_mask is not None):
            raise ValueError("A forward resumes without cache and padding; leave past_key_values and the mask out.")
        cache = None if resume is not None else self._cache(past_key_values, use_cache)
        columns = inputs_embeds.shape[1]
        if self._must_feed_one_by_one(inputs_embeds, cache, output_routing, observer):
            return self._feed_one_by_one(inputs_embeds, attention_mask, position_ids, cache, rule=rule, **kwargs)

        outer: list[Tokens] = []
        records: dict[int, RoutingRecord] = {}
        if resume is None:
            tokens, padding = self._read(inputs_embeds, attention_mask, position_ids, cache)
            start = 0
        else:
            *outer, tokens = resume.rows(inputs_embeds.shape[0])
            records, padding, start = dict(resume.records), None, resume.step
        del inputs_embeds  # memory for the blocks
        spans = self.structure.open_spans(start)
        if observer is not None:
            inside = spans[-1] if spans else None
            observer(StreamState(start, "", inside, tokens.hidden_states, tokens.positions, tokens.mask))
        for number, step in enumerate(self.structure.steps[start:], start=start + 1):
            if step.symbol == OPEN:
                if snapshots is not None:
                    snapshots[step.index] = Snapshot.take(number - 1, [*outer, tokens], records)
                outer.append(tokens)
                spans.append(step.index)
                tokens = self._open(tokens, step.index, cache, rule)
            elif step.symbol == CLOSE:
                before = outer.pop()
                tokens, record = self._close(before, tokens, step.index, output_routing)
                spans.pop()
                if record is not None:
                    records[step.index] = record
            elif step.symbol == BLOCK and tokens.hidden_states.shape[1]:
                tokens.hidden_states = self.layers[step.index](
                    tokens.hidden_states,
                    attention_mask=tokens.attention_mask,
                    position_ids=None,
                    past_key_values=cache,
                    use_cache=use_cache,
                    position_embeddings=tokens.rotary,
                    **kwargs,
                )
            if observer is not None:
                span = spans[-1] if spans else None
                observer(StreamState(number, step.symbol, span, tokens.hidden_states, tokens.positions, tokens.mask))
        hidden_states = self.norm(tokens.hidden_states)
        if padding is not None:
            hidden_states = unpack(hidden_states, padding)
        if cache is not None:
            cache.commit(columns)
        return SubllmOutput(
            last_hidden_state=hidden_states,
            past_key_values=cache,
            routing=tuple(records[index] for index in sorted(records)) if output_routing else None,
        )

    def _cache(self, cache: Any, use_cache: bool | None) -> SubllmCache | None:
        if self.gradient_checkpointing and self.training:
            return None
        if cache is None:
            return SubllmCache(self.config) if use_cache else None
        if not isinstance(cache, SubllmCache):
            raise TypeError(
                f"past_key_values is a {type(cache).__name__}; a SUBLLM caches each level apart, so pass a "
                "subllm.SubllmCache(config), or nothing to have one made."
            )
        return cache

    def _read(
        self, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: SubllmCache | None
    ) -> tuple[Tokens, Tensor | None]:
        """Level 0: the real tokens of the input, packed; and the (B, T) mask to undo that, None if nothing moved."""
        batch, length = embeddings.shape[:2]
        level = None if cache is None else cache.levels[0]
        past = [0] * batch if level is None or not level.lengths else level.lengths
        if len(past) != batch:
            raise ValueError(f"The cache holds {len(past)} rows but the input has {batch}; they must be equal.")
        real = None if attention_mask is None else attention_mask[:, -length:].bool()
        counts, mask, padding = [length] * batch, None, None
        if real is not None and not real.all():
            padding = real
            counts = real.sum(1).tolist()
            width = max(counts)
            order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
            embeddings = gather_tokens(embeddings, order)
            if position_ids is not None:
                position_ids = position_ids.expand(batch, -1).gather(1, order)
            if min(counts) < width:
                mask = torch.arange(width, device=order.device) < torch.tensor(counts, device=order.device)[:, None]
        slots = torch.arange(embeddings.shape[1], device=embeddings.device)
        positions = (slots + torch.tensor(past, device=slots.device)[:, None]) if any(past) else slots.expand(batch, -1)
        if position_ids is None:
            position_ids = positions if uneven(past) else positions[:1]
        if level is not None:
            level.begin(counts, positions)
        attention = self._attention_mask(embeddings, past, counts)
        rotary = self.rotary_emb(embeddings, position_ids=position_ids)
        return Tokens(embeddings, positions, mask, rotary, past, attention), padding

    def _open(self, parent: Tokens, span: int, cache: SubllmCache | None, rule: Rule | None) -> Tokens:
        """Enter a span: select tokens and gather them."""
        decide = None if rule is None else lambda scores: rule(span, scores, parent.positions, parent.mask)
        selection = self.subsamplers[span](parent.hidden_states, parent.mask, decide)
        hidden_states = gather_tokens(parent.hidden_states, selection.indices)
        positions = parent.positions.gather(1, selection.indices)
        level: Level | None = None
        past = [0] * len(selection.counts)
        if cache is not None:
            level = cache.levels[span + 1]
            level.begin(selection.counts, positions)
            past = level.lengths
        if self.config.positions == "parent":
            rotary = self.rotary_emb(hidden_states, position_ids=absolute(selection.indices, parent.past))
        elif parent.rotary[0].shape[0] == 1 < selection.indices.shape[0]:
            rotary = (parent.rotary[0][0][selection.indices], parent.rotary[1][0][selection.indices])
        else:
            cos, sin = parent.rotary
            rotary = gather_tokens(cos, selection.indices), gather_tokens(sin, selection.indices)
        attention = self._attention_mask(hidden_states, past, selection.counts)
        return Tokens(hidden_states, positions, selection.mask, rotary, past, attention, selection)

    def _close(
        self, parent: Tokens, tokens: Tokens, span: int, output_routing: bool
    ) -> tuple[Tokens, RoutingRecord | None]:
        """Leave a span: upsample, bypass, and go on with all tokens of the parent."""
        selection, stream = tokens.selection, parent.hidden_states
        assert selection is not None
        before = gather_tokens(stream, selection.indices)
        contribution = self.bypasses[span](upsample(tokens.hidden_states, before, selection))
        parent.hidden_states = scatter_add(stream, selection, contribution.to(stream.dtype))
        if not output_routing:
            return parent, None
        return parent, routing_record(stream, parent, tokens, before, contribution)

    def _attention_mask(self, hidden_states: Tensor, past: list[int], counts: list[int]) -> Tensor | None:
        """Mask for the attention kernel, or None where plain causal attention is right.

        Rows are packed, so without cached tokens causal attention never sees padding; with cached tokens a single
        new token sees every slot of its row. Only several new tokens, or rows of different length, need a mask.

        Returns:
            None, or (B, 1, L, slots): True (or 0.0) where slot <= the query's own slot. For flash attention a
            (B, slots) mask of the slots in use.
        """
        width = hidden_states.shape[1]
        eager = self.config._attn_implementation == "eager"  # knows no causality of its own
        if (not any(past) and not eager) or width == 0 or (width == 1 and not uneven(past) and min(counts) == 1):
            return None
        device = hidden_states.device
        total = max(n + m for n, m in zip(past, counts, strict=True))
        start = torch.tensor(past, device=device)[:, None, None]
        slots = torch.arange(total, device=device)
        if "flash" in str(self.config._attn_implementation):
            if not uneven(past) and not uneven(counts):
                return None
            return slots < start[:, 0] + torch.tensor(counts, device=device)[:, None].clamp(min=1)
        allowed = (slots <= start + torch.arange(width, device=device)[:, None])[:, None]
        if eager:
            lowest = torch.finfo(hidden_states.dtype).min
            return torch.zeros_like(allowed, dtype=hidden_states.dtype).masked_fill(~allowed, lowest)
        return allowed

    def _must_feed_one_by_one(
        self, embeddings: Tensor, cache: SubllmCache | None, routing: bool, observer: Observer | None
    ) -> bool:
        """Whether flash attention would misplace the new tokens: it aligns them to the longest row's last key."""
        if "flash" not in str(self.config._attn_implementation) or cache is None or cache.columns == 0:
            return False
        if embeddings.shape[1] == 1 or embeddings.shape[0] == 1:
            return False
        if routing or observer is not None:
            raise ValueError(
                "Routing of several new tokens in a batch with a cache is not recorded under flash attention; "
                "use attn_implementation='sdpa', one row, or one token at a time."
            )
        return True

    def _feed_one_by_one(
        self, embeddings: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Any, **kwargs: Any
    ) -> SubllmOutput:
        steps = []
        length = embeddings.shape[1]
        for column in range(length):
            one = None if mask is None else mask[:, mask.shape[1] - length + column, None]
            position = None if position_ids is None else position_ids[:, column, None]
            steps.append(
                self(inputs_embeds=embeddings[:, column, None], attention_mask=one, position_ids=position,
                     past_key_values=cache, use_cache=True, **kwargs).last_hidden_state
            )  # fmt: skip
        return SubllmOutput(last_hidden_state=torch.cat(steps, dim=1), past_key_values=cache)


class SubllmForCausalLM(SubllmPreTrainedModel, GenerationMixin):
    """SUBLLM with a language modelling head.

    Args:
        config: configuration.
    """

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        self.model = SubllmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Give `generate` a cache of our kind; other kinds do not know levels."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation is {generation_config.cache_implementation!r}; a SUBLLM caches each level apart "
                "and has one kind of cache only, so leave it out."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = SubllmCache(self.config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SubllmCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_routing: bool = False,
        observer: Observer | None = None,
        rule: Rule | None = None,
        **kwargs: Any,
    ) -> SubllmCausalLMOutput:
        """Run the model and its head; see `SubllmModel.forward` for the arguments not named here.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T) or (B, cached + T), 0 at padding.
            position_ids: (B or 1, T) rotary positions.
            past_key_values: cache to continue from.
            inputs_embeds: (B, T, D) embeddings instead of `input_ids`.
            labels: (B, T) next-token targets as in `LlamaForCausalLM`, -100 where none; adds `loss`.
            use_cache: return a cache.
            logits_to_keep: compute logits for the last so many columns only (0: all), or for these columns.
            output_routing: return `routing`.
            observer: called with the stream after every character of the structure.
            rule: decides which tokens are kept.
            **kwargs: for the attention kernel and the loss.

        Returns:
            `logits` (B, T, V), `loss`, `past_key_values`, `routing`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_routing=output_routing,
            observer=observer,
            rule=rule,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, columns])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return SubllmCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing,
        )
