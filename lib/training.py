"""One loop for continued pre-training and instruction tuning: packed rows in, a checkpoint folder out, resumable at any step."""
import contextlib
import functools
import gc
import hashlib
import json
import math
import os
import re
import shutil
import time
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
import numpy as np
import torch
from filelock import FileLock
from lib import distributed
from lib.corpora import IGNORE_INDEX, rows_of_step
from lib.models import (add_lora, best_device, decoder_arguments, load_model, loss_sum, matmul_peak, model_fingerprint, model_flops_per_token,
                        new_model, resolve_precision, speed_up)
from lib.profiles import fields_of
from lib.results import REPOSITORY, write_atomically
# Read once, when this code is loaded: an edit while a notebook runs must not rename its stages.
CODE = hashlib.sha256(b"".join((REPOSITORY / "lib" / name).read_bytes() for name in ("training.py", "models.py"))).hexdigest()[:16]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
# What makes training faster or smaller and leaves its losses and gradients as they are, within rounding.
SPEED_UPS = ("compile", "activation_checkpointing", "variable_length_attention", "unfused_attention", "asynchronous_checkpoints")

class Stage(make_dataclass("Settings", fields_of("stage"), frozen=True)):
    """What one training stage does; lib/knowledge/profiles.yaml explains its fields. Saved with the run, and hashed into its name."""
def runs_root():
    """The folder of all trained stages: $RUNS_ROOT, else <repository>/runs."""
    return Path(os.environ.get("RUNS_ROOT") or REPOSITORY / "runs").resolve()

def train(stage, mixture, *, base, tokenizer=None, progress=print, processes=None, sharding="fsdp", speed_ups=()):
    """Train one stage, or return it at once when it is complete; resumes exactly after a kill.
    mixture: {source: (Packed, weight)}; weights are whole numbers, the share of each source in every batch. base: the folder or name of the
    parent model, or an Architecture for random weights (then `tokenizer` is needed). processes: how many share the work, by default
    distributed.processes(); sharding: "fsdp" or "ddp"; speed_ups: of SPEED_UPS, less those in $SPEED_UPS_OFF. These three may change on the way.
    Returns the folder runs/<name>-<key>, which holds model/, metrics.jsonl, stage.json and, last of all, done.json."""
    stage = replace(stage, precision=resolve_precision(stage.precision))
    wanted = sorted({*speed_ups} - {*os.environ.get("SPEED_UPS_OFF", "").split()})
    if unknown := {*wanted} - {*SPEED_UPS} or {stage.optimizer} - {"adamw", "adamw_bfloat16"} or {sharding} - {*distributed.SHARDINGS}:
        raise ValueError(f"unknown: {', '.join(unknown)}; speed_ups are of {', '.join(SPEED_UPS)}, optimizer is adamw or adamw_bfloat16, "
                         f"sharding is {' or '.join(distributed.SHARDINGS)}")
    description = describe_stage(stage, mixture, base, tokenizer)
    folder = runs_root() / f"{stage.name}-{stage_key(description)}"
    if (folder / "done.json").exists():
        return folder
    with distributed.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # two notebooks that want the same stage train it once: the second waits
            if not (folder / "done.json").exists():  # another process may have finished it while we waited
                _describe(folder, description)
                gc.collect()  # what an earlier stage has left in cycles fills the device until then
                several, job, how = processes or distributed.processes(), (stage, mixture, base, tokenizer, folder), (sharding, wanted)
                _run(*job, *how) if several == 1 else distributed.launch(_run, (*job, *how), folder, processes=several)
                write_atomically(folder / "done.json", json.dumps({"steps": stage.steps}) + "\n")
                for old in folder.glob("checkpoint-*"):
                    shutil.rmtree(old)
                if progress:
                    progress("{name} step {step}/{steps} loss {loss:.3f} {tokens_per_second:,.0f} tokens/s".format(
                        **asdict(stage) | read_metrics(folder)[-1]))
    return folder
def _describe(folder, description):
    """Write stage.json, or refuse a folder that was begun with another one."""
    path = folder / "stage.json"
    known = json.loads(path.read_text()) if path.exists() else description
    if changed := [name for name in description if stage_key(known.get(name)) != stage_key(description[name])]:
        raise ValueError(f"{folder} was begun with another configuration ({', '.join(changed)}); remove it, or put its stage.json back")
    write_atomically(path, json.dumps(description, indent=2) + "\n")
def describe_stage(stage, mixture, base, tokenizer=None):
    """Everything that the weights depend on: settings, data, parent, tokenizer and the code of the loop."""
    parent = model_fingerprint(base) if isinstance(base, (str, Path)) else asdict(base)
    words = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:16] if tokenizer else None
    data = [[name, packed.fingerprint, weight] for name, (packed, weight) in mixture.items()]  # a list: their order matters
    return {"stage": asdict(stage), "data": data, "parent": parent, "tokenizer": words, "code": CODE}
def stage_key(description):
    """A short hash of a stage's description, whatever the order of its keys."""
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
    [0.1, 1.0, 1.0, 0.55, 0.1]"""
    warmup = max(1, round(stage.steps * stage.warmup_share))
    if step < warmup:
        return stage.peak_learning_rate * (step + 1) / warmup
    low, done = stage.final_learning_rate_share, (step - warmup) / max(1, stage.steps - warmup)
    return stage.peak_learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

# --- the stages of PMC-LLaMA at the size of a profile --------------------------------------------------------------------
def train_base(profile, size, prepared, *, seed=0, base_model=""):
    """The base model: general text only. A pretrained one, named here or by the profile, is taken as it is."""
    architecture = base_model or profile.models[size]
    if isinstance(architecture, str):
        return architecture
    rate = profile.base_learning_rate * architecture.learning_rate_scale
    stage = profile_stage(profile, f"base-{size}", profile.base_tokens, prepared.packed["general"], learning_rate=rate, seed=seed)
    return train(stage, {"general": (prepared.packed["general"], 1)}, base=architecture, tokenizer=prepared.tokenizer, speed_ups=profile.speed_ups)
def inject(profile, size, base, mixture, *, name, seed=0):
    """Continued pre-training (PMC-LLaMA stage 1, knowledge injection) on a mixture of corpora.mixed."""
    packed = next(iter(mixture.values()))[0]
    rate = profile.injection_learning_rate * getattr(profile.models.get(size), "learning_rate_scale", 1.0)
    stage = profile_stage(profile, f"inject-{name}-{size}", profile.injection_tokens, packed, learning_rate=rate, seed=seed)
    points = {round(stage.steps * (i + 1) / profile.curve_points) for i in range(profile.curve_points)}
    return train(replace(stage, keep_steps=tuple(sorted(points))), mixture, base=model_folder(base), speed_ups=profile.speed_ups)
def tune(profile, base, packed, *, name, seed=0, lora_rank=0):
    """Instruction tuning (PMC-LLaMA stage 2): whole passes over packed examples, only responses are learned.
    lora_rank: 0 tunes every weight, else LoRA adapters of that rank (MMedLM's parameter-efficient fine-tuning: 16)."""
    tokens = packed.input_ids.size * profile.tuning_epochs
    rate = profile.lora_learning_rate if lora_rank else profile.tuning_learning_rate
    stage = profile_stage(profile, re.sub(r"[^\w.]+", "-", name), tokens, packed, learning_rate=rate, seed=seed)
    return train(replace(stage, lora_rank=lora_rank), {"instructions": (packed, 1)}, base=model_folder(base), speed_ups=profile.speed_ups)
def model_folder(stage_folder):
    """The model of a stage folder; a hub name or a plain model folder is returned as it is."""
    inner = Path(stage_folder) / "model"
    return inner if inner.is_dir() else stage_folder
def profile_stage(profile, name, tokens, packed, *, learning_rate, seed):
    """A Stage of that many tokens, as large as a profile says."""
    length = packed.input_ids.shape[1]
    rows = max(1, profile.tokens_per_step // length)
    return Stage(name, steps=max(1, round(tokens / (rows * length))), rows_per_step=rows,
                 micro_batch_size=min(rows, max(1, profile.micro_batch_tokens // length)), peak_learning_rate=learning_rate,
                 seed=seed, checkpoint_steps=profile.checkpoint_steps, optimizer=profile.optimizer)

# --- the loop ----------------------------------------------------------------------------------------------------------
def _run(stage, mixture, base, tokenizer, folder, *how):
    (sharding, speed_ups), (rank, size) = how, distributed.world()
    with torch.device("meta") if rank else contextlib.nullcontext():  # one process reads the weights; `shard` gives the others their part
        model, tokenizer = _base_model(base, tokenizer, stage.seed)
        if "position_ids" not in decoder_arguments(model):
            raise ValueError(f"{type(model).__name__} takes no position ids: packed documents would see each other")
        if stage.lora_rank:
            model = add_lora(model, rank=stage.lora_rank, seed=stage.seed)
            model.peft_config["default"].base_model_name_or_path = str(base)
    flops, peak = model_flops_per_token(model, next(iter(mixture.values()))[0].input_ids.shape[1]), matmul_peak(stage.precision) * size
    layers = next(part for part in model.get_decoder().children() if isinstance(part, torch.nn.ModuleList))
    speed_up(model, layers, speed_ups, stage.precision)
    model.loss_sum = functools.partial(loss_sum, model)
    if size > 1:
        distributed.shard(model, layers, sharding)
    masters = [weight.detach().float().clone().requires_grad_() for weight in model.parameters() if weight.requires_grad]
    model.to(getattr(torch, stage.precision))  # in bfloat16 where the hardware is fast at it, while the optimizer works on float32 masters
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for master, weight in zip(masters, weights):
        weight.register_post_accumulate_grad_hook(functools.partial(_collect, master))
    optimizer = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, stage.beta2), weight_decay=stage.weight_decay, fused=True)
    first = _resume(folder, stage, masters, optimizer)
    _copy(masters, weights)
    model.train()
    with distributed.checkpoints(folder, asynchronous="asynchronous_checkpoints" in speed_ups) as save:
        for step in range(first, stage.steps):
            start = time.perf_counter()
            torch.manual_seed(stage.seed * 1_000_003 + step + rank * 10**12)  # dropout is a function of seed and step: a resumed run draws the same
            batch, rate = global_batch(step, stage, mixture, best_device()), learning_rate(step, stage)
            loss = _step(model, masters, batch, stage)
            _update(optimizer, masters, weights, rate, stage)
            seconds, tokens = time.perf_counter() - start, batch["input_ids"].numel()
            if not rank:
                _log(folder, step, {"tokens": tokens * (step + 1), "loss": loss, "learning_rate": rate,
                                    "tokens_per_second": tokens / seconds, "mfu": flops * tokens / seconds / peak}, stage)
            if step + 1 in stage.keep_steps and step + 1 < stage.steps:
                _save_weights(folder / f"step-{step + 1:06d}", model, tokenizer, masters)
            if (step + 1) % stage.checkpoint_steps == 0 and step + 1 < stage.steps:
                save(step + 1, _state(masters, optimizer))
    _save_weights(folder / "model", model, tokenizer, masters)

def global_batch(step, stage, mixture, device="cpu"):
    """input_ids, labels and position_ids of one step, each (rows, sequence), and the number of labels in it."""
    packed, weights = zip(*mixture.values())
    chosen = rows_of_step(step, stage.rows_per_step, weights=weights, sizes=tuple(len(data.input_ids) for data in packed), seed=stage.seed)
    batch = {name: torch.from_numpy(np.stack([getattr(packed[s], name)[row] for s, row in chosen])).long().to(device)
             for name in ("input_ids", "labels", "position_ids")}
    # Labels are counted over the whole step, so a long answer weighs as much as its tokens.
    return batch | {"count": max(1, int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()))}
def _step(model, masters, batch, stage):
    """Gradients of one global batch, accumulated in float32, of the rows of this process; returns the loss per label of all, in nats."""
    total, own = torch.zeros((), dtype=torch.float64, device=batch["labels"].device), distributed.own_rows(stage.rows_per_step)
    for start in range(0, len(own), stage.micro_batch_size):
        rows = own[start:start + stage.micro_batch_size]
        labels = torch.where(torch.tensor(rows, device=total.device)[:, None] < 0, IGNORE_INDEX, batch["labels"][rows])
        loss = model.loss_sum(batch["input_ids"][rows], labels, batch["position_ids"][rows])
        (loss / batch["count"]).backward()
        total += loss.detach()
    return float(distributed.summed(total)) / batch["count"]
def _collect(master, weight):
    """Add a gradient to its float32 sum as soon as it is there, and free it: those of the whole model never stand side by side in both precisions."""
    gradient = weight.grad.float()
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    weight.grad = None
def _update(optimizer, masters, weights, rate, stage):
    norm = float(distributed.whole(torch.nn.utils.clip_grad_norm_(masters, stage.gradient_clip)))
    if not math.isfinite(norm):
        raise FloatingPointError(f"{stage.name}: a gradient is {norm}, so this step is not taken; what was trained before is kept. "
                                 f"Lower peak_learning_rate ({stage.peak_learning_rate:g}), raise warmup_share, or take precision float32")
    optimizer.param_groups[0]["lr"] = rate
    if stage.optimizer == "adamw":
        optimizer.step()
    else:
        _lean_step(optimizer, masters)
    optimizer.zero_grad()
    _copy(masters, weights)
def _lean_step(optimizer, masters):
    """AdamW's step, weight by weight: the moments rest in bfloat16 and are float32 only while their own weight is updated."""
    gradients = [master.grad for master in masters]
    optimizer.zero_grad()
    for master, master.grad in zip(masters, gradients):
        state = optimizer.state[master]
        state |= {name: state[name].float() for name in MOMENTS if name in state}
        optimizer.step()  # of this one alone: the others have no gradient now
        state |= {name: state[name].bfloat16() for name in MOMENTS}
        master.grad = None
@torch.no_grad()
def _copy(masters, weights):
    for weight, master in zip(weights, masters):
        weight.copy_(master)

# --- around the loop ---------------------------------------------------------------------------------------------------
def _base_model(base, tokenizer, seed):
    if isinstance(base, (str, Path)):
        model, own = load_model(base)
        return model, tokenizer or own
    if tokenizer is None:
        raise ValueError("a model with random weights needs a tokenizer: train(..., tokenizer=...)")
    return new_model(base, tokenizer, seed=seed).to(best_device()), tokenizer
def _log(folder, step, row, stage):
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps({"step": step + 1} | {name: float(f"{value:.6g}") for name, value in row.items()}) + "\n")
    if os.environ.get("PROGRESS_FILE"):
        with contextlib.suppress(OSError):
            Path(os.environ["PROGRESS_FILE"]).write_text(f"{stage.name} step {step + 1}/{stage.steps} loss {row['loss']:.3f}")
def _state(masters, optimizer):
    """What a checkpoint holds: the masters and both moments of AdamW."""
    return {"master": {i: master.detach() for i, master in enumerate(masters)}} | {
        name: {i: optimizer.state[master][name] for i, master in enumerate(masters)} for name in MOMENTS}
def _resume(folder, stage, masters, optimizer):
    """Load the newest checkpoint into masters and optimizer; returns the number of steps that are done."""
    if done := distributed.last_checkpoint(folder):
        kind = torch.float32 if stage.optimizer == "adamw" else torch.bfloat16
        for master in masters:
            optimizer.state[master] = {"step": torch.tensor(float(done), device=master.device)} | {
                name: torch.zeros_like(master, dtype=kind, requires_grad=False) for name in MOMENTS}
        distributed.load_checkpoint(folder, done, _state(masters, optimizer))
    if not distributed.world()[0]:
        for torn in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            torn.unlink()
        metrics = folder / "metrics.jsonl"
        write_atomically(metrics, "".join(metrics.read_text().splitlines(keepends=True)[:done]) if metrics.exists() else "")
    return done
def _save_weights(folder, model, tokenizer, masters):
    """The float32 weights as a Hugging Face model folder, of LoRA the adapter alone; moved into place whole."""
    learned, state = (name for name, weight in model.named_parameters() if weight.requires_grad), {}
    for name, master in zip(learned, masters, strict=True):
        full = distributed.whole(master.detach())
        state |= {name: full.cpu()} if not distributed.world()[0] else {}
    if not state:
        return
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=state)
    path = temporary / ("config.json" if (temporary / "config.json").exists() else "adapter_config.json")
    config = json.loads(path.read_text())
    if path.name == "config.json":
        config["dtype"] = "float32"  # as saved, not as computed
    elif Path(config["base_model_name_or_path"]).is_dir():  # so that runs/ can be moved
        config["base_model_name_or_path"] = os.path.relpath(config["base_model_name_or_path"], folder)
    write_atomically(path, json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, folder)
