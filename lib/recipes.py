"""What training costs before it runs: tokens, FLOPs, memory and hours of the papers' recipes and of the stages of a profile."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.profiles import Architecture, get_profile
from lib.results import KNOWLEDGE

PAPERS = yaml.safe_load((KNOWLEDGE / "recipes.yaml").read_text(encoding="utf-8"))
RECIPES, DEVICES, ASSUMED = PAPERS["recipes"], PAPERS["devices"], PAPERS["assumed"]
ROWS = yaml.safe_load((KNOWLEDGE / "ablations.yaml").read_text(encoding="utf-8"))  # of notebook 04
COLUMNS = ("", "stage", "model", "parameters", "tokens", "FLOPs", "GB/device", "devices", "hours", "GPU-hours", "printed", "implied MFU")
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads")  # in a config.json

@dataclass(frozen=True)
class Shape:
    """What of a model its cost depends on."""
    parameters: int
    layers: int
    hidden_size: int
    vocabulary_size: int
    key_value_size: int = 0  # width of keys and of values; 0: the hidden size

    def lora_parameters(self, rank):
        """Weights of adapters on the query and value projections.
        >>> shape_of("huggyllama/llama-7b").lora_parameters(16)
        8388608"""
        return self.layers * rank * (3 * self.hidden_size + (self.key_value_size or self.hidden_size))

def shape_of(model):
    """The Shape of an Architecture, a name in recipes.yaml, a local folder (its config.json) or a Shape; ValueError says what is missing.
    >>> shape_of("meta-llama/Meta-Llama-3-8B").parameters
    8030261248"""
    if isinstance(model, Shape):
        return model
    if isinstance(model, Architecture):
        return Shape(model.parameters, model.layers, model.hidden_size, model.vocabulary_size)
    if model in PAPERS["shapes"]:
        return llama_shape(PAPERS["shapes"][model])
    if model is None or not (Path(model) / "config.json").is_file():
        raise ValueError(f"{model or 'a size that is not published'}: no shape in lib/knowledge/recipes.yaml and no local folder with a config.json")
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    config |= config.get("text_config") or {}
    if missing := [name for name in NEEDED if not config.get(name)]:
        raise ValueError(f"{model}: its config.json has no {', '.join(missing)}")
    more = {ours: config[name] for ours, name in (("key_value_heads", "num_key_value_heads"), ("head_dim", "head_dim")) if config.get(name)}
    return llama_shape(dict(zip(("hidden_size", "intermediate_size", "layers", "vocabulary_size", "heads"), map(config.get, NEEDED))) | more |
                       {"tied": config.get("tie_word_embeddings")})

def llama_shape(shape):
    """The Shape of a Llama-style model: embeddings in and out (once where tied), per layer attention, three feed-forward matrices and two norms."""
    width, heads = shape["hidden_size"], shape["heads"]
    head = shape.get("head_dim", width // heads)
    query, keys = heads * head, shape.get("key_value_heads", heads) * head
    block = 2 * width * (query + keys) + 3 * width * shape["intermediate_size"] + 2 * width + (query + 2 * keys + width) * shape.get("bias", False)
    embeddings = (1 if shape.get("tied") else 2) * shape["vocabulary_size"] * width
    return Shape(embeddings + shape["layers"] * block + width, shape["layers"], width, shape["vocabulary_size"], keys)

def tokens_of(recipe):
    """(tokens that are trained on, whether that is a limit): printed; steps of full rows; epochs of the data; epochs of full rows at most; or None.
    >>> tokens_of(RECIPES["MMedLM, further pre-training"]), tokens_of(RECIPES["MedS-Ins"])
    ((15728640000, False), (51200000000, True))"""
    epochs, length, mixture = (recipe[name] for name in ("epochs", "sequence_length", "mixture"))
    if recipe["tokens"] or recipe["steps"]:
        return recipe["tokens"] or recipe["steps"] * recipe["rows_per_step"] * length, False
    if epochs and recipe["dataset_tokens"]:
        share = mixture[recipe["epoch_of"]] / sum(mixture.values()) if recipe["epoch_of"] else 1
        return round(epochs * recipe["dataset_tokens"] / share), False
    return (epochs * recipe["examples"] * length, True) if epochs and recipe["examples"] and length else (None, False)

def training_flops(shape, tokens, sequence_length, lora_rank=0):
    """FLOPs of forward and backward pass: (6N + 12 L d S) a token, 2N less for frozen weights, as lib.models counts them; no recomputation.
    >>> f'{training_flops(shape_of("internlm/internlm-7b"), 15_728_640_000, 2048):.2e}'
    '7.42e+20'"""
    frozen = shape.parameters if lora_rank else 0
    parameters = shape.parameters + shape.lora_parameters(lora_rank)
    return (6 * parameters - 2 * frozen + 12 * shape.layers * shape.hidden_size * (sequence_length or 0)) * tokens

def memory_per_device(shape, stage):
    """Bytes on one device: weights, gradients and Adam moments in the stage's precision, divided by the devices under FSDP, plus activations.
    Of a micro-batch of b rows of S tokens: 34 b S d bytes a layer (Korthikanti et al. 2022, attention matrix never stored); with checkpointing
    2 b S d a layer and one layer whole. Logits, gathered weights and the allocator's losses come on top. None where sharding or length is."""
    if not stage["sharding"] or not stage["sequence_length"]:
        return None
    each, split = PAPERS["precisions"][stage["precision"] or "bfloat16"], stage["devices"] if stage["sharding"] == "fsdp" else 1
    trained = shape.lora_parameters(stage["lora_rank"]) if stage["lora_rank"] else shape.parameters
    kept = trained * (each["weight"] + each["gradient"] + each["moments"]) + shape.parameters * each["frozen"] * bool(stage["lora_rank"])
    numbers = (stage["micro_batch_size"] or 1) * stage["sequence_length"] * shape.hidden_size
    whole, thin = (1, shape.layers) if stage["checkpointing"] else (shape.layers, 0)
    return kept / split + numbers * (34 * whole + 2 * thin)

def cost(stage, *, mfu=ASSUMED["mfu"]):
    """Parameters, tokens, FLOPs, memory (bytes), hours and GPU-hours at that share of the device's peak, and the MFU that printed hours imply.
    stage: a recipe, or anything with its fields. What cannot be known is None. ValueError where the shape of the model is not known."""
    shape, (tokens, limit) = shape_of(stage["model"]), tokens_of(stage)
    flops = training_flops(shape, tokens, stage["sequence_length"], stage["lora_rank"]) if tokens else None
    peak = stage["devices"] * DEVICES[stage["device"]]["peak"] if stage["device"] else None
    seconds = flops / (peak * mfu) if flops and peak else None
    return {"parameters": shape.parameters, "tokens": tokens, "at_most": limit, "flops": flops, "memory": memory_per_device(shape, stage),
            "hours": seconds and seconds / 3600, "gpu_hours": seconds and seconds / 3600 * stage["devices"],
            "implied_mfu": flops / (peak * 3600 * stage["hours"]) if flops and peak and stage["hours"] else None}

def stages(notebook, parameters, device=ASSUMED["device"]):
    """{(what its data depends on, name): stage} that a notebook trains, in the fields of a recipe, parents first, as lib.ablations trains them."""
    found, data = {}, bool(parameters.get("DATA_DIR"))
    profile = get_profile(parameters["PROFILE"], six_languages=notebook == "05")
    own, more = PAPERS["tokens_per_question"], 4 if data else 1  # real questions are that much longer
    for seed in range(parameters["SEEDS"]) if "SEEDS" in parameters else [parameters["SEED"]]:
        for size, injection, tuning in _runs(notebook, profile, parameters.get("SIZE"), data):
            model, start = parameters["BASE_MODEL"] or profile.models[size], injection or ("base" if notebook == "05" else "none")
            name = {"task": f"tune-task-{start}-{size}", "LoRA": f"LoRA-{start}", "full": f"full-{start}"}.get(tuning, f"tune-{tuning}-{size}")
            learned = own.get("public " * data + (tuning or ""), 0) * profile.training_questions * profile.tuning_epochs
            steps = [(f"base-{size}", profile.base_tokens * (not isinstance(model, str)), profile.sequence_length),
                     (f"inject-{injection}-{size}", profile.injection_tokens * bool(injection), profile.sequence_length),
                     (name, learned, profile.tuning_length * more)]
            for name, tokens, length in steps:
                if tokens:
                    key = ((notebook == "05", data, seed), re.sub(r"[^\w.]+", "-", name))
                    found[key] = _stage(profile, model, tokens, length) | {"lora_rank": 16 * name.startswith("LoRA"), "device": device}
    return found

def _stage(profile, model, tokens, length):
    """As lib.training makes it of a profile: one device, no checkpointing of activations."""
    rows = max(1, profile.tokens_per_step // length)
    return dict.fromkeys(RECIPES["MedS-Ins"]) | {
        "model": model, "sequence_length": length, "rows_per_step": rows, "steps": max(1, round(tokens / (rows * length))), "precision": "masters",
        "micro_batch_size": min(rows, max(1, profile.micro_batch_tokens // length)), "sharding": "none", "checkpointing": False, "devices": 1}

def _runs(notebook, profile, size, data):
    """[(size, injection, tuning)] of a notebook; None where there is none of it."""
    if notebook == "04":
        sizes, mixtures = {"small": profile.sizes[0], "large": profile.sizes[-1]}, ROWS["public_injection"]
        return [(sizes[row["size"]], mixtures.get(row["injection"]) if data else row["injection"], row["tuning"])
                for row in ROWS["pmc_llama"] if not data or row["tuning"] == "task"]
    runs = PAPERS["notebooks"].get(notebook, {})
    return [(size or profile.sizes[0], *run) for run in runs.get("public" if data else "world", ())]

def dry_run(jobs, device=ASSUMED["device"], mfu=ASSUMED["mfu"]):
    """The table of all stages that the jobs would train, each once, and of the recipes; nothing is run. ValueError for an unknown device."""
    if device not in DEVICES or not 0 < mfu <= 1:
        raise ValueError(f"--device is one of {', '.join(DEVICES)}, --mfu above 0 and at most 1; not {device!r} and {mfu:g}")
    planned, rows, notes = {}, [], {}
    for number, parameters in ((job.name[:2], job.parameters) for job in jobs if "BASE_MODEL" in job.parameters):
        for key, stage in stages(number, parameters, device).items():
            planned.setdefault(key, (number, key[1] + f", seed {key[0][2]}" * bool(key[0][2]), stage))
    for source, name, stage in [*planned.values(), *(("paper", name, recipe) for name, recipe in RECIPES.items())]:
        try:
            found = cost(stage, mfu=mfu)
        except ValueError as error:  # the shape is not known: the tokens are
            found = dict(zip(("tokens", "at_most"), tokens_of(stage)))
            notes |= {f"Not computed: {error}": None} if stage["model"] else {}
        rows.append((source, name, stage, found))
    hours = [found["gpu_hours"] for source, *_, found in rows if source != "paper" and "gpu_hours" in found]
    return "\n".join([*_aligned([COLUMNS, *(_cells(*row) for row in rows)]), "", *notes,
                      f"{len(hours)} of {len(planned)} stages computed, each once: {_number(sum(hours))} GPU-hours on one {device}, training alone.",
                      PAPERS["legend"].format(mfu=mfu).rstrip()])

def _cells(source, name, stage, found):
    model = stage["model"] if isinstance(stage["model"], str) else "own" if stage["model"] else "-"
    memory, most = found.get("memory"), "<= " * bool(found["at_most"])
    full = "!" * bool(memory and stage["device"] and memory > DEVICES[stage["device"]]["memory"])
    implied = "<= " * bool(found["at_most"] or stage.get("hours_at_least")) + f"{found['implied_mfu']:.0%}" if found.get("implied_mfu") else "-"
    return (source, name, model, _number(found.get("parameters")), most + _number(found["tokens"]), _number(found.get("flops")),
            _number(memory and memory / 1e9) + full, f"{stage['devices'] or '-'} {stage['device'] or ''}", _number(found.get("hours")),
            _number(found.get("gpu_hours")), "over " * bool(stage.get("hours_at_least")) + _number(stage["hours"]), implied)

def _number(value):
    """Three digits, with M for 1e6 and B for 1e9, powers of ten above 1e12.
    >>> [_number(value) for value in (5.14e19, 8_030_261_248, 1_200_640, 3.21, 0.00012, 205.6, None)]
    ['5.14e+19', '8.03B', '1.20M', '3.21', '<0.01', '206', '-']"""
    if value is None or value > 1e12:
        return "-" if value is None else f"{value:.2e}"
    size, name = (1e9, "B") if value >= 1e9 else (1e6, "M") if value >= 1e6 else (1, "")
    value /= size
    return (f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 or not value else "<0.01") + name

def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
