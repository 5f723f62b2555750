"""The light/heavy block of CoLT5 (arXiv 2303.09752), made by dividing a LLaMA block.

Its first heads and its first hidden units are light: they process every token, and their attention sees a window. The
other heads and units are heavy: they process the tokens that the block's three routers choose, and routed queries see
all routed keys before them. What the heavy branches add is multiplied with the weights of the routers. Where all tokens
are routed with a weight of 1, and the window covers the text, it is the LLaMA block.

The cache holds the light keys and values of all tokens, though a window's worth would do: they lie where those of LLaMA
blocks of the level do, which can be cropped and reordered, and continue after a token is taken back. So the window
makes attention cheaper, and the cache no smaller; only heavy keys and values save memory there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from ..configuration import SubllmConfig
from ..routing import LightHeavyRouter, Packing, Router, RoutingRecord, Selection
from ..routing.selection import gather
from .cache import SubllmCache
from .levels import Tokens

_CHUNK = 64  # least number of queries whose windows are read together

Decide = Callable[[int, Router, Tokens], Selection]
"""Decides at a level: its router, or an override in its place."""


@dataclass(frozen=True)
class Branch:
    """What one router of a light/heavy block decided, and what came of it.

    Attributes:
        level: number of the site.
        tokens: tokens that the router decided about, with the stream that it saw.
        selection: what it decided.
        packing: where the routed tokens are.
        computed: (B, K, D) what the heavy branch computed for them; None for keys and values.
        added: (B, K, D) the same times the weights, as added to the stream; None for keys and values.
    """

    level: int
    tokens: Tokens
    selection: Selection
    packing: Packing
    computed: Tensor | None = None
    added: Tensor | None = None

    @property
    def change(self) -> Tensor | None:
        """(B, T, D) what was added to the stream of each of the tokens; None for keys and values."""
        return None if self.added is None else _add(torch.zeros_like(self.tokens.hidden_states), self)

    def record(self, width: int) -> RoutingRecord:
        """The record over the `width` new tokens of the pass; keys and values add nothing, and have no norms."""
        computed, added = self.computed, self.added
        if computed is None or added is None:
            computed = added = self.packing.gather(self.tokens.hidden_states)
        record = RoutingRecord.of(
            self.tokens, self.tokens.columns, width, self.selection, self.packing, computed, added
        )
        if self.added is not None:
            return record
        nothing = torch.full_like(record.difference_norm, torch.nan)
        return replace(record, difference_norm=nothing, contribution_norm=nothing)


class LightHeavyBlock(LlamaDecoderLayer):
    """A LLaMA block divided into light and heavy branches; its parameters are those of the LLaMA block, and routers.

    Attention always runs on PyTorch's kernel: no other one sees a window and the positions of routed keys alike. An
    adapter's dropout is not applied, because its matrices are added to those that are divided.

    Args:
        config: configuration of the model.
        index: number of the block.
    """

    def __init__(self, config: SubllmConfig, index: int) -> None:
        super().__init__(config, index)
        assert config.light_heads is not None and config.light_intermediate_size is not None
        assert config.window is not None
        self.index, self.window = index, config.window
        self.light_heads, self.light_units = config.light_heads, config.light_intermediate_size
        sites = config.parsed_structure.light_heavy[index]
        self.routers = nn.ModuleDict({site.kind: LightHeavyRouter(config, site.level) for site in sites})

    def forward(  # type: ignore[override] # it decides on the way, and hands on what was decided
        self, hidden_states: Tensor, *, tokens: Tokens, decide: Decide, cache: SubllmCache | None = None
    ) -> tuple[Tensor, list[Branch]]:
        """Run the block.

        Args:
            hidden_states: (B, T, D) residual stream.
            tokens: the tokens with what belongs to them; their stream is not read.
            decide: asked at each of the three sites.
            cache: cache that gets the new keys and values, if any.

        Returns:
            (B, T, D) residual stream, and the three branches in the order of their levels.
        """
        tokens = tokens.with_stream(hidden_states).together()
        queries, keys = self._branch("query", tokens, decide, cache), self._branch("key_value", tokens, decide, cache)
        if not hidden_states.shape[1]:
            routed = self._branch("mlp", tokens, decide, cache)
            return hidden_states, [self._heavy(queries, hidden_states), keys, self._heavy(routed, hidden_states)]
        light, heavy = self.attend(self.input_layernorm(hidden_states), tokens, queries, keys, cache)
        queries = self._heavy(queries, heavy)
        middle = _add(hidden_states + light, queries)
        routed = self._branch("mlp", tokens.with_stream(middle), decide, cache)
        light, heavy = self.transform(self.post_attention_layernorm(middle), routed.packing)
        routed = self._heavy(routed, heavy)
        return _add(middle + light, routed), [queries, keys, routed]

    def _branch(self, kind: str, tokens: Tokens, decide: Decide, cache: SubllmCache | None = None) -> Branch:
        router: Any = self.routers[kind]  # perhaps within a wrapper of peft
        selection = decide(router.level, router, tokens)
        packing = Packing.of(selection.kept)
        if cache is not None:
            cache.levels[router.level].begin(packing.counts, packing.gather(tokens.positions))
        return Branch(router.level, tokens, selection, packing)

    @staticmethod
    def _heavy(branch: Branch, computed: Tensor) -> Branch:
        weights = branch.packing.gather(branch.selection.weights)[..., None].to(computed)
        return Branch(branch.level, branch.tokens, branch.selection, branch.packing, computed, computed * weights)

    def attend(
        self, normed: Tensor, tokens: Tokens, queries: Branch, keys: Branch, cache: SubllmCache | None
    ) -> tuple[Tensor, Tensor]:
        """Attention of both branches: (B, T, D) of the light heads, (B, K, D) of the heavy ones at routed queries."""
        attention, size = self.self_attn, self.self_attn.head_dim
        own, shared = self.light_heads * size, self.light_heads // attention.num_key_value_groups * size
        weights = {name: _weights(getattr(attention, f"{name}_proj")) for name in ("q", "k", "v", "o")}

        def project(name: str, hidden: Tensor, rows: slice) -> Tensor:
            weight, bias = weights[name]
            found = F.linear(hidden, weight[rows], None if bias is None else bias[rows])
            return found.unflatten(-1, (-1, size)).transpose(1, 2)  # (B, heads, T, head_dim)

        def out(attended: Tensor, columns: slice, bias: Tensor | None) -> Tensor:
            return F.linear(attended, weights["o"][0][:, columns], bias)

        light, heavy = slice(None, own), slice(own, None)
        q, k, v = (project(name, normed, slice(None, own if name == "q" else shared)) for name in ("q", "k", "v"))
        q, k = apply_rotary_pos_emb(q, k, *tokens.rotary)
        earlier = 0
        if cache is not None:
            k, v = cache.update(k, v, self.index)
            k, v, earlier = self._last(k, v, tokens)
        near = out(self._windowed(q, k, v, earlier, tokens), light, weights["o"][1])

        k, v = (project(name, keys.packing.gather(normed), slice(shared, None)) for name in ("k", "v"))
        scale = keys.packing.gather(keys.selection.weights)[:, None, :, None].to(k)
        k, v = _turned(k, tokens.rotary, keys.packing) * scale, v * scale
        before: int | Tensor = 0
        if cache is not None:
            lengths = cache.levels[keys.level].lengths
            before = 0 if lengths is None else lengths.column
            k, v = cache.update_heavy(k, v, self.index)
        if not queries.packing.indices.shape[1] or not k.shape[2]:
            return near, near.new_zeros(*queries.packing.indices.shape, near.shape[2])  # no query, or no key
        q = _turned(project("q", queries.packing.gather(normed), heavy), tokens.rotary, queries.packing)
        mask = _routed_mask(queries, keys, before, k.shape[2])
        blind = ~mask.any(-1, keepdim=True)  # an override may leave a query without any key
        far = self._kernel(q, k, v, mask | blind).masked_fill(blind[:, 0], 0)
        return near, out(far, heavy, None)

    def _last(self, keys: Tensor, values: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, int]:
        """The new keys and values behind the cached ones of the window, and how many slots those take in every row."""
        past, new = tokens.past, tokens.positions.shape[1]
        earlier = min(self.window - 1, past.longest)
        if isinstance(past.column, int):
            first = past.column - earlier
            return keys[:, :, first:], values[:, :, first:], earlier
        slots = past.column - earlier + torch.arange(earlier + new, device=keys.device)  # (B, earlier + new)
        slots = slots.clamp(0, keys.shape[2] - 1)[:, None, :, None]
        keys, values = (each.gather(2, slots.expand(-1, each.shape[1], -1, each.shape[3])) for each in (keys, values))
        return keys, values, earlier

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor, earlier: int, tokens: Tokens) -> Tensor:
        """(B, T, heads · head_dim) attention in which each token sees the window that ends with it.

        Args:
            q: (B, heads, T, head_dim).
            k: (B, key/value heads, earlier + T, head_dim).
            v: the same.
            earlier: number of slots before the first new token; a row with fewer cached ones has nothing in the first.
            tokens: the new tokens.
        """
        batch, length, window, texts = q.shape[0], q.shape[2], self.window, tokens.texts
        if texts is None and tokens.past.is_even and (length == 1 or (not earlier and length <= window)):
            return self._kernel(q, k, v, None)
        chunk = max(window, _CHUNK)
        if length <= 2 * chunk:
            chunk, count, left = length, 1, earlier
        else:  # chunks of queries, each with the keys that some of them see
            count, left = -(-length // chunk), window - 1
            more = count * chunk - length
            q = F.pad(q, (0, 0, 0, more)).unflatten(2, (count, chunk)).transpose(1, 2).flatten(0, 1)
            k, v = (
                F.pad(each, (0, 0, left - earlier, more)).unfold(2, left + chunk, chunk).permute(0, 2, 1, 4, 3)
                for each in (k, v)
            )  # (B, chunks, heads, left + chunk, head_dim)
            k, v = k.flatten(0, 1), v.flatten(0, 1)
        starts = torch.arange(count, device=q.device)[:, None, None] * chunk
        own = torch.arange(left, left + chunk, device=q.device)[:, None]
        slots = torch.arange(left + chunk, device=q.device)
        seen = ((slots <= own) & (slots > own - window))[None, None]  # (1, 1, chunk, left + chunk)
        past = tokens.past.column
        past = past if isinstance(past, int) else past[..., None, None]
        seen = seen & (starts + slots >= left - past).view(-1, count, 1, left + chunk)
        if texts is not None:  # nothing is cached then
            of_keys = F.pad(texts, (left, count * chunk - length), value=-1).unfold(1, left + chunk, chunk)
            seen = seen & (of_keys[:, :, left:, None] == of_keys[:, :, None])
        found = self._kernel(q, k, v, seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None])
        return found.unflatten(0, (batch, count)).flatten(1, 2)[:, :length]

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, heads · head_dim) attention; causal without a mask."""
        dropout = float(self.self_attn.attention_dropout or 0) if self.training else 0.0
        return sdpa_attention_forward(self.self_attn, q, k, v, mask, dropout=dropout, scaling=self.self_attn.scaling)[
            0
        ].flatten(2)

    def transform(self, normed: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """MLP of both branches: (B, T, D) of the light units, and (B, K, D) of the heavy ones at routed tokens."""
        (gate, gate_bias), (up, up_bias), (down, down_bias) = (
            _weights(getattr(self.mlp, f"{name}_proj")) for name in ("gate", "up", "down")
        )

        def part(hidden: Tensor, units: slice, bias: Tensor | None) -> Tensor:
            gated = F.linear(hidden, gate[units], None if gate_bias is None else gate_bias[units])
            raised = F.linear(hidden, up[units], None if up_bias is None else up_bias[units])
            return F.linear(self.mlp.act_fn(gated) * raised, down[:, units], bias)

        light = part(normed, slice(None, self.light_units), down_bias)
        return light, part(packing.gather(normed), slice(self.light_units, None), None)


def linear_operations(config: SubllmConfig) -> dict[str, float]:
    """Operations of the matrix products of a light/heavy block, by who causes them.

    Attention's own products come on top: 4 · head_dim for each head and pair of a query and a key that it sees. Light
    heads see min(window, tokens) keys; a heavy query sees the routed keys at or before it.

    Args:
        config: configuration of a model with such a block.

    Returns:
        "light", for every token; "query", "key_value" and "mlp", for every token that is routed there. Their sum is
        what a LLaMA block takes for a token.
    """
    assert config.light_heads is not None and config.light_intermediate_size is not None
    assert config.num_key_value_heads is not None
    width, group = config.hidden_size, config.num_attention_heads // config.num_key_value_heads
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heavy, units = config.num_attention_heads - config.light_heads, config.light_intermediate_size
    light = 4.0 * width * size * (config.light_heads + config.light_heads // group) + 6.0 * width * units
    return {
        "light": light,
        "query": 4.0 * width * size * heavy,
        "key_value": 4.0 * width * size * (heavy // group),
        "mlp": 6.0 * width * (config.intermediate_size - units),
    }


def _add(stream: Tensor, branch: Branch) -> Tensor:
    assert branch.added is not None
    return branch.packing.scatter_add(stream, branch.added.to(stream))


def _turned(states: Tensor, rotary: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
    """Queries or keys (B, heads, K, head_dim) of routed tokens, turned to their positions."""
    shape = (len(packing.indices), -1, -1)
    cos, sin = (gather(part.expand(*shape), packing.indices) for part in rotary)
    return apply_rotary_pos_emb(states, states, cos, sin)[0]


def _routed_mask(queries: Branch, keys: Branch, before: int | Tensor, slots: int) -> Tensor:
    """(B, 1, K, slots) True where a routed query sees the routed key in a slot: one at or before it, of its text.

    Args:
        queries: the routed queries.
        keys: the routed keys of the pass.
        before: number of cached keys, or (B, 1).
        slots: number of slots of keys, cached ones included.
    """
    reached = before + keys.selection.kept.cumsum(1)  # (B, T) keys at or before each token
    seen = queries.packing.gather(reached)[..., None] > torch.arange(slots, device=reached.device)
    texts = queries.tokens.texts
    if texts is not None:
        seen = seen & (queries.packing.gather(texts)[..., None] == keys.packing.gather(texts)[:, None])
    return seen[:, None]


def _indivisible(adapter: str) -> TypeError:
    return TypeError(
        f"A light/heavy block divides the weights of its layers, and cannot do so with a {adapter}; use adapters of "
        "the kind LoRA, without a variant such as DoRA and without a bias."
    )


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, with what the adapters of peft add to them.

    Raises:
        TypeError: if it is another kind of layer, or its weights are not there to be divided.
    """
    base: Any = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear  # type: ignore[operator]
    adapted: Any = None if base is linear else linear
    weight = base.weight
    whole = isinstance(base, nn.Linear) and weight.shape == (base.out_features, base.in_features)
    if not whole or hasattr(weight, "to_local") or weight.is_meta or not weight.is_floating_point():
        raise TypeError(
            f"A light/heavy block divides the weights of its {type(linear).__name__}, which must be a plain linear "
            "layer in memory: not quantized, not kept on the CPU or the disk for the GPU, and not divided among "
            "devices by tensor parallelism."
        )
    if adapted is not None and not hasattr(adapted, "lora_A"):
        raise _indivisible(type(adapted).__name__)
    if adapted is not None and not adapted.merged and not adapted.disable_adapters:
        for name in adapted.active_adapters:
            if name in adapted.lora_variant:  # such as DoRA
                raise _indivisible(type(adapted.lora_variant[name]).__name__)
            if adapted.lora_bias.get(name):
                raise _indivisible("LoRA that has a bias")
            if name in adapted.lora_A:
                weight = weight + adapted.get_delta_weight(name).to(weight)
    return weight, base.bias
