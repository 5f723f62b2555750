"""SUBLLM with a language modelling head, which generates."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from ..configuration import SubllmConfig
from ..routing import RoutingRecord
from .cache import SubllmCache
from .modeling import SubllmModel
from .pretrained import SubllmPreTrainedModel
from .probe import PLAIN, Probe


@dataclass
class SubllmCausalLMOutput(CausalLMOutputWithPast):
    """Output of `SubllmForCausalLM`; see `SubllmOutput` for `routing` and `router_loss`."""

    routing: tuple[RoutingRecord, ...] | None = None
    router_loss: Tensor | None = None


class SubllmForCausalLM(SubllmPreTrainedModel, GenerationMixin):
    """SUBLLM with a language modelling head.

    Args:
        config: configuration.
    """

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        self.model = SubllmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Give `generate` a `SubllmCache`; other caches have no levels."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation is {generation_config.cache_implementation!r}; a SUBLLM caches each level apart "
                "and has one kind of cache only, which grows, so leave it out."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = SubllmCache(self.config)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, which `generate_batch` uses: its cache has no levels."""
        raise NotImplementedError(
            "A SUBLLM has no continuous batching (generate_batch, cache_implementation='paged'), whose cache has no "
            "levels; use generate() on a batch padded on the left."
        )

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
            labels: (B, T) next-token targets as in `LlamaForCausalLM`, -100 where there is none; adds `loss`. In
                training it includes `router_loss` of the routers, times that of the configuration.
            use_cache: return a cache.
            logits_to_keep: compute logits for the last so many columns only (0: all), or for these columns.
            output_routing: return `routing`.
            probe: what to record, observe or override; see `subllm.model.probe`.
            **kwargs: arguments of the attention kernel and the loss.

        Returns:
            `logits` (B, T, V), `loss`, `past_key_values`, `routing`, `router_loss`.
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
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, columns])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if outputs.router_loss is not None:
                share = _share_of_step(labels, kwargs.get("num_items_in_batch"))
                loss = loss + self.config.router_loss * share * outputs.router_loss.to(loss)
        return SubllmCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing,
            router_loss=outputs.router_loss,
        )


def _share_of_step(labels: Tensor, num_items: Tensor | int | None) -> Tensor | float:
    """The share that a pass has in the loss of its step, by targets: a Trainer that accumulates gives their number."""
    return 1.0 if num_items is None else (labels[:, 1:] != -100).sum() / num_items
