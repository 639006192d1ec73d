"""Load a base model by name or make a tiny one; LoRA; parameters and FLOPs per token."""

import hashlib
import inspect
import json
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()  # notebooks keep one line a stage, not a bar a file

# Attention projections that MMedLM adapted per architecture (README of MMedLM; PAPERS A1.3 L8), else all linear layers.
LORA_TARGETS = {"llama": ["q_proj", "v_proj"], "mistral": ["q_proj", "v_proj"], "qwen2": ["q_proj", "v_proj"], "qwen3": ["q_proj", "v_proj"],
                "internlm": ["q_proj", "v_proj"], "internlm2": ["wqkv"], "bloom": ["query_key_value"]}

def new_model(architecture, tokenizer, *, seed):
    """A Llama-style model with random weights from an Architecture of lib.profiles, for that tokenizer."""
    if len(tokenizer) > architecture.vocabulary_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the model only {architecture.vocabulary_size}")
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=architecture.hidden_size, num_hidden_layers=architecture.layers, num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads, intermediate_size=architecture.intermediate_size, tie_word_embeddings=True,
        vocab_size=architecture.vocabulary_size, max_position_embeddings=architecture.context, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))

def load_model(source, *, revision=None, dtype=torch.float32, device=None):
    """A causal language model and its tokenizer from a local folder or, with a pinned revision, from the hub.

    The folder may hold a LoRA adapter: its base is loaded and the adapter is added to the weights. Only safetensors weights are
    read and no code from the checkpoint is run. Raises FileNotFoundError for a folder that does not hold a model.
    """
    local = Path(source)
    if (local / "adapter_model.safetensors").exists():
        from peft import PeftModel
        model, _ = load_model(_base_of(local), dtype=dtype, device="cpu")
        model = PeftModel.from_pretrained(model, source).merge_and_unload()
    elif local.is_dir() and not (local / "config.json").exists():
        raise FileNotFoundError(f"{source}: neither config.json nor adapter_model.safetensors; a Hugging Face model folder is needed")
    else:
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device or best_device()).eval(), tokenizer

def _base_of(adapter):
    """What a LoRA adapter was trained on: a model folder, told relative to the adapter's where this project saved it, or a hub name."""
    base = json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    return (Path(adapter) / base).resolve() if (Path(adapter) / base).is_dir() else base

def load_tokenizer(source):
    """The tokenizer of a pretrained model; None for "", where the profile trains its own."""
    return AutoTokenizer.from_pretrained(source) if source else None

def best_device():
    """cuda where there is a GPU, else cpu."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

def add_lora(model, *, rank=16, alpha=32, dropout=0.05, targets=None, seed=0):
    """The model with LoRA adapters (Hu et al. 2021); defaults of MMedLM's parameter-efficient fine-tuning."""
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    targets = targets or LORA_TARGETS.get(model.config.model_type, "all-linear")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks for it
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"))

def decoder_arguments(model):
    """What the decoder takes, dropout turned off. ValueError if more than the output layer makes the logits (Gemma 2)."""
    decoder, ids = model.eval().get_decoder(), torch.ones(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        own, logits = model.get_output_embeddings()(decoder(ids).last_hidden_state), model(ids).logits
    if not torch.allclose(logits, own, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes the logits after its output layer: it can be neither trained nor scored here")
    return inspect.signature(decoder.forward).parameters

def count_parameters(model):
    """Number of weights; tied ones count once."""
    return sum(p.numel() for p in model.parameters())

def training_flops_per_token(parameters, *, layers, hidden_size, sequence_length, frozen=0):
    """Floating-point operations of forward and backward per token: 6N + 12 L d S (PaLM, appendix B); no gradient, 2N less, for frozen weights.

    >>> training_flops_per_token(8_030_000_000, layers=32, hidden_size=4096, sequence_length=4096)
    54622450944
    """
    return 6 * parameters - 2 * frozen + 12 * layers * hidden_size * sequence_length

def matmul_rate(*, dtype=torch.float32, size=1024, repeats=6):
    """Best measured matrix-multiply rate of this machine in FLOP/s, the ceiling that training speed is compared with."""
    import time
    a, best = torch.randn(size, size, device=best_device()).to(dtype), 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(4):
            b = a @ a
        float(b[0, 0])  # waits for the device
        best = max(best, 4 * 2 * size ** 3 / (time.perf_counter() - start))
    return best

def model_fingerprint(source, *, revision=None):
    """A hash that names the weights: of the files of a local folder, or of hub name and revision."""
    folder = Path(source)
    if not folder.is_dir():
        return hashlib.sha256(json.dumps([str(source), revision]).encode()).hexdigest()[:16]
    adapter = (folder / "adapter_model.safetensors").exists()
    digest = hashlib.sha256(model_fingerprint(_base_of(folder)).encode() if adapter else b"")
    for path in sorted(folder.glob("*.safetensors")) + [folder / "config.json"] * (not adapter):
        with open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]
