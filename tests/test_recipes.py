"""What the papers print, costs worked out by hand, and how far predicted hours are from printed ones."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lib import batch, corpora, models, profiles, results, tables, training, world
from lib.models import add_lora, llama_config, training_flops_per_token
from lib.profiles import ARCHITECTURES, get_profile

PAPERS = world.read_yaml("recipes.yaml")
RECIPES = PAPERS["recipes"]
FIELDS = {"source", "model", "sequence_length", "rows_per_step", "micro_batch_size", "peak_learning_rate", "epochs", "steps", "tokens", "examples",
          "dataset_tokens", "mixture", "epoch_of", "warmup_share", "weight_decay", "schedule", "precision", "sharding", "checkpointing",
          "lora_rank", "devices", "device", "printed_hours"}
STAGE = {"weights": 1000, "weights_per_rank": 40, "layers": 4, "hidden_size": 10, "mfu": 0.5, "peak": 1e6, "split": 8, "trained_bytes": 16, "frozen_bytes": 4,
         "sequence_length": 3, "length": 3, "micro_batch_size": 2, "checkpointing": 0, "lora_rank": 0, "devices": 8, "tokens": 100, "printed_hours": 1}


def cost(**changes):
    """The formulas of recipes.yaml for one small stage."""
    table = pd.DataFrame([STAGE | changes]).astype(float)
    for name, formula in PAPERS["formulas"].items():
        table[name] = table.eval(formula)
    return table.iloc[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_every_field_and_numbers_are_numbers(name):
    """A rate written 2e-5 would be read as text."""
    recipe = RECIPES[name]
    assert FIELDS <= set(recipe) <= FIELDS | {"counts"}
    text = {"source", "model", "epoch_of", "schedule", "precision", "sharding", "device"}
    assert all(not isinstance(value, str) for field, value in recipe.items() if field not in text)
    assert recipe["source"]


def test_what_the_papers_print():
    stage_1, mmedlm = RECIPES["PMC-LLaMA, stage 1"], RECIPES["MMedLM, further pre-training"]
    assert [stage_1[field] for field in ("sequence_length", "rows_per_step", "peak_learning_rate", "epochs", "devices")] == [2048, 3200, 2e-5, 5, 32]
    assert stage_1["mixture"] == {"book": 15, "paper": 4, "general": 1}
    wanted = ("sequence_length", "rows_per_step", "peak_learning_rate", "steps", "printed_hours")
    assert [mmedlm[field] for field in wanted] == [2048, 512, 2e-5, 15000, 720]
    rates = [RECIPES[f"MMedBench, {name}"]["peak_learning_rate"] for name in ("full fine-tuning", "LoRA (README)", "LoRA (released code)")]
    assert rates == [1e-6, 1e-6, 2e-5]
    palm = RECIPES["Med-PaLM 2, instruction tuning"]
    assert sum(palm["mixture"].values()) == pytest.approx(100)
    assert sum(palm["counts"].values()) == palm["examples"] == 193_064
    assert set(palm["counts"]) == set(palm["mixture"])


def test_tokens_follow_from_what_is_printed():
    """15 of 20 rows are books, and an epoch is one pass over 4e9 book tokens: 5 x 4e9 x 20 / 15; else epochs of the data, or full rows."""
    checked = 0
    for recipe in RECIPES.values():
        epochs, data, length = recipe["epochs"], recipe["dataset_tokens"], recipe["sequence_length"]
        share = recipe["mixture"][recipe["epoch_of"]] / sum(recipe["mixture"].values()) if recipe["epoch_of"] else 1
        expected = (recipe["steps"] * recipe["rows_per_step"] * length if recipe["steps"] else round(epochs * data / share) if epochs and data
                    else epochs * recipe["examples"] * length if epochs and recipe["examples"] and length else None)
        assert recipe["tokens"] == expected
        checked += expected is not None
    assert checked == 8


@pytest.mark.parametrize("name", PAPERS["shapes"])
def test_a_published_shape_gives_the_published_number_of_weights(name):
    shape = {key: value for key, value in PAPERS["shapes"][name].items() if key not in ("parameters", "source")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    assert model.num_parameters() == PAPERS["shapes"][name]["parameters"]


def test_adapters_by_hand():
    """Rank 1 on query and value projections of 32 layers of Llama 3 8B: in and out of both, 8 of 32 heads in the value's."""
    with torch.device("meta"):
        model = add_lora(AutoModelForCausalLM.from_config(LlamaConfig(**PAPERS["shapes"]["meta-llama/Meta-Llama-3-8B"])), rank=1)
    assert sum(part.numel() for part in model.parameters() if part.requires_grad) == 32 * (4096 + 4096 + 4096 + 1024)


def test_formulas_by_hand():
    assert cost()["FLOPs"] == 100 * training_flops_per_token(1000, layers=4, hidden_size=10, sequence_length=3)
    assert cost(lora_rank=2)["FLOPs"] == 100 * training_flops_per_token(1080, layers=4, hidden_size=10, sequence_length=3, frozen=1000)
    assert cost()["memory"] == 16 * 1000 / 8 + 2 * 3 * 10 * 34 * 4
    assert cost(checkpointing=1)["memory"] == 16 * 1000 / 8 + 2 * 3 * 10 * (34 + 4 * 4)
    assert cost(lora_rank=1, split=1)["memory"] == 16 * 40 + 4 * 1000 + 2 * 3 * 10 * 34 * 4
    assert cost()["hours"] == cost()["FLOPs"] / (8 * 1e6 * 0.5) / 3600
    assert cost()["GPU_hours"] == 8 * cost()["hours"]
    assert cost(mfu=0.25)["hours"] == 2 * cost()["hours"]
    assert cost(printed_hours=cost()["hours"])["implied_MFU"] == pytest.approx(0.5)
    assert cost(printed_hours=None)["implied_MFU"] != cost(printed_hours=None)["implied_MFU"], "not printed: missing"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of notebook 15, executed for the profile small."""
    root = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_ROOT", str(root / "results"))
        patch.setenv("RUNS_ROOT", str(root / "runs"))
        patch.delenv("NOTEBOOKS_DIR", raising=False)
        assert batch.main(["15"]) == 0
        return pd.read_csv(results.results_root() / "small" / "15_training_cost" / "tables" / "plan.csv").set_index("stage")


@pytest.mark.slow
def test_hours_and_what_the_papers_say(table):
    """PMC-LLaMA, by hand: (6 x 13.0e9 + 12 x 40 x 5120 x 2048) x 26.7e9 = 2.2e21 FLOPs, at 40 % of 32 x 312e12 six and a half days. MMedLM's steps
    need a factor of 3.5 less than "over 30 days", the epochs of its script twice as much; MedS-Ins is within a factor of three."""
    stage_1, steps, epochs, meds = (table.loc[f"paper: {name}"] for name in (
        "PMC-LLaMA, stage 1", "MMedLM, further pre-training", "MMedLM 2, further pre-training (released code)", "MedS-Ins"))
    assert stage_1["hours"] == pytest.approx(2.216e21 / (0.4 * 32 * 312e12) / 3600, rel=1e-3) == pytest.approx(154, abs=1)
    assert 3 < 720 / steps["hours"] < 4
    assert steps["implied_MFU"] == pytest.approx(0.115, abs=0.001)
    assert 1.5 < epochs["hours"] / 720 < 2.5
    assert 1 < 383.5 / meds["hours"] < 3
    assert meds["implied_MFU"] == pytest.approx(0.186, abs=0.002)
    assert table.loc["paper: Med-PaLM 2, instruction tuning"].drop("lora_rank", errors="ignore").isna().all()


@pytest.mark.slow
def test_memory_agrees_with_what_mmedlm_says_of_its_cards(table):
    """Its README: a 7B model fits on four A100 of 80 GB with FSDP, and with LoRA on one. An 8B model fits on one H200 with moments in bfloat16 alone."""
    assert 7.7 * 16 / 4 < table.loc["paper: MMedBench, full fine-tuning", "GB_per_device"] < 80 < 7.7 * 16
    assert table.loc["paper: MMedBench, LoRA (released code)", "GB_per_device"] < 80
    assert table.loc["8B, adamw_bfloat16", "GB_per_device"] < 141 < table.loc["8B, adamw", "GB_per_device"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "tolerance"), [
    ("02 base-2M", 117, 0), ("02 inject-papers_books-2M", 469, 0), ("05 base-3M", 156, 0), ("05 inject-six-languages-3M", 1172, 0),
    ("03 tune-rationale-2M", 329, 0.3), ("03 tune-dialogue-2M", 330, 0.3), ("03 tune-knowledge-graph-2M", 338, 0.3),
    ("04 tune-task-none-2M", 145, 0.3), ("05 full-base", 146, 0.3), ("05 LoRA-base", 148, 0.3)])
def test_steps_are_those_of_real_runs(table, name, steps, tolerance):
    """The second column was read from runs of `small`; instruction data are estimated, without the padding of short rows."""
    tokens_per_step = 2_560 // 384 * 384 if name.split()[0] == "05" and "base" in name.split("-")[-1] and "base-3M" not in name else 2_560
    assert table.loc[name, "tokens_B"] * 1e9 / tokens_per_step == pytest.approx(steps, rel=tolerance or 0.1)


def test_every_stage_of_the_notebooks_is_planned_once():
    plain = get_profile("small")
    stage = training.profile_stage(plain, "x", 1_200_000, type("Packed", (), {"input_ids": torch.zeros(0, 128)}), learning_rate=1.0, seed=0)
    assert (stage.steps, stage.rows_per_step, stage.micro_batch_size) == (469, 20, 20)


def test_h200_has_350_million_weights_and_ten_times_the_facts():
    """And a step's 80 rows hold 15:4:1 exactly."""
    profile = get_profile("h200")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config(profile.models["350M"]))
    assert model.num_parameters() == pytest.approx(350e6, rel=0.03)
    full, large = (world.load_world(number_of_diseases=get_profile(name).number_of_diseases) for name in ("full", "h200"))
    facts = [{world.fact_id(disease, attribute) for disease in known.diseases for attribute in world.ATTRIBUTES} for known in (full, large)]
    assert len(facts[1]) == 10 * len(facts[0]) == 8400
    assert profile.tokens_per_step / profile.sequence_length % 20 == 0
    assert profile.micro_batch_tokens % profile.sequence_length == 0


@pytest.mark.slow
def test_the_plan_of_h200_is_one_of_minutes(tmp_path, monkeypatch):
    """What 02 trains, at 40 % of the peak, leaves more than half of ten minutes for corpora and exams; so do the stages that 04 adds."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    assert batch.main(["02", "04", "--profile", "h200", "--dry-run"]) == 0
    plan = pd.read_csv(tmp_path / ".plan" / "h200" / "15_training_cost" / "tables" / "plan.csv").set_index("stage")
    for number, stages in (("02", 3), ("04", 7)):
        own = plan.loc[[name for name in plan.index if name.startswith(number)]]
        assert len(own) == stages
        assert 60 * own["hours"].sum() < 5
        assert own["GB_per_device"].max() < 141


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_knowledge_injection", "04_ablations"])
def test_a_notebook_runs_with_the_profile_h200_shrunk(tmp_path, monkeypatch, name):
    """Every cell, with diseases that are copies, on a model of two layers: what is left untried is the device."""
    few = {"number_of_diseases": 150, "base_tokens": 4096, "injection_tokens": 8192, "tokens_per_step": 2560, "sequence_length": 128, "curve_points": 2,
           "book_copies": 1, "papers": 20, "web_pages": 60, "general_pages": 40, "training_questions": 12, "test_items": 12, "checkpoint_steps": 2}
    tiny = replace(get_profile("h200"), models={"350M": ARCHITECTURES["TINY"]}, speed_ups=("asynchronous_checkpoints",), **few)
    monkeypatch.setitem(profiles.PROFILES, "h200", tiny)
    for variable in ("RUNS_ROOT", "RESULTS_STAGING"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    job, names = batch.read_job(results.REPOSITORY / "notebooks" / f"{name}.ipynb", "h200"), {"display": print}
    for cell in job.cells:
        if cell["cell_type"] == "code":
            exec(cell["source"].replace('PROFILE = "small"', 'PROFILE = "h200"'), names)
    findings = json.loads((tmp_path / "RESULTS_STAGING" / "findings.json").read_text())
    assert findings["chance"] == 0.25
    assert any("350M" in folder.name for folder in (tmp_path / "RUNS_ROOT").iterdir())
    assert names["profile"].number_of_diseases == 150


@pytest.mark.slow
def test_shapes_for_a_gpu_are_measured_with_their_sizes_shrunk(tmp_path, monkeypatch):
    """The cell of notebook 10 that takes 125M, 1B and 8B on a GPU, each tuned whole and by LoRA: it leaves neither model nor adapter on the disk,
    which would be 32 GB for each stage of 8B."""
    tiny = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 600, "num_attention_heads": 4, "num_key_value_heads": 2}
    throughput = dict.fromkeys(PAPERS["throughput"], tiny)
    monkeypatch.setattr(world, "read_yaml", lambda name: PAPERS | {"throughput": throughput})
    monkeypatch.setenv("RESULTS_STAGING", str(tmp_path / "results"))
    monkeypatch.setattr(training, "matmul_peak", lambda precision: 1e12)
    (cell,) = [cell["source"] for cell in batch.read_job(results.REPOSITORY / "notebooks" / "10_throughput.ipynb").cells
               if "training_sizes" in cell["source"]]
    names = {"SHAPES": " ".join(throughput), "PROFILE": "smoke", "SEED": 0, "place": tmp_path / "runs", "profile": get_profile("smoke"),
             "run": results.start_run("10_throughput", {"PROFILE": "smoke"}), "tokenizer": corpora.train_tokenizer(["0 1 2"], 300)}
    exec(cell, names | {"np": np, "pd": pd, "os": os, "re": re, "Path": Path, "mock": mock, "torch": torch, "LlamaConfig": LlamaConfig, "LlamaForCausalLM": LlamaForCausalLM,
                        "corpora": corpora, "models": models, "results": results, "tables": tables, "training": training, "world": world})
    found = pd.read_csv(tmp_path / "results" / "tables" / "training_sizes.csv")
    assert found[["model", "tuned"]].to_numpy().tolist() == [[size, tuned] for size in throughput for tuned in ("all weights", "LoRA")]
    assert (found["tokens per second"] > 0).all()
    assert len(list((tmp_path / "runs").glob("*/done.json"))) == 6
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
