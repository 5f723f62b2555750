"""The SUBLLM model: LLaMA blocks on a sequence that narrows at every "(" and widens again at every ")"."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..configuration import SubllmConfig
from ..routing import Bypass, Entry, Lengths, LevelTokens, Packing, Router, RoutingRecord, Selection
from ..routing.selection import gather
from ..structure import BRACKETS, CLOSE, LIGHT_HEAVY, OPEN, WHOLE
from .attention_mask import attention_mask, padding_mask, seen_columns
from .block import Block
from .cache import SubllmCache
from .columns import Columns
from .levels import Snapshot, Tokens, pack, texts_of, unpack, without_padding
from .light_heavy import Branch, LightHeavyBlock
from .pretrained import SubllmPreTrainedModel
from .probe import PLAIN, Closed, Opened, Probe, Ran

_OF_FLASH_ATTENTION = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # of the whole sequence alone


@dataclass
class SubllmOutput(BaseModelOutputWithPast):
    """Output of `SubllmModel`; `routing` has one record per level, in order.

    `router_loss` is the sum of what routers add to the loss in training; None if none of them does.
    """

    routing: tuple[RoutingRecord, ...] | None = None
    router_loss: Tensor | None = None


class SubllmModel(SubllmPreTrainedModel):
    """Embedding, blocks, routers, bypasses, final norm.

    Args:
        config: configuration; its structure decides which blocks run on which tokens.
    """

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        self.structure = config.parsed_structure
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        divided = self.structure.light_heavy
        self.layers = nn.ModuleList(
            LightHeavyBlock(config, index) if index in divided else Block(config, index)
            for index in range(self.structure.num_blocks)
        )
        own = {level: config.router_classes[level - 1] for level in self.structure.brackets}
        self.subsamplers = nn.ModuleList(router(config, level) for level, router in own.items())
        self.bypasses = nn.ModuleList(Bypass(config) if router.has_bypass else nn.Identity() for router in own.values())
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def routers(self) -> list[Router]:
        """Router of each level, in order: those between brackets, and three in each light/heavy block."""
        return [self._router(level) for level in range(1, self.structure.num_levels + 1)]

    @property
    def level_bypasses(self) -> list[nn.Module | None]:
        """Bypass of each level, in order; None in light/heavy blocks."""
        numbers = self.structure.brackets
        levels = range(1, self.structure.num_levels + 1)
        return [self.bypasses[numbers[level]] if level in numbers else None for level in levels]

    def _router(self, level: int) -> Router:
        site = self.structure.sites[level - 1]
        router: Any = (
            self.subsamplers[self.structure.brackets[level]]
            if site.kind == BRACKETS
            else self.layers[site.block].routers[site.kind]  # type: ignore[index, union-attr]
        )
        return router

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SubllmCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_routing: bool = False,
        probe: Probe = PLAIN,
        **kwargs: Any,
    ) -> SubllmOutput:
        """Run the model.

        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`.
            attention_mask: (B, T) or (B, cached + T), 0 at padding; padding may be on either side.
            position_ids: (B or 1, T) rotary positions; by default each row counts its real tokens from 0. Where they
                restart, another text begins, and the texts of a row know nothing of each other at any level. As in a
                LLaMA they restart wherever they do not count on by 1; with a mask, only where they do not grow. Texts
                are not looked for behind a cache.
            past_key_values: cache to continue from.
            inputs_embeds: (B, T, D) embeddings.
            use_cache: return a cache; there is none of rows with several texts.
            output_hidden_states: return `hidden_states`, all or those with the given numbers.
            output_attentions: return `attentions`; needs the eager kernel.
            output_routing: return `routing`, as a probe that records does.
            probe: what to record, observe or override; see `subllm.model.probe`.
            **kwargs: arguments of the attention kernel. Those that say where texts begin (`cu_seq_lens_q` and the like)
                are left out, since levels have other lengths; positions say it.

        Returns:
            `last_hidden_state` (B, T, D), zero at padding; the cache; the routing. If asked for, `hidden_states`: the
            input of every block, then the last hidden state, each (B, T, D). A token that a level dropped has the
            stream there that it carries past the level, which is its stream after it. And `attentions` of every block,
            (B, H, T, cached + T), zero at tokens that the block does not process. Both are zero at padding.

        Raises:
            ValueError: if neither or both of `input_ids` and `inputs_embeds` are given, the mask or the positions have
                another shape, several texts in a row meet a cache or a kernel that cannot keep them apart, attention is
                asked of a kernel that does not return it, or a forward resumes with cache, padding, positions, hidden
                states or attention.
            TypeError: if the cache is not a `SubllmCache`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        collects = bool(output_hidden_states or output_attentions)
        given = (past_key_values, attention_mask, position_ids)
        if probe.resume is not None and (collects or any(each is not None for each in given)):
            raise ValueError(
                "A forward resumes without cache and padding, at the positions that it had, and knows no earlier "
                "blocks; leave past_key_values, the mask, position_ids, output_hidden_states and output_attentions out."
            )
        for name in _OF_FLASH_ATTENTION:
            kwargs.pop(name, None)
        if output_attentions and self.structure.light_heavy:
            raise ValueError(
                "output_attentions is not returned by a structure with light/heavy blocks ('C'), whose two branches "
                "attend to different tokens; leave it out."
            )
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions needs the eager kernel, but attn_implementation is "
                f"{self.config._attn_implementation!r}; use model.set_attn_implementation('eager')."
            )
        cache = None if probe.resume is not None else self._cache(past_key_values, use_cache)
        (batch, columns), device = inputs_embeds.shape[:2], inputs_embeds.device
        cached = 0 if cache is None else cache.columns
        padding: Tensor | None = None
        outer: list[Tokens] = []  # the levels around `tokens`, from the whole sequence inwards
        records: dict[int, RoutingRecord] = {}
        losses: list[Tensor] = []  # of the routers, in training
        start = 0
        if probe.resume is None:
            if attention_mask is not None:
                attention_mask = padding_mask(attention_mask, batch, columns, cached, device)
            tokens, padding = self._read(inputs_embeds, attention_mask, position_ids, cache)
            if tokens.texts is not None and past_key_values is not None:
                raise ValueError(
                    "The position_ids restart within a row, so that it holds several texts, which a cache cannot "
                    "continue; leave past_key_values out, or give one text per row."
                )
            cache = None if tokens.texts is not None else cache
        else:
            resumed = probe.resume.repeated(batch)
            *outer, tokens = resumed.levels
            records, start = dict(resumed.records), resumed.step
            del resumed
        del inputs_embeds  # memory for the blocks
        collected: Columns | None = None
        if collects:
            seen = seen_columns(attention_mask, tokens.past, columns, cached, device) if output_attentions else None
            collected = Columns(self.structure, output_hidden_states, seen)
        if cache is not None:
            observed = collects or probe.observe is not None or probe.keep_snapshots
            observed = observed or any(option is not None and option is not False for option in kwargs.values())
            cache.graphs.begin(tokens, self.layers, str(self.config._attn_implementation), observed=observed)

        for number, step in enumerate(self.structure.steps[start:], start=start):
            before = tokens.together() if step.symbol in (OPEN, LIGHT_HEAVY) else tokens
            if step.symbol == OPEN:
                if probe.keep_snapshots:
                    probe.snapshots[step.index] = Snapshot(number, (*outer, before), dict(records))
                outer.append(before)
                tokens = self._open(before, step.index, cache, probe)
                assert tokens.entry is not None
                if tokens.entry.selection.loss is not None:
                    losses.append(tokens.entry.selection.loss)
                event: Opened | Ran | Closed = Opened(step.index, before, tokens)
            elif step.symbol == CLOSE:
                outside = outer.pop()
                width = (outer[0] if outer else outside).positions.shape[1] if output_routing or probe.record else None
                tokens, record = self._close(outside, before, step.index, cache, width)
                if record is not None:
                    records[step.index] = record
                event = Closed(step.index, outside, before, tokens)
                del outside
            elif step.symbol == LIGHT_HEAVY:
                if probe.keep_snapshots:
                    for site in self.structure.light_heavy[step.index]:
                        probe.snapshots[site.level] = Snapshot(number, (*outer, before), dict(records))
                if collected is not None:
                    collected.before([*outer, before])
                tokens, branches = self._run_light_heavy(before, step.index, cache, probe)
                if output_routing or probe.record:
                    width = (outer[0] if outer else before).positions.shape[1]
                    records.update({branch.level: branch.record(width) for branch in branches})
                event = Ran(step.index, self.structure.block_levels[step.index], before, tokens, tuple(branches))
                del branches
            else:
                if collected is not None:
                    kwargs["attentions"] = collected.before([*outer, tokens])
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
        states, attentions = None, None
        if collected is not None:
            states = collected.hidden_states(hidden_states, padding)
            attentions = collected.attentions(columns, self.config.num_attention_heads, padding, cache)
        return SubllmOutput(
            last_hidden_state=hidden_states,
            past_key_values=cache,
            hidden_states=states,
            attentions=attentions,
            routing=recorded if output_routing or probe.record else None,
            router_loss=torch.stack([loss.to(hidden_states.device) for loss in losses]).sum() if losses else None,
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
        past = Lengths.even(0, batch) if level is None else level.past(batch)
        if len(past.rows) != batch:
            raise ValueError(f"The cache holds {len(past.rows)} rows but the input has {batch}; they must be equal.")
        if position_ids is not None and position_ids.shape not in ((1, length), (batch, length)):
            raise ValueError(
                f"position_ids have the shape {tuple(position_ids.shape)}, but the input has {batch} rows of {length} "
                f"columns; the shape must be (1, {length}) or ({batch}, {length})."
            )
        real = None if mask is None else mask[:, -length:]
        counts = Lengths.even(length, batch) if real is None else Lengths.count(real)
        padding = real if min(counts.rows) < length else None
        if padding is not None:
            embeddings = pack(embeddings, padding, counts.longest)
            if position_ids is not None:
                position_ids = pack(position_ids.expand(batch, -1), padding, counts.longest)
        present = counts.mask(counts.longest, embeddings.device)
        positions = torch.arange(counts.longest, device=embeddings.device) + past.column
        positions = positions.expand(batch, -1)
        texts: Tensor | None = None
        if position_ids is None:
            position_ids = positions[:1] if past.is_even else positions
        elif counts.longest > 1 and not past.longest:
            texts = texts_of(position_ids.expand(batch, -1), present, jumps=mask is None)
        if level is not None:
            level.begin(counts, positions)
        rotary = self._angles(embeddings, position_ids)
        attention = self._mask(embeddings, past, counts, texts)
        return Tokens(embeddings, positions, present, past, rotary, attention, texts=texts), padding

    def _decide(self, tokens: Tokens, level: int, router: Router, cache: SubllmCache | None, probe: Probe) -> Selection:
        """What a router decides, or an override in its place."""
        if probe.override is None:
            return router.select(tokens, self.training)
        kept_past = None if cache is None else cache.levels[level].lengths
        return probe.override(level, router, replace(tokens, kept_past=kept_past))

    def _open(self, outside: Tokens, level: int, cache: SubllmCache | None, probe: Probe) -> Tokens:
        """Enter a level: its router decides, and the kept tokens are gathered."""
        router = self._router(level)
        selection = self._decide(outside, level, router, cache, probe)
        packing = selection.packed
        carried = None if cache is None else cache.levels[level].carried
        entry = Entry(selection, packing, None if carried is None else carried.to(outside.hidden_states.device))
        hidden_states = router.enter(outside, entry)
        positions = packing.gather(outside.positions)
        texts = None if outside.texts is None else without_padding(packing.gather(outside.texts), packing.mask)
        past = Lengths.even(0, len(packing.counts.rows))
        if cache is not None:
            past = cache.levels[level].begin(packing.counts, positions)
        return Tokens(
            hidden_states,
            positions,
            packing.mask,
            past,
            self._rotary(outside, LevelTokens(hidden_states, positions, packing.mask, past, texts=texts), packing),
            self._mask(hidden_states, past, packing.counts, texts),
            packing.indices if outside.columns is None else packing.gather(outside.columns),
            entry,
            texts=texts,
        )

    def _run(self, tokens: Tokens, block: int, cache: SubllmCache | None, use_cache: Any, **kwargs: Any) -> Tokens:
        """Run a block on the tokens of its level."""
        if not tokens.hidden_states.shape[1]:
            return tokens
        replayed = None if cache is None else cache.graphs.run(self.layers, block, tokens)
        if replayed is not None:
            return tokens.with_stream(replayed)
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

    def _run_light_heavy(
        self, tokens: Tokens, block: int, cache: SubllmCache | None, probe: Probe
    ) -> tuple[Tokens, list[Branch]]:
        """Run a light/heavy block, whose three routers decide on the way."""

        def decide(level: int, router: Router, reached: Tokens) -> Selection:
            return self._decide(reached, level, router, cache, probe)

        divided = self.layers[block]
        stream, branches = divided(tokens.hidden_states, tokens=tokens, decide=decide, cache=cache)
        if self.training and torch.is_grad_enabled() and probe.override is None:
            for branch in branches:  # here and not in the block, which gradient checkpointing runs twice
                router: Any = self._router(branch.level)
                router.follow(branch.selection)
        return tokens.with_stream(stream), branches

    def _close(
        self, outside: Tokens, inside: Tokens, level: int, cache: SubllmCache | None, width: int | None
    ) -> tuple[Tokens, RoutingRecord | None]:
        """Leave a level: upsample, bypass, and continue with all tokens of the level outside.

        The routing is recorded over the `width` new tokens of the pass, or not at all.
        """
        entry, stream, router = inside.entry, outside.hidden_states, self._router(level)
        assert entry is not None
        selection, packing = entry.selection, None if router.merges_tokens else entry.packing
        processed = inside.hidden_states.to(stream.device)
        if cache is not None:
            cache.levels[level].carry(router.carry(outside, processed, entry))
        difference = router.leave(outside, processed, entry)
        weights = selection.weights if packing is None else packing.gather(selection.weights)
        added = self.bypasses[self.structure.brackets[level]](difference * weights[..., None].to(difference.dtype)).to(
            stream
        )
        tokens = outside.with_stream(stream + added if packing is None else packing.scatter_add(stream, added))
        if width is None:
            return tokens, None
        return tokens, RoutingRecord.of(outside, outside.columns, width, selection, packing, difference, added)

    def _angles(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(hidden_states, position_ids=position_ids)
        return cos.to(hidden_states.device), sin.to(hidden_states.device)  # the module may lie on another one

    def _rotary(self, outside: Tokens, inside: LevelTokens, packing: Packing) -> tuple[Tensor, Tensor]:
        mode = self.config.positions
        if mode != "original" and packing.indices.shape[1]:  # some kinds of rotary need a longest one
            if mode == "packed":
                indices = inside.indices
            else:
                indices = packing.indices + outside.past.column
                if outside.texts is not None:
                    indices = packing.gather(outside.indices)
            return self._angles(inside.hidden_states, indices)
        cos, sin = outside.rotary
        if cos.shape[0] == 1 < packing.indices.shape[0]:
            return cos[0][packing.indices], sin[0][packing.indices]
        return gather(cos, packing.indices), gather(sin, packing.indices)

    def _mask(self, hidden_states: Tensor, past: Lengths, counts: Lengths, texts: Tensor | None) -> Tensor | None:
        return attention_mask(str(self.config._attn_implementation), hidden_states, past, counts, texts)
