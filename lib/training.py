"""One loop for continued pre-training and instruction tuning: packed rows in, a checkpoint folder out, resumable at any step."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lib.corpora import IGNORE_INDEX, rows_of_step
from lib.models import (add_lora, best_device, count_parameters, decoder_arguments, load_model, model_fingerprint, new_model,
                        training_flops_per_token)
from lib.results import REPOSITORY, write_atomically

# Half precision is worth it only where the processor multiplies bfloat16 natively.
CPU_HAS_BF16 = "avx512_bf16" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
# Read once, when this code is loaded: an edit while a notebook runs must not rename its stages.
CODE = hashlib.sha256(b"".join((REPOSITORY / "lib" / name).read_bytes() for name in ("training.py", "models.py"))).hexdigest()[:16]
LOSS_CHUNK = 256  # rows of the logits that exist at one time

@dataclass(frozen=True)
class Stage:
    """What one training stage does; saved with the run, and hashed into its name."""

    name: str
    steps: int
    rows_per_step: int               # sequences in a global batch
    micro_batch_size: int            # sequences in one forward pass
    peak_learning_rate: float
    warmup_share: float = 0.1        # of the steps
    final_learning_rate_share: float = 0.1
    weight_decay: float = 0.1
    beta2: float = 0.95
    gradient_clip: float = 1.0
    seed: int = 0
    precision: str = "auto"          # auto | float32 | bfloat16 (weights kept in float32 either way)
    checkpoint_steps: int = 100
    keep_steps: tuple = ()           # steps after which a model is kept for curves
    lora_rank: int = 0               # 0 trains every weight; else alpha, dropout and targets of models.add_lora

def runs_root():
    """The folder of all trained stages: $RUNS_ROOT, else <repository>/runs."""
    return Path(os.environ.get("RUNS_ROOT") or REPOSITORY / "runs").resolve()

def train(stage, mixture, *, base, tokenizer=None, progress=print):
    """Train one stage, or return it at once when it is complete; resumes exactly after a kill.

    mixture: {source: (Packed, weight)}; weights are whole numbers, the share of each source in every batch. base: the
    folder or name of the parent model, or an Architecture for random weights (then `tokenizer` is needed).
    Returns the folder runs/<name>-<key>, which holds model/, metrics.jsonl, stage.json and, last of all, done.json.
    """
    stage = replace(stage, precision=_resolve_precision(stage.precision))
    description = describe_stage(stage, mixture, base, tokenizer)
    folder = runs_root() / f"{stage.name}-{stage_key(description)}"
    if (folder / "done.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not (folder / "done.json").exists():  # another process may have finished it while we waited
            write_atomically(folder / "stage.json", json.dumps(description, indent=2) + "\n")
            _run(stage, mixture, base, tokenizer, folder, progress)
    return folder

def describe_stage(stage, mixture, base, tokenizer=None):
    """Everything that the weights depend on: settings, data, parent, tokenizer and the code of the loop."""
    parent = model_fingerprint(base) if isinstance(base, (str, Path)) else asdict(base)
    words = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:16] if tokenizer else None
    data = [[name, packed.fingerprint, weight] for name, (packed, weight) in mixture.items()]  # a list: their order matters
    return {"stage": asdict(stage), "data": data, "parent": parent, "tokenizer": words, "code": CODE}

def stage_key(description):
    """A short hash of a stage's description.

    >>> stage_key({"a": 1, "b": 2}) == stage_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]

def kept_models(folder):
    """{step: model folder} of the models kept along a stage, the final one included."""
    folder = Path(folder)
    kept = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}
    return dict(sorted((kept | {json.loads((folder / "done.json").read_text())["steps"]: folder / "model"}).items()))

def read_metrics(folder):
    """metrics.jsonl as a list of {step, tokens, loss, learning_rate, tokens_per_second, mfu}."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]

def learning_rate(step, stage):
    """Linear warm-up, then a cosine down to final_learning_rate_share of the peak.

    >>> stage = Stage("s", steps=100, rows_per_step=1, micro_batch_size=1, peak_learning_rate=1.0)
    >>> [round(learning_rate(step, stage), 3) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.55, 0.1]
    """
    warmup = max(1, round(stage.steps * stage.warmup_share))
    if step < warmup:
        return stage.peak_learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, stage.steps - warmup)
    low = stage.final_learning_rate_share
    return stage.peak_learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

# --- the stages of PMC-LLaMA at the size of a profile --------------------------------------------------------------------

def train_base(profile, size, prepared, *, seed=0, base_model=""):
    """The base model: general text only. A pretrained one, named here or by the profile, is taken as it is."""
    architecture = base_model or profile.models[size]
    if isinstance(architecture, str):
        return architecture
    rate = profile.base_learning_rate * architecture.learning_rate_scale
    stage = _stage(profile, f"base-{size}", profile.base_tokens, prepared.packed["general"], rate, seed)
    return train(stage, {"general": (prepared.packed["general"], 1)}, base=architecture, tokenizer=prepared.tokenizer)

def inject(profile, size, base, mixture, *, name, seed=0):
    """Continued pre-training (PMC-LLaMA stage 1, knowledge injection) on a mixture of corpora.mixed."""
    packed = next(iter(mixture.values()))[0]
    # The 5M model takes a higher rate than the 2M one: in trials at 1.2, 2.4 and 4.0e-3 it learned more with every step up.
    rate = profile.injection_learning_rate * getattr(profile.models.get(size), "learning_rate_scale", 1.0)
    stage = _stage(profile, f"inject-{name}-{size}", profile.injection_tokens, packed, rate, seed)
    points = {round(stage.steps * (i + 1) / profile.curve_points) for i in range(profile.curve_points)}
    return train(replace(stage, keep_steps=tuple(sorted(points))), mixture, base=model_folder(base))

def tune(profile, base, packed, *, name, seed=0, lora_rank=0):
    """Instruction tuning (PMC-LLaMA stage 2): whole passes over packed examples, only responses are learned.

    lora_rank: 0 tunes every weight, else LoRA adapters of that rank (MMedLM's parameter-efficient fine-tuning: 16).
    """
    tokens = packed.input_ids.size * profile.tuning_epochs
    rate = profile.lora_learning_rate if lora_rank else profile.tuning_learning_rate
    stage = _stage(profile, re.sub(r"[^\w.]+", "-", name), tokens, packed, rate, seed)
    return train(replace(stage, lora_rank=lora_rank), {"instructions": (packed, 1)}, base=model_folder(base))

def model_folder(stage_folder):
    """The model of a stage folder; a hub name or a plain model folder is returned as it is."""
    inner = Path(stage_folder) / "model"
    return inner if inner.is_dir() else stage_folder

def _stage(profile, name, tokens, packed, learning_rate, seed):
    length = packed.input_ids.shape[1]
    rows = max(1, profile.tokens_per_step // length)
    return Stage(name, steps=max(1, round(tokens / (rows * length))), rows_per_step=rows,
                 micro_batch_size=min(rows, max(1, profile.micro_batch_tokens // length)), peak_learning_rate=learning_rate,
                 seed=seed, checkpoint_steps=profile.checkpoint_steps)

# --- the loop ----------------------------------------------------------------------------------------------------------

def _run(stage, mixture, base, tokenizer, folder, progress):
    model, tokenizer = _base_model(base, tokenizer, stage.seed)
    if "position_ids" not in decoder_arguments(model):
        raise ValueError(f"{type(model).__name__} takes no position ids: packed documents would see each other")
    if stage.lora_rank:
        model = add_lora(model, rank=stage.lora_rank, seed=stage.seed)
        model.peft_config["default"].base_model_name_or_path = str(base)
    device, reduced = best_device(), stage.precision == "bfloat16"
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The optimizer works on float32 masters; the model computes in bfloat16 where the hardware is fast at it.
    masters = [weight.detach().float().clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, stage.beta2), weight_decay=stage.weight_decay, fused=True)
    first = _resume(folder, masters, optimizer)
    if reduced:
        model.to(torch.bfloat16)
    _copy(masters, weights)
    model.train()
    flops = _flops_per_token(model, mixture)
    peak = matmul_peak(stage.precision)
    for step in range(first, stage.steps):
        start = time.perf_counter()
        torch.manual_seed(stage.seed * 1_000_003 + step)  # dropout is a function of seed and step: a resumed run draws the same
        batch = global_batch(step, stage, mixture, device)
        loss = _step(model, weights, masters, batch, stage)
        rate = learning_rate(step, stage)
        _update(optimizer, masters, weights, rate, stage.gradient_clip)
        seconds = time.perf_counter() - start
        tokens = batch["input_ids"].numel()
        _log(folder, step, {"tokens": tokens * (step + 1), "loss": loss, "learning_rate": rate,
                            "tokens_per_second": tokens / seconds, "mfu": flops * tokens / seconds / peak}, stage, progress)
        _keep(folder, step + 1, stage, model, tokenizer, masters, optimizer)
    _finish(folder, stage, model, tokenizer, masters)

def global_batch(step, stage, mixture, device="cpu"):
    """input_ids, labels and position_ids of one step, each (rows, sequence), and the number of labels in it."""
    packed = [data for data, _ in mixture.values()]
    chosen = rows_of_step(step, stage.rows_per_step, weights=tuple(weight for _, weight in mixture.values()),
                          sizes=tuple(len(data.input_ids) for data in packed), seed=stage.seed)
    batch = {name: torch.from_numpy(np.stack([getattr(packed[s], name)[row] for s, row in chosen])).long().to(device)
             for name in ("input_ids", "labels", "position_ids")}
    # Labels are counted over the whole step, so a long answer weighs as much as its tokens.
    return batch | {"count": max(1, int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()))}

def _step(model, weights, masters, batch, stage):
    """Gradients of one global batch, accumulated in float32; returns the loss per label in nats."""
    total = 0.0
    for start in range(0, stage.rows_per_step, stage.micro_batch_size):
        part = slice(start, start + stage.micro_batch_size)
        loss = loss_sum(model, batch["input_ids"][part], batch["labels"][part], batch["position_ids"][part])
        (loss / batch["count"]).backward()
        total += float(loss.detach())
        for master, weight in zip(masters, weights):
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None
    return total / batch["count"]

def loss_sum(model, input_ids, labels, position_ids):
    """Summed cross-entropy of the labels, each predicted from the position before it; logits exist in chunks only.

    With no attention mask and restarting position ids transformers masks every document from the others.
    """
    hidden = model.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    wanted = targets != IGNORE_INDEX
    return LinearCrossEntropy.apply(hidden[:, :-1][wanted], model.get_output_embeddings().weight, targets[wanted])

class LinearCrossEntropy(torch.autograd.Function):
    """Output projection and summed cross-entropy in one pass, in chunks, gradients formed in the forward pass.

    Only positions with a label come in, and (chunk, vocabulary) logits are the largest thing that ever exists. A
    probability below the smallest float32 (1e-38) is taken as that.
    """

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

def _update(optimizer, masters, weights, rate, clip):
    torch.nn.utils.clip_grad_norm_(masters, clip)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    _copy(masters, weights)

@torch.no_grad()
def _copy(masters, weights):
    torch._foreach_copy_(weights, masters)

# --- around the loop ---------------------------------------------------------------------------------------------------

def _base_model(base, tokenizer, seed):
    if isinstance(base, (str, Path)):
        model, own = load_model(base)
        return model, tokenizer or own
    if tokenizer is None:
        raise ValueError("a model with random weights needs a tokenizer: train(..., tokenizer=...)")
    return new_model(base, tokenizer, seed=seed).to(best_device()), tokenizer

def _resolve_precision(precision):
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}: choose auto, float32 or bfloat16")
    if precision == "auto":
        return "bfloat16" if torch.cuda.is_available() or CPU_HAS_BF16 else "float32"
    return precision

def matmul_peak(precision):
    """FLOP/s that MFU is measured against: 989e12 on an H100 or H200 (dense bf16), elsewhere this machine's measured rate."""
    if torch.cuda.is_available() and "H" in torch.cuda.get_device_name(0).split()[-1][:2]:
        return 989e12
    from lib.models import matmul_rate
    return matmul_rate(dtype=getattr(torch, precision))

def _flops_per_token(model, mixture):
    config, sequence = model.config.get_text_config(), next(iter(mixture.values()))[0].input_ids.shape[1]
    return training_flops_per_token(count_parameters(model), layers=config.num_hidden_layers, hidden_size=config.hidden_size,
                                    sequence_length=sequence, frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad))

def _log(folder, step, row, stage, progress):
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps({"step": step + 1} | {name: float(f"{value:.6g}") for name, value in row.items()}) + "\n")
    line = f"{stage.name} step {step + 1}/{stage.steps} loss {row['loss']:.3f} {row['tokens_per_second']:,.0f} tokens/s"
    if os.environ.get("PROGRESS_FILE"):
        with contextlib.suppress(OSError):
            Path(os.environ["PROGRESS_FILE"]).write_text(line)
    if step + 1 == stage.steps and progress:
        progress(line)

def _keep(folder, done, stage, model, tokenizer, masters, optimizer):
    if done in stage.keep_steps and done < stage.steps:
        _save_weights(folder / f"step-{done:06d}", model, tokenizer, masters)
    if done % stage.checkpoint_steps == 0 and done < stage.steps:
        _save_checkpoint(folder, done, masters, optimizer)

def _save_checkpoint(folder, done, masters, optimizer):
    """Masters and both moments, moved into place whole; a kill at any moment leaves this one or the one before."""
    tensors = {f"master.{i}": master.detach() for i, master in enumerate(masters)}
    for i, master in enumerate(masters):
        state = optimizer.state[master]
        tensors |= {f"mean.{i}": state["exp_avg"], f"square.{i}": state["exp_avg_sq"]}
    temporary, final = folder / "checkpoint.tmp.safetensors", folder / f"checkpoint-{done:06d}.safetensors"
    save_file(tensors, temporary, metadata={"step": str(done)})
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, final)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != final:
            old.unlink()

def _resume(folder, masters, optimizer):
    """Load the newest checkpoint into masters and optimizer; returns the number of steps that are done."""
    for torn in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        torn.unlink()
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    done = int(found[-1].stem.removeprefix("checkpoint-")) if found else 0
    if found:
        tensors = load_file(found[-1])
        for i, master in enumerate(masters):
            master.data.copy_(tensors[f"master.{i}"])
            moments = {"exp_avg": tensors[f"mean.{i}"], "exp_avg_sq": tensors[f"square.{i}"], "step": torch.tensor(float(done))}
            optimizer.state[master] = {name: tensor.to(master.device) for name, tensor in moments.items()}
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)[:done] if metrics.exists() else []
    write_atomically(metrics, "".join(lines))
    return done

def _save_weights(folder, model, tokenizer, masters):
    """The float32 weights as a Hugging Face model folder, of LoRA the adapter alone; moved into place whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    learned = (name for name, weight in model.named_parameters() if weight.requires_grad)
    model.save_pretrained(temporary, state_dict={name: master.detach() for name, master in zip(learned, masters, strict=True)})
    path = temporary / ("config.json" if (temporary / "config.json").exists() else "adapter_config.json")
    config = json.loads(path.read_text())
    if path.name == "config.json":
        config["dtype"] = "float32"  # as saved, not as computed
    elif Path(config["base_model_name_or_path"]).is_dir():  # so that runs/ can be moved
        config["base_model_name_or_path"] = os.path.relpath(config["base_model_name_or_path"], folder)
    write_atomically(path, json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, folder)

def _finish(folder, stage, model, tokenizer, masters):
    _save_weights(folder / "model", model, tokenizer, masters)
    write_atomically(folder / "done.json", json.dumps({"steps": stage.steps}) + "\n")
    for old in folder.glob("checkpoint*.safetensors"):
        old.unlink()

@contextlib.contextmanager
def _lock(folder):
    """Two notebooks that want the same stage train it once: the second waits."""
    with open(folder / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
