"""The base of SUBLLM's models: what transformers has to know of them, and how weights begin."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import LlamaPreTrainedModel

from ..configuration import SubllmConfig
from ..routing import Bypass, LightHeavyRouter
from ..routing.schedule import TrainingSchedule
from ..routing.scorer import LinearRouter
from ..routing.stride import StrideRouter
from ..structure import BLOCK, LIGHT_HEAVY
from .block import Block
from .light_heavy import LightHeavyBlock


class SubllmPreTrainedModel(LlamaPreTrainedModel):
    """Base class: weight initialisation and what transformers needs to know."""

    config: SubllmConfig
    config_class = SubllmConfig
    _no_split_modules: ClassVar = [Block.__name__]
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _can_record_outputs: ClassVar = {}  # what blocks see is in the columns of their level; see `Columns`
    _keys_to_ignore_on_load_missing: ClassVar = [r"\.(balancing|minimum)\.step$"]  # of checkpoints older than these

    def __init__(self, config: SubllmConfig) -> None:
        super().__init__(config)
        kinds = {BLOCK: Block.__name__, LIGHT_HEAVY: LightHeavyBlock.__name__}
        self._no_split_modules = [kinds[symbol] for symbol in kinds if symbol in str(config.structure)]

    @classmethod
    def prepare_distribute_model(cls, distributed_config: Any, device_map: Any = None) -> Any:
        """Refuse what transformers would split in silence: a pipeline of stages that each run all routers."""
        stages = (
            distributed_config.get("pp_size") if isinstance(distributed_config, dict) else distributed_config.pp_size
        )
        if (stages or 1) > 1:
            raise ValueError(
                f"pp_size is {stages}; a pipeline hands whole streams from stage to stage, and a stage that begins "
                "inside a level would lack the tokens outside. Use tensor parallelism (tp_size), FSDP, or "
                "device_map='auto', which cut a SUBLLM anywhere."
            )
        return super().prepare_distribute_model(distributed_config, device_map)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LinearRouter):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, Bypass):
            nn.init.constant_(module.scale, Bypass.INITIAL_SCALE)
        elif isinstance(module, StrideRouter):
            nn.init.zeros_(module.bias)
        elif isinstance(module, TrainingSchedule):
            nn.init.zeros_(module.step)
        if isinstance(module, LightHeavyRouter):
            for mean in (module.threshold, module.water_level, module.passes):
                nn.init.zeros_(mean)
