"""Costs worked out by hand, the papers' own numbers, and how far predicted hours are from printed ones."""

import dataclasses
import json

import numpy as np
import pytest

from lib import recipes
from lib.profiles import ARCHITECTURES, get_profile
from lib.recipes import DEVICES, PAPERS, RECIPES, Shape, cost, memory_per_device, shape_of, stages, tokens_of, training_flops

FIELDS = {"source", "model", "sequence_length", "rows_per_step", "micro_batch_size", "peak_learning_rate", "epochs", "steps", "tokens", "examples",
          "dataset_tokens", "mixture", "epoch_of", "warmup_share", "weight_decay", "schedule", "precision", "sharding", "checkpointing",
          "lora_rank", "devices", "device", "hours"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_every_field_and_numbers_are_numbers(name):
    """A rate written 2e-5 would be read as text."""
    recipe = RECIPES[name]
    assert FIELDS <= set(recipe)
    assert set(recipe) - FIELDS <= {"hours_at_least", "counts"}
    text = {"source", "model", "epoch_of", "schedule", "precision", "sharding", "device"}
    assert all(not isinstance(value, str) for field, value in recipe.items() if field not in text)
    assert recipe["source"]


def test_what_the_papers_print():
    stage_1, mmedlm = RECIPES["PMC-LLaMA, stage 1"], RECIPES["MMedLM, further pre-training"]
    assert [stage_1[field] for field in ("sequence_length", "rows_per_step", "peak_learning_rate", "epochs", "devices")] == [2048, 3200, 2e-5, 5, 32]
    assert [mmedlm[field] for field in ("sequence_length", "rows_per_step", "peak_learning_rate", "steps", "hours")] == [2048, 512, 2e-5, 15000, 720]
    rates = [RECIPES[f"MMedBench, {name}"]["peak_learning_rate"] for name in ("full fine-tuning", "LoRA (README)", "LoRA (released code)")]
    assert rates == [1e-6, 1e-6, 2e-5]
    assert RECIPES["MMedBench, full fine-tuning"]["dataset_tokens"] == round(45_048 * (2 * (76.3 + 40.3) + 210.2))


def test_the_mixture_of_med_palm_2():
    recipe = RECIPES["Med-PaLM 2, instruction tuning"]
    assert sum(recipe["mixture"].values()) == pytest.approx(100)
    assert sum(recipe["counts"].values()) == recipe["examples"] == 193_064
    assert set(recipe["counts"]) == set(recipe["mixture"])
    with pytest.raises(ValueError, match="a size that is not published"):
        cost(recipe)


@pytest.mark.parametrize("name", PAPERS["shapes"])
def test_a_published_shape_gives_the_published_number_of_weights(name):
    assert shape_of(name).parameters == PAPERS["shapes"][name]["parameters"]


def test_shapes_of_architectures_and_local_folders(tmp_path):
    tiny = ARCHITECTURES["TWO_MILLION"]
    assert shape_of(tiny) == Shape(2_114_880, 3, 192, 4096)
    assert shape_of(Shape(7, 1, 2, 3)) == Shape(7, 1, 2, 3)
    config = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 4096, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert shape_of(str(tmp_path)) == Shape(2_114_880, 3, 192, 4096, 192)
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 768}))
    with pytest.raises(ValueError, match="no hidden_size, intermediate_size"):
        shape_of(str(tmp_path))
    with pytest.raises(ValueError, match="some/model: no shape"):
        shape_of("some/model")


def test_flops_are_those_of_training():
    """One formula in two modules: this one must not wait for torch."""
    from lib.models import training_flops_per_token
    shape = shape_of("meta-llama/Meta-Llama-3-8B")
    assert training_flops(shape, 10, 4096) == 10 * training_flops_per_token(8_030_261_248, layers=32, hidden_size=4096, sequence_length=4096)
    adapters = 32 * 16 * (4096 + 4096 + 4096 + 1024)  # query in and out, value in and out; 8 of 32 heads
    assert shape.lora_parameters(16) == adapters
    assert training_flops(shape, 1, 2048, 16) == training_flops_per_token(
        8_030_261_248 + adapters, layers=32, hidden_size=4096, sequence_length=2048, frozen=8_030_261_248)


def test_tokens_by_hand():
    """15 of 20 rows are books, and an epoch is one pass over 4e9 book tokens: 5 x 4e9 x 20 / 15."""
    assert tokens_of(RECIPES["PMC-LLaMA, stage 1"]) == (26_666_666_667, False)
    assert tokens_of(RECIPES["PMC-LLaMA, stage 2"]) == (606_000_000, False)
    assert tokens_of(RECIPES["MMedLM, further pre-training"]) == (15_000 * 512 * 2048, False)
    assert tokens_of(RECIPES["MedS-Ins"]) == (5 * 5_000_000 * 2048, True)
    assert tokens_of(RECIPES["MMedBench, LoRA (README)"]) == (None, False)


def test_memory_by_hand():
    shape = Shape(1000, 4, 10, 50)
    stage = RECIPES["PMC-LLaMA, stage 1"] | {"devices": 8, "micro_batch_size": 2, "sequence_length": 3}
    assert memory_per_device(shape, stage) == 16 * 1000 / 8 + 2 * 3 * 10 * (34 + 2 * 4)
    assert memory_per_device(shape, stage | {"checkpointing": False}) == 2000 + 2 * 3 * 10 * 34 * 4
    assert memory_per_device(shape, stage | {"sharding": "ddp", "precision": "masters"}) == 20 * 1000 + 2 * 3 * 10 * (34 + 2 * 4)
    adapters = 4 * 1 * 4 * 10  # layers x rank x (in and out of two projections)
    assert memory_per_device(shape, stage | {"sharding": "ddp", "lora_rank": 1}) == 16 * adapters + 4 * 1000 + 2 * 3 * 10 * (34 + 2 * 4)
    assert memory_per_device(shape, stage | {"sharding": None}) is None


def test_memory_agrees_with_what_mmedlm_says_of_its_cards():
    """Its README: 7B is too large for full fine-tuning on one A100 of 80 GB, fits on four with FSDP, and with LoRA on one."""
    shape, card = shape_of("internlm/internlm2-7b"), DEVICES["A100"]["memory"]
    full, lora = RECIPES["MMedBench, full fine-tuning"], RECIPES["MMedBench, LoRA (released code)"]
    assert memory_per_device(shape, full | {"devices": 1}) > card > memory_per_device(shape, full)
    assert memory_per_device(shape, lora) < card


def test_pmc_llama_stage_1_takes_days_on_32_a100():
    """No hours are printed. By hand: (6 x 13.0e9 + 12 x 40 x 5120 x 2048) x 26.7e9 = 2.2e21 FLOPs, at 40 % of 32 x 312e12 six and a half days."""
    found = cost(RECIPES["PMC-LLaMA, stage 1"])
    assert found["flops"] == pytest.approx(2.216e21, rel=1e-3)
    assert found["hours"] == pytest.approx(2.216e21 / (0.4 * 32 * 312e12) / 3600, rel=1e-3) == pytest.approx(154, abs=1)
    assert found["gpu_hours"] == pytest.approx(32 * found["hours"])
    assert found["implied_mfu"] is None


def test_mmedlm_does_not_fit_and_how():
    """15,000 iterations need 206 h at 40 %, a factor of 3.5 less than "over 30 days", which imply at most 11 % MFU. Three epochs of the released
    script would need 1,400 h, twice as long: the 30 days lie between the paper's steps and the script's epochs."""
    steps, epochs = cost(RECIPES["MMedLM, further pre-training"]), cost(RECIPES["MMedLM 2, further pre-training (released code)"])
    assert 3 < 720 / steps["hours"] < 4
    assert steps["implied_mfu"] == pytest.approx(0.115, abs=0.001)
    assert 1.5 < epochs["hours"] / 720 < 2.5
    assert epochs["implied_mfu"] > 0.7  # out of reach: they did not end within 30 days


def test_meds_ins_fits_within_a_factor_of_three():
    """Every row full: 178 h at 40 % against 383.5, at most 19 % MFU; the 13.5 million examples of the first version would be 50 %."""
    found = cost(RECIPES["MedS-Ins"])
    assert found["at_most"]
    assert 1 < 383.5 / found["hours"] < 3
    assert found["implied_mfu"] == pytest.approx(0.186, abs=0.002)
    assert cost(RECIPES["MedS-Ins"] | {"examples": 13_500_000})["implied_mfu"] == pytest.approx(0.503, abs=0.003)


def test_mfu_and_device_scale_the_hours():
    recipe = RECIPES["PMC-LLaMA, stage 1"]
    assert cost(recipe, mfu=0.2)["hours"] == pytest.approx(2 * cost(recipe)["hours"])
    assert cost(recipe | {"device": "H100"})["hours"] == pytest.approx(cost(recipe)["hours"] * 312 / 989)
    assert cost(RECIPES["PMC-LLaMA, stage 1 (released code)"])["hours"] is None  # it names no device


# ---- the stages of a profile ----

PLAIN = {"PROFILE": "small", "BASE_MODEL": "", "SEED": 0}


def names(notebook, **parameters):
    return [name for _, name in stages(notebook, PLAIN | parameters)]


def test_the_stages_are_named_as_the_notebooks_name_their_folders():
    assert names("02") == ["base-2M", "inject-papers_books-2M", "inject-no_general-2M"]
    assert names("02", DATA_DIR="data", SIZE="5M") == ["base-5M", "inject-public-5M", "inject-public_no_general-5M"]
    assert names("03") == ["base-2M", "inject-papers_books-2M", "tune-rationale-2M", "tune-dialogue-2M", "tune-knowledge-graph-2M",
                           "tune-fixed-wording-2M"]
    assert set(names("04")) == {
        "base-2M", "base-5M", "inject-papers-2M", "inject-papers_books-2M", "inject-papers_books-5M", "tune-task-none-2M", "tune-task-none-5M",
        "tune-task-papers-2M", "tune-task-papers_books-2M", "tune-task-papers_books-5M", "tune-rationale-2M", "tune-dialogue-2M",
        "tune-knowledge-graph-2M"}
    assert names("05") == ["base-3M", "LoRA-base", "full-base", "inject-English-corpus-3M", "LoRA-English-corpus", "full-English-corpus",
                           "inject-six-languages-3M", "LoRA-six-languages", "full-six-languages"]
    assert names("01") == names("10") == []


def test_a_pretrained_base_is_not_trained_and_seeds_repeat():
    assert names("04", PROFILE="full", BASE_MODEL="some/model", SEEDS=2) == 2 * names("04", PROFILE="full", SEEDS=1)
    assert "base-8B" not in names("04", PROFILE="full")


@pytest.mark.parametrize(("notebook", "name", "steps", "tolerance"), [
    ("02", "base-2M", 117, 0), ("02", "inject-papers_books-2M", 469, 0), ("05", "base-3M", 156, 0), ("05", "inject-six-languages-3M", 1172, 0),
    ("03", "tune-rationale-2M", 329, 0.3), ("03", "tune-dialogue-2M", 330, 0.3), ("03", "tune-knowledge-graph-2M", 338, 0.3),
    ("04", "tune-task-none-2M", 145, 0.3), ("05", "full-base", 146, 0.3), ("05", "LoRA-base", 148, 0.3)])
def test_steps_are_those_of_real_runs(notebook, name, steps, tolerance):
    """The second column was read from runs of `small`; instruction data are estimated, without the padding of short rows."""
    stage = {name: stage for (_, name), stage in stages(notebook, PLAIN).items()}[name]
    assert stage["steps"] == pytest.approx(steps, rel=tolerance or 1e-9)
    assert stage["lora_rank"] == (16 if name.startswith("LoRA") else 0)


def test_a_stage_is_what_the_loop_would_make_of_it():
    from lib.training import _stage
    full = get_profile("full")
    packed = type("Packed", (), {"input_ids": np.zeros((1, 2048))})
    loop = dataclasses.asdict(_stage(full, "inject", full.injection_tokens, packed, 1.0, 0))
    stage = {name: stage for (_, name), stage in stages("02", PLAIN | {"PROFILE": "full"}).items()}["inject-papers_books-8B"]
    assert {field: stage[field] for field in ("steps", "rows_per_step", "micro_batch_size")} == {
        field: loop[field] for field in ("steps", "rows_per_step", "micro_batch_size")}
    assert (stage["steps"], stage["rows_per_step"], stage["micro_batch_size"]) == (1526, 320, 4)


def test_an_8b_model_in_float32_does_not_fit_on_one_card():
    """20 bytes x 8.03e9 and 34 bytes x 32 layers x 8,192 tokens x 4,096: 160.6 + 36.5 GB."""
    stage = stages("02", PLAIN | {"PROFILE": "full"})[(False, False, 0), "inject-papers_books-8B"]
    assert cost(stage)["memory"] == pytest.approx(197.1e9, rel=1e-3)
    assert cost(stage)["memory"] > DEVICES["H200"]["memory"]
    assert recipes._cells("02", "a", stage, cost(stage))[6] == "197!"
