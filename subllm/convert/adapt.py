"""Training a converted SUBLLM to say what its dense twin says, with tokens dropped.

Trained are low-rank adapters (`peft`) on all projections of the blocks from the first span on, the bypass scales and
the scorers. The blocks before the first span stay as they are, so the first scorer keeps seeing what it was fitted on.
Tokens are selected by the rule of inference (score > 0), so nothing changes when training ends. A controller moves
each scorer's threshold so that the share kept follows its schedule: from `start_retention` down to the nominal ratio.

Loss: KL divergence from the dense model's next-token distribution at a random part of the positions, plus the
relative squared distance of the final hidden states at all of them.

The run's folder has the files of a training run, so that the same page shows it while it goes on.
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from ..errors import ConversionError
from ..interrupt import stop_on_signal
from ..modeling import SubllmForCausalLM
from ..run_files import LOG_FILE, RUN_FILE, SNAPSHOTS, append_log, forget_after, replace_text
from ..schedule import LinearSchedule
from ..snapshots import RoutingSnapshot
from .evaluate import Evaluation, evaluate
from .learned import ROUTING_FILE, save_learned
from .scorers import calibrate
from .text import TokenBlocks

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTROL_RATE = 0.3  # part of a threshold's error, as seen in one batch, that is corrected at once
DRIFT_RATE = 0.05  # part of it that is also corrected in every later step: training keeps pushing scores up
_CALIBRATION_BATCHES = 6
_STATE_FILE = "state.pt"
_PROMPTS, _PROMPT_TOKENS = 8, 48  # whose routing is recorded at every evaluation


@dataclass(frozen=True)
class AdaptOptions:
    """How to train.

    Attributes:
        steps: optimisation steps.
        batch_size: sequences per step.
        length: tokens per sequence.
        rank: of the adapters.
        learning_rate: peak, of the adapters and bypass scales; warm-up over 4% of the steps, then cosine to 5%.
        scorer_learning_rate: peak, of the scorers.
        start_retention: share kept per level at step 0.
        retention_steps: share of the steps over which it falls to the nominal ratio.
        logit_share: share of the positions at which the distributions are compared.
        hidden_weight: weight of the hidden state distance in the loss.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints of the training state.
        seed: of text order, adapters and position choice.
    """

    steps: int = 500
    batch_size: int = 4
    length: int = 512
    rank: int = 16
    learning_rate: float = 1e-3
    scorer_learning_rate: float = 2e-5
    start_retention: float = 0.9
    retention_steps: float = 0.5
    logit_share: float = 0.5
    hidden_weight: float = 0.5
    evaluate_every: int = 50
    save_every: int = 25
    seed: int = 0


def add_adapters(model: SubllmForCausalLM, rank: int) -> PeftModel:
    """Wrap a SUBLLM's projections, from its first span on, in low-rank adapters.

    Args:
        model: changed in place.
        rank: of the adapters.
    """
    owners = model.config.parsed_structure.block_spans
    first = next((index for index, span in enumerate(owners) if span is not None), len(owners))
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=list(PROJECTIONS),
            layers_to_transform=list(range(first, len(owners))),
            layers_pattern="layers",
            task_type="CAUSAL_LM",
        ),
    )


class Adaptation:
    """One training run; its state lives in a folder and survives a kill.

    A finished run goes on if it is given more steps: the learning rate then starts again from where the longer schedule
    has it.

    Args:
        model: the SUBLLM with fitted scorers; adapters are added to it.
        dense: its dense twin, the teacher.
        directions: per scorer the direction that raises all scores, from `fit_scorers`.
        blocks: training text.
        held_out: (N, T) token ids for evaluation.
        folder: for the training state and the log.
        options: how to train.
    """

    def __init__(
        self,
        model: SubllmForCausalLM,
        dense: LlamaForCausalLM,
        directions: list[Tensor],
        blocks: TokenBlocks,
        held_out: Tensor,
        folder: Path,
        options: AdaptOptions,
    ) -> None:
        torch.manual_seed(options.seed)
        self.dense, self.directions, self.blocks = dense, directions, blocks
        self.held_out, self.folder, self.options = held_out, folder, options
        self.peft = add_adapters(model, options.rank)
        self.model = model
        self._adapters = [p for name, p in self.peft.named_parameters() if "lora_" in name]
        self._scorers = [s.weight.requires_grad_(True) for s in model.model.subsamplers]
        self._scales = [b.scale.requires_grad_(True) for b in model.model.bypasses]
        for parameter in self._adapters:
            parameter.data = parameter.data.float()
        for subsampler in model.model.subsamplers:  # adapters must not raise scores to keep more: measured, they do
            subsampler.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self._adapters + self._scales, "peak": options.learning_rate},
                {"params": self._scorers, "peak": options.scorer_learning_rate},
            ],
            lr=0.0,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        self._drifts = [0.0] * len(self._scorers)  # correction per step, learned by the controller
        self.step = 0
        self.tokens = 0
        self.evaluations: list[dict[str, Any]] = []

    def run(self) -> Evaluation:
        """Train to the end, resuming from the folder's last saved state.

        Returns:
            The last evaluation.

        Raises:
            ConversionError: if the loss is not a number; the last good state is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._describe()
        options, started, done = self.options, time.monotonic(), 0
        if self.step == 0:
            self._snapshot()
        bar = tqdm(total=options.steps, initial=self.step, unit="step")
        with stop_on_signal() as stopped:
            while self.step < options.steps:
                before = time.monotonic()
                loss, retention = self._train_step()
                tokens = options.batch_size * options.length
                done += tokens
                kept = "/".join(f"{share:.2f}" for share in retention)
                bar.set_postfix_str(f"loss {loss:.3f}, kept {kept}, {done / (time.monotonic() - started):.0f} tokens/s")
                bar.update()
                entry = {"step": self.step, "loss": loss, "retention": retention, "tokens": self.tokens}
                append_log(self.folder / LOG_FILE, entry | {"tokens_per_second": tokens / (time.monotonic() - before)})
                if self.step % options.evaluate_every == 0 and self.step < options.steps:
                    self._evaluate(bar)
                if self.step % options.save_every == 0 or stopped():
                    self.save()
                if stopped():
                    raise ConversionError(f"Stopped at step {self.step}; run the command again to go on from there.")
        if not self.evaluations or self.evaluations[-1]["step"] < self.step:
            texts = [self.blocks.batch(10**7 + index, options.batch_size) for index in range(_CALIBRATION_BATCHES)]
            calibrate(self.model.eval(), self.directions, texts)
            self._evaluate(bar)
            self.save()
        bar.close()
        return Evaluation(**{field.name: self.evaluations[-1][field.name] for field in fields(Evaluation)})

    def _train_step(self) -> tuple[float, list[float]]:
        options = self.options
        ids = self.blocks.batch(self.step, options.batch_size).to(self.model.device)
        self._set_learning_rate()
        positions = torch.randperm(ids.numel())[: int(ids.numel() * options.logit_share)]
        with torch.no_grad():
            target_hidden = self.dense.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
            target = F.log_softmax(self.dense.lm_head(target_hidden[positions]).float(), dim=-1)
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            output = self.model.model(ids, use_cache=False, output_routing=True)
            hidden = output.last_hidden_state.flatten(0, 1)
            logits = self.model.lm_head(hidden[positions])
        divergence = F.kl_div(F.log_softmax(logits.float(), dim=-1), target, log_target=True, reduction="batchmean")
        distance = (hidden.float() - target_hidden.float()).square().sum(-1) / target_hidden.float().square().sum(-1)
        loss = divergence + options.hidden_weight * distance.mean()
        if not math.isfinite(loss.item()):
            raise ConversionError(
                f"The loss is {loss.item()} at step {self.step}; the state of the last save is kept in {self.folder}. "
                "Lower --learning-rate and run the command again."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._adapters + self._scales, 1.0)
        torch.nn.utils.clip_grad_norm_(self._scorers, 1.0)
        self.optimizer.step()
        retention = self._control_retention(output.routing)
        with torch.no_grad():
            for scale in self._scales:
                scale.clamp_(0.0, 1.0)
        self.step += 1
        self.tokens += ids.numel()
        return divergence.item(), retention

    @torch.no_grad()
    def _control_retention(self, routing: Any) -> list[float]:
        """Move every threshold towards the score that the wanted share of this batch lies above.

        All scores of a level shift together, so their order stays as it was learned. The shift is proportional to the
        error, plus its sum over the steps, which cancels the steady drift that the loss gives the scorers.
        """
        shares = []
        ramp = max(int(self.options.steps * self.options.retention_steps), 1)
        for span, (record, weight, direction, ratio) in enumerate(
            zip(routing, self._scorers, self.directions, self.model.config.retention_ratios, strict=True)
        ):
            scores = record.scores[record.parent_mask]
            shares.append(record.mask.sum().item() / max(scores.numel(), 1))
            if scores.numel():
                goal = LinearSchedule(self.options.start_retention, ratio, ramp)(self.step)
                error = scores.quantile(1 - goal)
                self._drifts[span] += DRIFT_RATE * error.item()
                weight -= (CONTROL_RATE * error + self._drifts[span]) * direction
        return shares

    def _set_learning_rate(self) -> None:
        progress = self.step / self.options.steps
        warm = min(1.0, (self.step + 1) / max(1.0, 0.04 * self.options.steps))
        factor = warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _evaluate(self, bar: tqdm) -> None:
        result = evaluate(self.model, self.dense, self.held_out)
        bar.write(f"step {self.step}: {result}")
        self.evaluations.append({"step": self.step, "trained_tokens": self.tokens, **asdict(result)})
        append_log(self.folder / LOG_FILE, self.evaluations[-1] | {"eval_loss": math.log(result.perplexity)})
        self._snapshot()

    def _snapshot(self) -> None:
        RoutingSnapshot.take(self.model, self._prompts, self.step).save(self.folder / SNAPSHOTS)

    def _describe(self) -> None:
        """Say what the run is, and drop what it will repeat: beginnings of the held-out text are its prompts."""
        tokenizer = self.blocks.tokenizer
        texts = [tokenizer.decode(row[:_PROMPT_TOKENS]) for row in self.held_out[:_PROMPTS]]
        found = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
        self._prompts = [text["input_ids"] for text in found]
        about = {
            "config": asdict(self.options) | {"prompts": texts, "converted": True},
            "offsets": [text["offset_mapping"] for text in found],
            "parameters": sum(parameter.numel() for parameter in self.dense.parameters()),
            "structure": self.model.config.structure,
            "retention_ratios": self.model.config.retention_ratios,
        }
        replace_text(self.folder / RUN_FILE, json.dumps(about, indent=1) + "\n")
        forget_after(self.folder, self.step)

    def save(self) -> None:
        """Write what was learned and the training state; a kill in the middle leaves the last one intact."""
        partial, final = self.folder / "checkpoint.partial", self.folder / "checkpoint"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_learned(self.peft, self.model, partial)
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "options": asdict(self.options),
            "evaluations": self.evaluations,
            "directions": self.directions,
            "drifts": self._drifts,
            "adapters": [parameter.detach() for parameter in self._adapters],
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
        }
        torch.save(state, partial / _STATE_FILE)
        old = self.folder / "checkpoint.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def _resume(self) -> None:
        saved, old = self.folder / "checkpoint", self.folder / "checkpoint.old"
        if not saved.exists() and old.exists():  # killed between the two renames of a save
            old.rename(saved)
        if not saved.exists():
            return
        state = torch.load(saved / _STATE_FILE, weights_only=True)
        asked, found = asdict(self.options), state["options"]
        if asked | {"steps": 0} != found | {"steps": 0} or asked["steps"] < found["steps"]:
            raise ConversionError(
                f"{self.folder} holds a run with other options ({found}); give the same ones to resume it (more "
                "--steps make it longer), or another --out to start anew."
            )
        with torch.no_grad():
            for parameter, value in zip(self._adapters, state["adapters"], strict=True):
                parameter.copy_(value)
        self.model.load_state_dict(load_file(saved / ROUTING_FILE), strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.directions, self._drifts = state["directions"], state["drifts"]
        self.step, self.tokens, self.evaluations = state["step"], state["tokens"], state["evaluations"]
