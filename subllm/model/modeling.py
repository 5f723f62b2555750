"""The SUBLLM model: LLaMA blocks on a sequence that narrows at every "(" and widens again at every ")"."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaPreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration import SubllmConfig
from ..routing import ROUTERS, Bypass, Lengths, Packing, Router, RoutingRecord
from ..routing.schedule import TrainingSchedule
from ..routing.scorer import Subsampler
from ..routing.selection import gather
from ..structure import CLOSE, OPEN, WHOLE
from .attention_mask import attention_mask
from .block import Block
from .cache import SubllmCache
from .levels import Entry, Snapshot, Tokens, pack, unpack
from .probe import PLAIN, Closed, Opened, Probe, Ran


@dataclass
class SubllmOutput(BaseModelOutputWithPast):
    """Output of `SubllmModel`; `routing` has one record per level, in order."""

    routing: tuple[RoutingRecord, ...] | None = None


@dataclass
class SubllmCausalLMOutput(CausalLMOutputWithPast):
    """Output of `SubllmForCausalLM`; `routing` has one record per level, in order."""

    routing: tuple[RoutingRecord, ...] | None = None


class SubllmPreTrainedModel(LlamaPreTrainedModel):
    """Base class: weight initialisation and what transformers needs to know."""

    config: SubllmConfig
    config_class = SubllmConfig
    _no_split_modules: ClassVar = [Block.__name__]
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _keys_to_ignore_on_load_missing: ClassVar = [r"\.(balancing|minimum)\.step$"]  # of checkpoints older than these

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Subsampler):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, Bypass):
            nn.init.constant_(module.scale, Bypass.INITIAL_SCALE)
        elif isinstance(module, TrainingSchedule):
            nn.init.zeros_(module.step)


class SubllmModel(SubllmPreTrainedModel):
    """Embedding, blocks, routers, bypasses, final norm.

    Args:
        config: configuration; its structure decides which blocks run on which tokens.
    """

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        self.structure = config.parsed_structure
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Block(config, index) for index in range(self.structure.num_blocks))
        self.subsamplers = nn.ModuleList(
            ROUTERS[name](config, level) for level, name in enumerate(config.routers, start=1)
        )
        self.bypasses = nn.ModuleList(Bypass(config) for _ in self.structure.sites)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
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
        probe: Probe = PLAIN,
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
            output_routing: return `routing`, as a probe that records does.
            probe: what to record, observe or override; see `subllm.model.probe`.
            **kwargs: arguments of the attention kernel.

        Returns:
            `last_hidden_state` (B, T, D), zero at padding; the cache; the routing. `hidden_states`, if asked for,
            holds the input of every block with the tokens present there, packed.

        Raises:
            ValueError: if neither or both of `input_ids` and `inputs_embeds` are given, or a forward resumes with cache
                or padding.
            TypeError: if the cache is not a `SubllmCache`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if probe.resume is not None and (past_key_values is not None or attention_mask is not None):
            raise ValueError("A forward resumes without cache and padding; leave past_key_values and the mask out.")
        cache = None if probe.resume is not None else self._cache(past_key_values, use_cache)
        columns = inputs_embeds.shape[1]
        padding: Tensor | None = None
        outer: list[Tokens] = []  # the levels around `tokens`, from the whole sequence inwards
        records: dict[int, RoutingRecord] = {}
        start = 0
        if probe.resume is None:
            tokens, padding = self._read(inputs_embeds, attention_mask, position_ids, cache)
        else:
            *outer, tokens = probe.resume.rows(inputs_embeds.shape[0])
            records, start = dict(probe.resume.records), probe.resume.step
        del inputs_embeds  # memory for the blocks

        for number, step in enumerate(self.structure.steps[start:], start=start):
            before = tokens
            if step.symbol == OPEN:
                if probe.keep_snapshots:
                    probe.snapshots[step.index] = Snapshot(number, (*outer, tokens), dict(records))
                outer.append(tokens)
                tokens = self._open(before, step.index, cache, probe)
                event: Opened | Ran | Closed = Opened(step.index, before, tokens)
            elif step.symbol == CLOSE:
                outside = outer.pop()
                width = (outer[0] if outer else outside).positions.shape[1] if output_routing or probe.record else None
                tokens, record = self._close(outside, before, step.index, width)
                if record is not None:
                    records[step.index] = record
                event = Closed(step.index, outside, before, tokens)
                del outside
            else:
                tokens = self._run(before, step.index, cache, use_cache, **kwargs)
                event = Ran(step.index, self.structure.block_levels[step.index], before, tokens)
            if probe.observe is not None:
                probe.observe(event)
            del before, event  # memory for the next step

        hidden_states = self.norm(tokens.hidden_states)
        if padding is not None:
            hidden_states = unpack(hidden_states, padding)
        if cache is not None:
            cache.commit(columns)
        recorded = tuple(records[level] for level in sorted(records))
        return SubllmOutput(
            last_hidden_state=hidden_states,
            past_key_values=cache,
            routing=recorded if output_routing or probe.record else None,
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
        self, embeddings: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: SubllmCache | None
    ) -> tuple[Tokens, Tensor | None]:
        """Level 0 with the real tokens of the input, packed; and the (B, T) mask to unpack them, if any moved."""
        batch, length = embeddings.shape[:2]
        level = None if cache is None else cache.levels[WHOLE]
        past = Lengths.even(0, batch) if level is None or level.lengths is None else level.lengths
        if len(past.rows) != batch:
            raise ValueError(f"The cache holds {len(past.rows)} rows but the input has {batch}; they must be equal.")
        real = None if mask is None else mask[:, -length:].bool()
        counts = Lengths.even(length, batch) if real is None else Lengths.count(real)
        padding = real if min(counts.rows) < length else None
        if padding is not None:
            embeddings = pack(embeddings, padding, counts.longest)
            if position_ids is not None:
                position_ids = pack(position_ids.expand(batch, -1), padding, counts.longest)
        present = counts.mask(counts.longest, embeddings.device)
        positions = torch.arange(counts.longest, device=embeddings.device) + past.column
        positions = positions.expand(batch, -1)
        if position_ids is None:
            position_ids = positions[:1] if past.is_even else positions
        if level is not None:
            level.begin(counts, positions)
        rotary = self.rotary_emb(embeddings, position_ids=position_ids)
        return Tokens(embeddings, positions, present, past, rotary, self._mask(embeddings, past, counts)), padding

    def _open(self, outside: Tokens, level: int, cache: SubllmCache | None, probe: Probe) -> Tokens:
        """Enter a level: its router decides, and the kept tokens are gathered."""
        router = self.subsamplers[level - 1]
        assert isinstance(router, Router)
        if probe.override is None:
            selection = router.select(outside, self.training)
        else:
            selection = probe.override(level, router, outside)
        packing = Packing.of(selection.kept)
        hidden_states = router.enter(outside.hidden_states, packing)
        positions = packing.gather(outside.positions)
        past = Lengths.even(0, len(packing.counts.rows))
        if cache is not None:
            past = cache.levels[level].begin(packing.counts, positions)
        return Tokens(
            hidden_states,
            positions,
            packing.mask,
            past,
            self._rotary(outside, packing, hidden_states),
            self._mask(hidden_states, past, packing.counts),
            packing.indices if outside.columns is None else packing.gather(outside.columns),
            Entry(selection, packing),
        )

    def _run(self, tokens: Tokens, block: int, cache: SubllmCache | None, use_cache: Any, **kwargs: Any) -> Tokens:
        """Run a block on the tokens of its level."""
        if not tokens.hidden_states.shape[1]:
            return tokens
        return tokens.with_stream(
            self.layers[block](
                tokens.hidden_states,
                attention_mask=tokens.attention_mask,
                position_ids=None,
                past_key_values=cache,
                use_cache=use_cache,
                position_embeddings=tokens.rotary,
                **kwargs,
            )
        )

    def _close(
        self, outside: Tokens, inside: Tokens, level: int, width: int | None
    ) -> tuple[Tokens, RoutingRecord | None]:
        """Leave a level: upsample, bypass, and continue with all tokens of the level outside.

        The routing is recorded over the `width` new tokens of the pass, or not at all.
        """
        entry, stream, router = inside.entry, outside.hidden_states, self.subsamplers[level - 1]
        assert entry is not None and isinstance(router, Router)
        entered = router.enter(stream, entry.packing)
        change = router.leave(entered, inside.hidden_states, entry.selection, entry.packing)
        added = self.bypasses[level - 1](change).to(stream.dtype)
        tokens = outside.with_stream(entry.packing.scatter_add(stream, added))
        if width is None:
            return tokens, None
        return tokens, RoutingRecord.of(
            outside, outside.columns, width, entry.selection, entry.packing, entered, inside.hidden_states, added
        )

    def _rotary(self, outside: Tokens, packing: Packing, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.positions == "parent" and packing.indices.shape[1]:  # some kinds of rotary need a longest one
            return self.rotary_emb(hidden_states, position_ids=packing.indices + outside.past.column)
        cos, sin = outside.rotary
        if cos.shape[0] == 1 < packing.indices.shape[0]:
            return cos[0][packing.indices], sin[0][packing.indices]
        return gather(cos, packing.indices), gather(sin, packing.indices)

    def _mask(self, hidden_states: Tensor, past: Lengths, counts: Lengths) -> Tensor | None:
        return attention_mask(str(self.config._attn_implementation), hidden_states, past, counts)


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
        """Give `generate` a `SubllmCache`; other caches have no levels."""
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
        probe: Probe = PLAIN,
        **kwargs: Any,
    ) -> SubllmCausalLMOutput:
        """Run the model and its head; see `SubllmModel.forward` for the arguments not named here.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T) or (B, cached + T), 0 at padding.
            position_ids: (B or 1, T) rotary positions.
            past_key_values: cache to continue from.
            inputs_embeds: (B, T, D) embeddings instead of `input_ids`.
            labels: (B, T) next-token targets as in `LlamaForCausalLM`, -100 where there is none; adds `loss`.
            use_cache: return a cache.
            logits_to_keep: compute logits for the last so many columns only (0: all), or for these columns.
            output_routing: return `routing`.
            probe: what to record, observe or override; see `subllm.model.probe`.
            **kwargs: arguments of the attention kernel and the loss.

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
            probe=probe,
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
