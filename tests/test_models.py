"""Models are what their settings say, load from plain folders only, and adapters sit where they should."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from lib import models
from lib.corpora import train_tokenizer
from lib.models import (add_lora, best_device, load_model, load_tokenizer, matmul_peak, model_fingerprint,
                        new_model, training_flops_per_token)
from lib.profiles import ARCHITECTURES, Architecture

SMALL = Architecture(32, 2, 2, 64, vocabulary_size=300, context=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three"], 300)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A saved model with its tokenizer, as a stage leaves one."""
    path = tmp_path / "model"
    new_model(SMALL, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# --- size and cost ---------------------------------------------------------------------------------------------------

def test_parameters_of_a_tiny_model_by_hand(tokenizer):
    """Counted on paper: embedding 300 x 32, shared with the output; two blocks of 4 x 32 x 32 attention, 3 x 32 x 64
    gated layer and two norms of 32; a last norm of 32."""
    block = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    by_hand = 300 * 32 + 2 * block + 32
    assert by_hand == 30_240
    model = new_model(SMALL, tokenizer, seed=0)
    assert model.num_parameters() == by_hand
    assert model.lm_head.weight is model.model.embed_tokens.weight, "tied weights count once"


@pytest.mark.parametrize(("name", "least", "most"), [("TWO_MILLION", 1.9e6, 2.2e6), ("THREE_MILLION", 2.7e6, 3.3e6), ("FIVE_MILLION", 4.5e6, 5.5e6)])
def test_the_sizes_are_called_what_they_are(tokenizer, name, least, most):
    """2M, 3M and 5M are names in every table: within a tenth of what they say."""
    with torch.device("meta"):  # sizes without memory
        assert least < new_model(ARCHITECTURES[name], tokenizer, seed=0).num_parameters() < most


def test_flops_per_token_by_hand():
    """6 x 100 for the weights, 12 x 2 layers x 4 wide x 8 long = 768 for attention; MFU is wrong when this is."""
    assert training_flops_per_token(100, layers=2, hidden_size=4, sequence_length=8) == 600 + 768


def test_matmul_peak_counts_two_operations_per_multiply_add(monkeypatch):
    """Where the best product of 16 x 16 matrices takes half a second: 2 x 16^3 operations in it."""
    said = iter([1.0, 0.5, 2.0, 3.0, 1.0, 1.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models.Timer, "timeit", lambda timer, number: SimpleNamespace(mean=next(said)))
    assert matmul_peak("float32", size=16) == 2 * 2 * 16 ** 3
    monkeypatch.undo()
    assert matmul_peak("bfloat16", size=64) > 1e6


# --- new models ------------------------------------------------------------------------------------------------------

def test_a_seed_decides_the_weights(tokenizer):
    """Same seed, same bits, whatever drew random numbers before; another seed, another model."""
    first = new_model(SMALL, tokenizer, seed=1).state_dict()
    torch.rand(7)
    again, other = new_model(SMALL, tokenizer, seed=1).state_dict(), new_model(SMALL, tokenizer, seed=2).state_dict()
    assert len(first) > 10
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_special_tokens_of_the_model_are_the_tokenizers(tokenizer):
    """Generation stops at the model's end token; it must be the one that documents were packed with."""
    config = new_model(SMALL, tokenizer, seed=0).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tokenizer):
    """Ids beyond the embedding crash in the middle of training otherwise, without a word about why."""
    assert len(tokenizer) > 100
    with pytest.raises(ValueError, match=rf"{len(tokenizer)} entries, the model only 100"):
        new_model(Architecture(32, 2, 2, 64, vocabulary_size=100), tokenizer, seed=0)


# --- loading ---------------------------------------------------------------------------------------------------------

def test_a_saved_model_loads_as_it_was(folder, tokenizer):
    """Weights bit by bit, float32, ready to evaluate, and a tokenizer that makes the same ids."""
    model, own = load_model(folder)
    saved = load_file(folder / "model.safetensors")
    assert len(saved) > 10
    assert all(torch.equal(saved[name], weight.cpu()) for name, weight in model.named_parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (model.training, model.device.type) == (False, best_device().type)
    assert own("two three é").input_ids == tokenizer("two three é").input_ids != []


def test_a_folder_without_a_model_is_named_in_the_error(tmp_path):
    """The commonest mistake is to give the stage folder instead of its model; the message says what is missing."""
    (tmp_path / "model").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json") as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_pickled_weights_are_refused(folder):
    """A pickle can run code when it is read; only safetensors are (CVE-2025-32434)."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder)


def test_code_of_a_checkpoint_is_never_run(folder):
    """A checkpoint that brings its own modelling code is refused at once: it is not run, and nobody is asked."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    start = time.perf_counter()
    with pytest.raises(ValueError, match="trust_remote_code|custom code"):
        load_model(folder)
    assert not (folder / "ran").exists()
    assert time.perf_counter() - start < 10, "it waited for an answer"


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    """Many base models have no padding token; batches need one."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert load_tokenizer(folder).pad_token is None, "the test saw nothing"
    assert load_model(folder)[1].pad_token == "</s>"


def test_no_pretrained_tokenizer_is_none():
    """A profile without a base model trains its own tokenizer."""
    assert load_tokenizer("") is None


# --- names of weights ------------------------------------------------------------------------------------------------

def test_a_fingerprint_names_weights_not_places(folder, tmp_path):
    """A copy elsewhere is the same parent; a single changed weight, or another configuration, is another."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = model_fingerprint(folder)
    assert (len(first), first) == (16, model_fingerprint(str(copy)))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-6
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(copy) != first
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert model_fingerprint(folder) != first


def test_a_hub_model_is_named_by_name_and_revision():
    """Nothing is downloaded to name a stage; another pinned revision is another parent."""
    names = [model_fingerprint("someone/model", revision=revision) for revision in (None, "a1", "b2")]
    assert len({*names, model_fingerprint("someone/other")}) == 4


# --- LoRA ------------------------------------------------------------------------------------------------------------

def adapted(model):
    """Short names of the layers that carry an adapter."""
    return sorted({name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")})


def test_lora_of_a_llama_by_hand(tokenizer):
    """Only q_proj and v_proj (MMedLM), two layers: each adds rank x (32 + 32) weights; nothing else is learned, and an
    untrained adapter changes no output."""
    model = new_model(SMALL, tokenizer, seed=0).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
        with_adapters = add_lora(model, rank=4).eval()
        after = with_adapters(ids).logits
    learned = {name: p.numel() for name, p in with_adapters.named_parameters() if p.requires_grad}
    assert adapted(with_adapters) == ["q_proj", "v_proj"]
    assert sum(learned.values()) == 2 * 2 * 4 * (32 + 32)
    assert all("lora_" in name for name in learned)
    assert torch.equal(before, after)


def test_lora_scale_and_dropout_are_what_was_asked(tokenizer):
    """rank, alpha and dropout of the papers reach the adapter."""
    model = add_lora(new_model(SMALL, tokenizer, seed=0), rank=8, alpha=24, dropout=0.25)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.25


def test_lora_targets_of_other_architectures():
    """BLOOM and GPT-NeoX join their projections in one layer: peft's own table knows each architecture's names."""
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    assert adapted(add_lora(bloom, rank=2)) == ["query_key_value"]
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                            intermediate_size=32))
    assert adapted(add_lora(neox, rank=2)) == ["query_key_value"]


def test_lora_targets_can_be_named(tokenizer):
    """A paper that adapts other layers names them."""
    assert adapted(add_lora(new_model(SMALL, tokenizer, seed=0), targets=["down_proj"])) == ["down_proj"]
