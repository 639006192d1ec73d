"""Load a base model by name or make a tiny one; LoRA; parameters and FLOPs per token."""
import contextlib
import functools
import hashlib
import inspect
import json
import warnings
from pathlib import Path
import torch
from torch.utils.benchmark import Timer
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import eager_mask
from transformers.utils import is_flash_attn_2_available, logging
from lib.corpora import IGNORE_INDEX
logging.disable_progress_bar()  # notebooks keep one line a stage, not a bar a file
# Half precision is worth it only where the processor multiplies bfloat16 natively.
CPU_HAS_BF16 = "avx512_bf16" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
LOSS_CHUNK = 256  # rows of the logits that exist at one time

def new_model(architecture, tokenizer, *, seed):
    """A Llama-style model with random weights from an Architecture of lib.profiles, for that tokenizer."""
    if len(tokenizer) > architecture.vocabulary_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the model only {architecture.vocabulary_size}")
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(architecture, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                                         eos_token_id=tokenizer.eos_token_id))
def llama_config(architecture, **tokens):
    """An Architecture in the words of transformers; input and output embedding are one."""
    return LlamaConfig(hidden_size=architecture.hidden_size, num_hidden_layers=architecture.layers, num_attention_heads=architecture.heads,
                       num_key_value_heads=architecture.heads, intermediate_size=architecture.intermediate_size, tie_word_embeddings=True,
                       vocab_size=architecture.vocabulary_size, max_position_embeddings=architecture.context, **tokens)
def load_model(source, *, revision=None, dtype=torch.float32, device=None):
    """A causal language model and its tokenizer from a local folder or, with a pinned revision, from the hub.
    The folder may hold a LoRA adapter: its base is loaded and the adapter is added to the weights. Only safetensors weights are read, on the
    meta device none, and no code from the checkpoint is run. dtype: as in torch, or "auto": bfloat16 on a GPU, float32 elsewhere.
    FileNotFoundError for a folder that does not hold a model."""
    local, empty = Path(source), best_device().type == "meta"
    dtype = dtype if dtype != "auto" else torch.bfloat16 if best_device().type == "cuda" else torch.float32
    if (local / "adapter_model.safetensors").exists():
        from peft import PeftModel
        model, _ = load_model(_base_of(local), dtype=dtype, device=None if empty else "cpu")
        model = model if empty else PeftModel.from_pretrained(model, source).merge_and_unload()
    elif local.is_dir() and not (local / "config.json").exists():
        raise FileNotFoundError(f"{source}: neither config.json nor adapter_model.safetensors; a Hugging Face model folder is needed")
    elif empty:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, revision=revision), dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.to(device or best_device()).eval(), tokenizer
def _base_of(adapter):
    """What a LoRA adapter was trained on: a model folder, told relative to the adapter's where this project saved it, or a hub name."""
    base = json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    return (Path(adapter) / base).resolve() if (Path(adapter) / base).is_dir() else base
def load_tokenizer(source):
    """The tokenizer of a pretrained model; None for "", where the profile trains its own."""
    return AutoTokenizer.from_pretrained(source) if source else None
def best_device():
    """cuda where there is a GPU, else cpu; meta inside `with torch.device("meta")`, where no weights are wanted."""
    return torch.device("meta" if torch.get_default_device().type == "meta" else "cuda" if torch.cuda.is_available() else "cpu")
def resolve_precision(precision):
    """float32 or bfloat16 for "auto", whichever this machine trains faster in; ValueError for anything else."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}: choose auto, float32 or bfloat16")
    return precision if precision != "auto" else "bfloat16" if torch.cuda.is_available() or CPU_HAS_BF16 else "float32"

def add_lora(model, *, rank=16, alpha=32, dropout=0.05, targets=None, seed=0):
    """The model with LoRA adapters (Hu et al. 2021); defaults of MMedLM's parameter-efficient fine-tuning."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known  # query and value projections, as MMedLM's, by their names
    torch.manual_seed(seed)
    targets = targets or known.get(model.config.model_type, "all-linear")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks for it
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"))
def decoder_arguments(model):
    """What the decoder takes, dropout turned off. ValueError if more than the output layer makes the logits (Gemma 2)."""
    decoder, ids = model.eval().get_decoder(), torch.ones(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        own, logits = model.get_output_embeddings()(decoder(ids).last_hidden_state), model(ids).logits
    if not ids.is_meta and not torch.allclose(logits, own, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes the logits after its output layer: it can be neither trained nor scored here")
    return inspect.signature(decoder.forward).parameters

def training_flops_per_token(parameters, *, layers, hidden_size, sequence_length, frozen=0):
    """Floating-point operations of forward and backward per token: 6N + 12 L d S (PaLM, appendix B); no gradient, 2N less, for frozen weights.
    >>> training_flops_per_token(8_030_000_000, layers=32, hidden_size=4096, sequence_length=4096)
    54622450944"""
    return 6 * parameters - 2 * frozen + 12 * layers * hidden_size * sequence_length
def model_flops_per_token(model, sequence_length):
    """FLOPs of one token of training this model, frozen weights counted as such."""
    config = model.config.get_text_config()
    return training_flops_per_token(model.num_parameters(), layers=config.num_hidden_layers, hidden_size=config.hidden_size,
                                    sequence_length=sequence_length, frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad))
def matmul_peak(precision, size=1024):
    """FLOP/s that MFU is measured against: 989e12 on an H100 or H200 (dense bf16), elsewhere the best of this machine's measured matrix products."""
    if torch.cuda.is_available() and "H" in torch.cuda.get_device_name(0).split()[-1][:2]:
        return 989e12
    square = torch.randn(size, size, device=best_device()).to(getattr(torch, precision))
    timer = Timer("a @ a", globals={"a": square}, num_threads=torch.get_num_threads())
    return 2 * size ** 3 / min(timer.timeit(4).mean for _ in range(6))  # it waits for the device
def model_fingerprint(source, *, revision=None):
    """A hash that names the weights: of the files of a local folder, or of hub name and revision."""
    if not (folder := Path(source)).is_dir():
        return hashlib.sha256(json.dumps([str(source), revision]).encode()).hexdigest()[:16]
    adapter = (folder / "adapter_model.safetensors").exists()
    digest = hashlib.sha256(model_fingerprint(_base_of(folder)).encode() if adapter else b"")
    for path in sorted(folder.glob("*.safetensors")) + [folder / "config.json"] * (not adapter):
        with open(path, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()[:16]

# --- the loss, and what makes it faster ----------------------------------------------------------------------------------
def unfused_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention in plain matrix products, all weights (batch, heads, sequence, sequence) at once; arguments and result as in transformers."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))  # a head of them serves several queries
    weights = torch.softmax(((query * scaling) @ key.transpose(2, 3)).add_(attention_mask), -1)
    return (torch.dropout(weights, dropout, module.training) @ value).transpose(1, 2).contiguous(), None
AttentionInterface.register("unfused", unfused_attention)
AttentionMaskInterface.register("unfused", eager_mask)
def speed_up(model, layers, names, precision="bfloat16"):
    """Switch on compile, activation_checkpointing, variable_length_attention (CUDA alone: elsewhere its backward pass does not exist) and
    unfused_attention (a CPU in bfloat16 alone: for some hundred positions torch's fused kernel takes three times as long, most of it backwards)."""
    if torch.cuda.is_available() and "variable_length_attention" in names:
        model.set_attn_implementation("flash_attention_2" if is_flash_attn_2_available() else "flex_attention")
    elif (precision, torch.cuda.is_available(), model.config._attn_implementation) == ("bfloat16", False, "sdpa") and "unfused_attention" in names:
        model.set_attn_implementation("unfused")
    if "activation_checkpointing" in names:  # what attention gave is kept, all else of a layer is computed again
        kept = [torch.ops.aten._scaled_dot_product_flash_attention.default, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
                torch.ops.aten._scaled_dot_product_efficient_attention.default, torch.ops.aten._scaled_dot_product_cudnn_attention.default]
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": functools.partial(create_selective_checkpoint_contexts, kept)})
    if "compile" in names and can_compile():  # all layers are alike, so that it is compiled once
        torch.compiler.reset()  # a process compiles a function for eight shapes, those of earlier stages among them, and then no more
        torch._inductor.config.cpp.threads = 2  # on every machine: sums are made in as many parts, and round accordingly
        for layer in layers:
            layer.compile(dynamic=False)
@functools.cache
def can_compile():
    """Whether torch.compile works on this machine: for a processor it takes a C++ compiler and the headers of Python. A line says if not."""
    with contextlib.suppress(RuntimeError):  # of which all errors of the compiler are
        return torch.compile(torch.nn.ReLU())(torch.ones(8, device=best_device())) is not None
    print("training goes on without `compile`: no C++ compiler, or no headers of Python (Debian: g++, python3-dev)")
    return False
def loss_sum(model, input_ids, labels, position_ids):
    """Summed cross-entropy of the labels, each predicted from the position before it; logits exist in chunks only.
    With no attention mask and restarting position ids transformers masks every document from the others; flash attention takes one long row."""
    shape = (1, -1) if model.config._attn_implementation.startswith("flash") else input_ids.shape
    hidden = model.get_decoder()(input_ids=input_ids.reshape(shape), position_ids=position_ids.reshape(shape), use_cache=False).last_hidden_state
    hidden, targets = hidden.reshape(*labels.shape, -1), labels[:, 1:]
    wanted = targets != IGNORE_INDEX
    return LinearCrossEntropy.apply(hidden[:, :-1][wanted], model.get_output_embeddings().weight, targets[wanted])
class LinearCrossEntropy(torch.autograd.Function):
    """Output projection and summed cross-entropy in one pass, in chunks, gradients formed in the forward pass.
    Only positions with a label come in; (chunk, vocabulary) logits are the largest thing that ever exists. No probability is taken as below 1e-38."""
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        vocabulary, total = weight.shape[0], torch.zeros((), device=hidden.device)
        hidden_gradient, learned = torch.empty_like(hidden), ctx.needs_input_grad[1]
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if learned else None
        logits = torch.empty(LOSS_CHUNK, vocabulary, dtype=hidden.dtype, device=hidden.device)  # reused: no new pages per chunk
        chances = torch.empty(LOSS_CHUNK, vocabulary, dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], LOSS_CHUNK):
            part, target = hidden[start:start + LOSS_CHUNK], targets[start:start + LOSS_CHUNK, None]
            z, p = logits[:len(part)], chances[:len(part)]
            torch.mm(part, weight.T, out=z)
            torch.softmax(z, -1, dtype=torch.float32, out=p)
            total -= p.gather(1, target).clamp_min_(torch.finfo(torch.float32).tiny).log_().sum()
            p.scatter_add_(1, target, p.new_full((len(part), 1), -1.0))  # softmax - one_hot: the gradient of the logits
            z.copy_(p)
            torch.mm(z, weight, out=hidden_gradient[start:start + LOSS_CHUNK])
            if learned:
                weight_gradient += z.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype) if learned else None)
        return total
    @staticmethod
    def backward(ctx, gradient):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return *(part if part is None else part * gradient.to(part.dtype) for part in (hidden_gradient, weight_gradient)), None
