"""What users of transformers expect of any causal model, after the generic tests of its own suite."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from subllm import SubllmCache, SubllmConfig, SubllmForCausalLM
from tests.conftest import tiny_config, tiny_model

from .test_modeling import TOLERANCE

STRUCTURE = "T(T(T)T)T"
PLAIN = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def tokens(rows=2, length=12, seed=0):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


class TestWeights:
    @torch.no_grad()
    def test_auto_classes_load_what_was_saved_in_pieces(self, tmp_path):
        model = tiny_model(STRUCTURE, router=["even", "subllm"], positions="parent")
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert type(loaded) is SubllmForCausalLM
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
        trunk = AutoModel.from_pretrained(tmp_path).eval()
        assert torch.equal(trunk(tokens()).last_hidden_state, model.model(tokens()).last_hidden_state)
        assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()

    @torch.no_grad()
    def test_a_trunk_saved_alone_loads_into_the_model_with_a_head(self, tmp_path):
        model = tiny_model(STRUCTURE, tie_word_embeddings=True)
        model.model.save_pretrained(tmp_path)
        loaded = SubllmForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)

    @torch.no_grad()
    def test_tied_weights_stay_one_tensor(self, tmp_path):
        model = tiny_model(STRUCTURE, tie_word_embeddings=True)
        model.save_pretrained(tmp_path)
        for each in (model, SubllmForCausalLM.from_pretrained(tmp_path), copy.deepcopy(model)):
            assert each.lm_head.weight is each.model.embed_tokens.weight
        model.resize_token_embeddings(120)
        assert model.lm_head.weight is model.model.embed_tokens.weight and model(tokens()).logits.shape[-1] == 120

    @torch.no_grad()
    @pytest.mark.parametrize("size", [98, 128, 90])
    @pytest.mark.parametrize("tied", [False, True])
    def test_embeddings_are_resized_without_changing_the_tokens_that_stay(self, size, tied, tmp_path):
        model = tiny_model(STRUCTURE, tie_word_embeddings=tied)
        ids = tokens() % 89 + 1
        before = model(ids).logits
        model.resize_token_embeddings(size, mean_resizing=False)
        assert model.config.vocab_size == size
        stay = min(size, 97)
        torch.testing.assert_close(model(ids).logits[..., :stay], before[..., :stay], **TOLERANCE)
        model.save_pretrained(tmp_path)
        assert torch.equal(SubllmForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits)

    def test_every_weight_is_initialised_and_trained(self):
        model = AutoModelForCausalLM.from_config(tiny_config(STRUCTURE)).train()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        model(tokens(), labels=tokens()).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_runs_and_comes_back_from_a_folder(self, dtype, tmp_path):
        tiny_model(STRUCTURE).to(dtype).save_pretrained(tmp_path)
        found, named = (SubllmForCausalLM.from_pretrained(tmp_path, dtype=each).eval() for each in ("auto", dtype))
        logits = found(tokens()).logits
        assert logits.dtype == dtype and torch.equal(logits, named(tokens()).logits)

    def test_a_configuration_survives_json(self, tmp_path):
        config = tiny_config(STRUCTURE, retention_ratio=[0.5, 0.75], router=["subllm", "random"])
        config.save_pretrained(tmp_path)
        assert SubllmConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


class TestForward:
    @torch.no_grad()
    def test_attention_kernels_agree_and_can_be_changed(self):
        model = tiny_model(STRUCTURE)
        mask = torch.ones_like(tokens())
        mask[0, :4] = 0
        logits = {}
        for kernel in ("sdpa", "eager"):
            model.set_attn_implementation(kernel)
            logits[kernel] = model(tokens(), attention_mask=mask).logits
        torch.testing.assert_close(*logits.values(), **TOLERANCE)

    @torch.no_grad()
    def test_embeddings_may_be_given_for_ids(self):
        model = tiny_model(STRUCTURE)
        embeddings = model.get_input_embeddings()(tokens())
        assert torch.equal(model(inputs_embeds=embeddings).logits, model(tokens()).logits)
        for arguments in ({}, {"input_ids": tokens(), "inputs_embeds": embeddings}):
            with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
                model(**arguments)

    @torch.no_grad()
    @pytest.mark.parametrize("chosen", [False, True])
    def test_tuples_hold_what_the_named_output_holds(self, chosen):
        model = tiny_model(STRUCTURE)
        options = {"labels": tokens(), "output_hidden_states": chosen, "use_cache": False}
        named, plain = model(tokens(), **options), model(tokens(), return_dict=False, **options)
        assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple()) == 2 + chosen
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain[:2], named.to_tuple()[:2], strict=True))
        model.config.return_dict = False
        assert isinstance(model(tokens()), tuple) and isinstance(model(tokens(), return_dict=True).logits, torch.Tensor)

    @torch.no_grad()
    def test_the_loss_is_the_mean_over_labelled_tokens(self):
        model, labels = tiny_model(STRUCTURE), tokens()
        labels[0, :7] = -100
        output = model(tokens(), labels=labels)
        expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)

    @torch.no_grad()
    def test_logits_of_some_columns_equal_those_of_all(self):
        model = tiny_model(STRUCTURE)
        whole = model(tokens()).logits
        torch.testing.assert_close(model(tokens(), logits_to_keep=3).logits, whole[:, -3:], **TOLERANCE)
        some = torch.tensor([1, 5])
        torch.testing.assert_close(model(tokens(), logits_to_keep=some).logits, whole[:, some], **TOLERANCE)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing_changes_no_loss_and_no_gradient(self, reentrant):
        found = []
        for checkpointing in (False, True):
            model = tiny_model(STRUCTURE).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            torch.manual_seed(0)
            output = model(tokens(), labels=tokens())
            output.loss.backward()
            found.append([output.loss.detach(), *(parameter.grad for parameter in model.parameters())])
        assert output.past_key_values is None
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, **TOLERANCE)

    @torch.no_grad()
    def test_masks_that_cannot_be_honoured_are_refused(self):
        model = tiny_model(STRUCTURE)
        with pytest.raises(ValueError, match="has 4 dimensions"):
            model(tokens(), attention_mask=torch.ones(2, 1, 12, 12))
        with pytest.raises(ValueError, match="is a dict"):
            model(tokens(), attention_mask={"full_attention": None})
        for shape in ((2, 11), (2, 13), (1, 12)):
            with pytest.raises(ValueError, match=r"must be \(2, 12\)\."):
                model(tokens(), attention_mask=torch.ones(shape))
        cache = model(tokens()).past_key_values
        with pytest.raises(ValueError, match=r"must be \(2, 1\) or \(2, 13\)\."):
            model(tokens()[:, :1], attention_mask=torch.ones(2, 12), past_key_values=cache)
        for width in (1, 13):
            model(tokens()[:, :1], attention_mask=torch.ones(2, width), past_key_values=copy.deepcopy(cache))


class TestGeneration:
    @pytest.mark.parametrize("kernel", ["sdpa", "eager"])
    def test_outputs_asked_for_have_an_entry_per_token_and_block(self, kernel):
        model, wanted = tiny_model(STRUCTURE, attn_implementation=kernel), {"output_hidden_states": True}
        if kernel == "eager":
            wanted["output_attentions"] = True
        output = model.generate(tokens(), max_new_tokens=4, return_dict_in_generate=True, output_scores=True,
                                output_logits=True, **wanted, **PLAIN)  # fmt: skip
        assert output.sequences.shape == (2, 16) and len(output.scores) == len(output.logits) == 4
        for step, states in enumerate(output.hidden_states):
            new = 1 if step else 12
            assert [each.shape for each in states] == [(2, new, 32)] * 6
            if kernel == "eager":
                assert [each.shape for each in output.attentions[step]] == [(2, 4, new, 12 + step)] * 5

    def test_goes_on_from_the_cache_that_it_returned(self):
        model = tiny_model(STRUCTURE)
        whole = model.generate(tokens(), max_new_tokens=9, **PLAIN)
        first = model.generate(tokens(), max_new_tokens=4, return_dict_in_generate=True, **PLAIN)
        second = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=5, **PLAIN)
        assert torch.equal(second, whole)

    @pytest.mark.parametrize(
        "options",
        [{"prefill_chunk_size": 5}, {"cache_implementation": "dynamic"}, {"use_cache": False}],
        ids=["chunks", "dynamic", "no cache"],
    )
    def test_ways_to_the_same_text(self, options):
        model = tiny_model(STRUCTURE)
        expected = model.generate(tokens(), max_new_tokens=8, **PLAIN)
        assert torch.equal(model.generate(tokens(), max_new_tokens=8, **options, **PLAIN), expected)

    def test_embeddings_may_be_given_for_the_prompt(self):
        model = tiny_model(STRUCTURE)
        expected = model.generate(tokens(), max_new_tokens=8, **PLAIN)[:, 12:]
        embeddings = model.get_input_embeddings()(tokens())
        assert torch.equal(model.generate(inputs_embeds=embeddings, max_new_tokens=8, **PLAIN), expected)

    @pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 3}])
    def test_several_texts_per_prompt(self, options):
        model = tiny_model(STRUCTURE)
        torch.manual_seed(0)
        found = model.generate(tokens(), max_new_tokens=5, **PLAIN | {"num_return_sequences": 2} | options)
        assert found.shape == (2 * options.get("num_return_sequences", 2), 17)

    @pytest.mark.parametrize("helper", ["assistant", "lookup"])
    def test_tokens_proposed_by_a_helper_change_nothing(self, helper):
        model = tiny_model(STRUCTURE)
        prompt = tokens(1, 4).repeat(1, 4)
        expected = model.generate(prompt, max_new_tokens=12, **PLAIN)
        assistant = copy.deepcopy(model)  # some proposals are right, some are wrong
        assistant.lm_head.weight.data += 0.05 * torch.randn(97, 32, generator=torch.Generator().manual_seed(0))
        options = {"assistant_model": assistant} if helper == "assistant" else {"prompt_lookup_num_tokens": 3}
        assert torch.equal(model.generate(prompt, max_new_tokens=12, **options, **PLAIN), expected)

    @torch.no_grad()
    def test_crop_takes_the_number_of_tokens_negated_as_other_caches_do(self):
        model = tiny_model(STRUCTURE)
        caches = {"ours": model(tokens()).past_key_values, "theirs": DynamicCache()}
        caches["theirs"].update(torch.zeros(2, 2, 12, 8), torch.zeros(2, 2, 12, 8), 0)
        for cache in caches.values():
            with pytest.raises(ValueError, match=r"negative (integer|number)"):
                cache.crop(5)
            cache.crop(0)
            assert cache.get_seq_length() == 12
            cache.crop(-5)
            assert cache.get_seq_length() == 7
        rest = model(tokens()[:, 7:], past_key_values=caches["ours"]).logits
        torch.testing.assert_close(rest, model(tokens()).logits[:, 7:], **TOLERANCE)

    def test_other_caches_and_continuous_batching_are_refused_at_once(self):
        model = tiny_model(STRUCTURE)
        for name in ("static", "offloaded", "quantized"):
            with pytest.raises(ValueError, match="one kind of cache only"):
                model.generate(tokens(), cache_implementation=name, max_new_tokens=2, **PLAIN)
        with pytest.raises(TypeError, match="DynamicCache"):
            model.generate(tokens(), past_key_values=DynamicCache(), max_new_tokens=2, **PLAIN)
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.generate_batch([[5, 6, 7]], max_new_tokens=2)
        with pytest.raises(NotImplementedError, match="no continuous batching"):
            model.generate(tokens(), cache_implementation="paged", max_new_tokens=2)


class TestPeft:
    @pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]])
    def test_lora_trains_and_comes_back(self, modules, tmp_path):
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, r=4)
        model = get_peft_model(tiny_model(STRUCTURE), config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for _ in range(5):
            torch.manual_seed(0)
            loss = model(input_ids=tokens(), labels=tokens()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model(STRUCTURE), tmp_path).eval()
        with torch.no_grad():
            expected = model.eval()(tokens()).logits
            torch.testing.assert_close(loaded(tokens()).logits, expected, **TOLERANCE)
            torch.testing.assert_close(loaded.merge_and_unload()(tokens()).logits, expected, **TOLERANCE)

    @pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # peft warns of generate's own
    def test_prompt_tuning_generates_with_a_cache_what_it_does_without(self):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(tiny_model(STRUCTURE), config).eval()
        batch = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
        found = model.generate(**batch, max_new_tokens=6, **PLAIN)
        for column in range(12, 18):
            logits = model(found[:, :column], attention_mask=torch.ones(2, column)).logits
            assert torch.equal(logits[:, -1].argmax(-1), found[:, column])

    def test_what_is_in_the_limits_is_refused_at_once(self):
        for config in (LoraConfig(task_type="CAUSAL_LM"), IA3Config(task_type="CAUSAL_LM")):
            with pytest.raises(ValueError, match="Please specify `target_modules`"):
                get_peft_model(tiny_model(STRUCTURE), config)
        prefixed = get_peft_model(
            tiny_model(STRUCTURE), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        )
        with pytest.raises(TypeError, match="a SUBLLM caches each level apart"):
            prefixed(tokens())


def test_a_cache_can_be_copied_and_emptied():
    model = tiny_model(STRUCTURE)
    with torch.no_grad():
        cache = model(tokens(), past_key_values=SubllmCache(model.config)).past_key_values
        copied = copy.deepcopy(cache)
        following = tokens(seed=1)[:, :4]
        expected = model(following, past_key_values=cache).logits
        torch.testing.assert_close(model(following, past_key_values=copied).logits, expected, **TOLERANCE)
        copied.reset()
        assert copied.get_seq_length() == 0 and copied.used_bytes == 0
        torch.testing.assert_close(model(tokens(), past_key_values=copied).logits, model(tokens()).logits, **TOLERANCE)
