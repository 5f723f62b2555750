"""SUBLLM (Subsampling-Upsampling-Bypass LLM) for transformers. Importing registers the model with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration import SubllmConfig
from .errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    DeviceError,
    DeviceFullError,
    DiskFullError,
    PromptError,
    PromptTooLongError,
    StructureError,
    SubllmError,
    TrainingError,
    TrainingStopped,
)
from .model.cache import SubllmCache
from .model.causal_lm import SubllmForCausalLM
from .model.modeling import SubllmModel
from .model.probe import Closed, Event, Opened, Probe, Ran
from .routing import RoutingRecord, Selection
from .structure import Site, Structure, parse_structure

AutoConfig.register(SubllmConfig.model_type, SubllmConfig, exist_ok=True)
AutoModel.register(SubllmConfig, SubllmModel, exist_ok=True)
AutoModelForCausalLM.register(SubllmConfig, SubllmForCausalLM, exist_ok=True)

__all__ = [
    "CheckpointError",
    "Closed",
    "ConfigurationError",
    "DataError",
    "DeviceError",
    "DeviceFullError",
    "DiskFullError",
    "Event",
    "Opened",
    "Probe",
    "PromptError",
    "PromptTooLongError",
    "Ran",
    "RoutingRecord",
    "Selection",
    "Site",
    "Structure",
    "StructureError",
    "SubllmCache",
    "SubllmConfig",
    "SubllmError",
    "SubllmForCausalLM",
    "SubllmModel",
    "TrainingError",
    "TrainingStopped",
    "parse_structure",
]
