"""Batched scoring and generation give what one question at a time, with full logits and no cache, gives."""

import numpy as np
import pytest
import torch
from transformers import (BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel,
                          LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM)

from lib.corpora import encode, pack_documents, train_tokenizer
from lib.generation import SHARED_TOKENS, _choose, generate, option_loglikelihoods
from lib.models import add_lora

TEXTS = ["Metformin is the first-line drug for type 2 diabetes.", "Warfarin must not be given in pregnancy.",
         "The hallmark of gout is a swollen red big toe.", "Which drug treats gout? Colchicine, allopurinol or warfarin?"]
REQUESTS = [("Which drug treats gout?", [" colchicine", " warfarin", " a", " metformin and warfarin"]),
            ("The hallmark of gout is a swollen red big toe. What is the drug? Answer:", ["a", "b", "c", "d"]),
            ("", [" Warfarin must not be given in pregnancy.", " x"]),
            ("Type 2 diabetes. The first-line drug is", [" metformin"]),
            ("In pregnancy", [" warfarin must not be given", " metformin", " the big toe is swollen and red"]),
            ("Answer with a letter:", ["a", "b", "c", "d", "e"])]
PREFIX = "Question: which drug is for diabetes?\nAnswer: metformin.\n\nQuestion: which is for gout?\nAnswer: allopurinol.\n\n"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "vocab_size": 400, "max_position_embeddings": 160, "initializer_range": 0.3,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def new(kind, config, **changes):
    torch.manual_seed(0)
    return kind(config(**{**SMALL, **changes})).eval()


@pytest.fixture(scope="module")
def model():
    return new(LlamaForCausalLM, LlamaConfig)


def alone(model, tokenizer, context, option):
    """One option: full logits of bos + context + option, then the option's own tokens; a loop that cannot leak."""
    before, own = encode(tokenizer, [context])[0], encode(tokenizer, [option])[0]
    with torch.no_grad():
        chances = model(torch.tensor([[1, *before, *own]])).logits[0].double().log_softmax(-1)
    return sum(chances[len(before) + i, token].item() for i, token in enumerate(own)), len(own)


def assert_as_alone(scores, model, tokenizer, prefix=""):
    assert [len(score) for score in scores] == [len(options) for _, options in REQUESTS]
    for (context, options), score in zip(REQUESTS, scores, strict=True):
        expected = [alone(model, tokenizer, prefix + context, option) for option in options]
        np.testing.assert_allclose(score, expected, atol=1e-4, rtol=0)


# --- log-likelihoods -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens_per_batch", [1, 60, 8192])
def test_options_score_as_each_option_alone(model, tokenizer, tokens_per_batch):
    scores = option_loglikelihoods(model, tokenizer, REQUESTS, tokens_per_batch=tokens_per_batch)
    assert_as_alone(scores, model, tokenizer)
    everything = np.concatenate(scores)
    assert {1, 5} <= set(everything[:, 1])        # the test saw options of one token and of several
    assert np.ptp(everything[:, 0] / everything[:, 1]) > 1  # and scores that differ


@pytest.mark.parametrize(("kind", "config", "changes"), [
    (LlamaForCausalLM, LlamaConfig, {"attn_implementation": "eager", "num_key_value_heads": 1}),
    (MistralForCausalLM, MistralConfig, {"sliding_window": 6, "num_key_value_heads": 1}),
    (BloomForCausalLM, BloomConfig, {"n_layer": 2, "n_head": 2}),
    (GPT2LMHeadModel, GPT2Config, {}),
], ids=["grouped queries, eager", "sliding window", "ALiBi", "learned positions"])
def test_other_architectures_score_as_each_option_alone(tokenizer, kind, config, changes):
    """A shared row is wrong under a sliding window and impossible with ALiBi: those models get a row for each option."""
    other = new(kind, config, **changes)
    assert_as_alone(option_loglikelihoods(other, tokenizer, REQUESTS), other, tokenizer)
    assert_as_alone(option_loglikelihoods(other, tokenizer, REQUESTS, prefix=PREFIX), other, tokenizer, PREFIX)
    prompts = [context for context, _ in REQUESTS]
    assert generate(other, tokenizer, prompts, max_new_tokens=9) == [slow_text(other, tokenizer, p, 9) for p in prompts]


@pytest.mark.parametrize("tokens_per_batch", [1, 8192])
def test_a_shared_prefix_scores_as_text_in_front(model, tokenizer, tokens_per_batch):
    scores = option_loglikelihoods(model, tokenizer, REQUESTS, prefix=PREFIX, tokens_per_batch=tokens_per_batch)
    assert_as_alone(scores, model, tokenizer, PREFIX)
    assert len(encode(tokenizer, [PREFIX])[0]) > SHARED_TOKENS  # so it was computed once
    without = option_loglikelihoods(model, tokenizer, REQUESTS)
    assert max(abs(a[0, 0] - b[0, 0]) for a, b in zip(scores, without, strict=True)) > 0.1  # the prefix was read


def test_a_row_may_be_longer_than_the_context_when_no_option_is(tokenizer):
    """The options of a row share positions, so ten of 30 tokens fit into a context of 160; padding has no place beyond."""
    learned = new(GPT2LMHeadModel, GPT2Config)
    options = [f" {letter} swollen red big toe in pregnancy" * 3 for letter in "abcdefghij"]
    scores, _ = option_loglikelihoods(learned, tokenizer, [("Which?", options), ("", [" a", " toe"])], tokens_per_batch=2000)
    assert scores[:, 1].sum() > 160
    np.testing.assert_allclose(scores, [alone(learned, tokenizer, "Which?", option) for option in options], atol=1e-4)


def test_lora_and_bfloat16(model, tokenizer):
    adapted = add_lora(new(LlamaForCausalLM, LlamaConfig)).bfloat16()
    for score, reference in zip(option_loglikelihoods(adapted, tokenizer, REQUESTS),
                                option_loglikelihoods(model, tokenizer, REQUESTS), strict=True):
        np.testing.assert_allclose(score[:, 0], reference[:, 0], rtol=0.1, atol=0.5)
    assert len(generate(adapted, tokenizer, ["gout"], max_new_tokens=3)) == 1


def test_bad_requests_are_named(model, tokenizer):
    good = ("Which?", [" a"])
    for bad, message in ((("Which drug?", [" a", ""]), r"request 1 \('Which drug\?'\): option 1 is empty"),
                         (("Which drug?", []), r"request 1 \('Which drug\?'\) has no options"),
                         (("gout " * 200, [" a"]), r"request 1 \('gout gout .*context of 160")):
        with pytest.raises(ValueError, match=message):
            option_loglikelihoods(model, tokenizer, [good, bad])
    assert option_loglikelihoods(model, tokenizer, []) == []


def test_the_longest_request_that_fits(model, tokenizer):
    """The last token is predicted and not read: 160 tokens with bos are read, one more is refused."""
    piece, = encode(tokenizer, [" a"])
    assert len(piece) == 1
    context = " a" * 157
    scores, = option_loglikelihoods(model, tokenizer, [(context, [" a a a"])])  # 1 + 157 + 2 read
    assert scores[0, 1] == 3
    with pytest.raises(ValueError, match="158 tokens and 3 more"):
        option_loglikelihoods(model, tokenizer, [(context, [" a a a a"])])


def test_bos_is_never_doubled(model, tokenizer):
    plain, = option_loglikelihoods(model, tokenizer, [("gout", [" toe"])])
    given, = option_loglikelihoods(model, tokenizer, [("<s>gout", [" toe"])])
    np.testing.assert_allclose(plain, given, atol=1e-6)


def test_a_model_that_caps_its_logits_is_refused(tokenizer):
    capped = new(Gemma2ForCausalLM, Gemma2Config, head_dim=16, num_key_value_heads=1, final_logit_softcapping=0.5,
                 attn_implementation="eager")
    with pytest.raises(ValueError, match="changes the logits"):
        option_loglikelihoods(capped, tokenizer, REQUESTS)


# --- generation ------------------------------------------------------------------------------------------------------

def slow_tokens(model, prompt_ids, count, pick):
    """One prompt, no cache: the whole text is read again for every new token."""
    ids = list(prompt_ids)
    for step in range(count):
        with torch.no_grad():
            ids.append(pick(model(torch.tensor([ids])).logits[0, -1], step))
        if ids[-1] == model.generation_config.eos_token_id:
            break
    return ids[len(prompt_ids):]


def best(logits, step):
    return int(logits.argmax())


def slow_text(model, tokenizer, prompt, count, pick=best):
    ids = slow_tokens(model, [1, *encode(tokenizer, [prompt])[0]], count, pick)
    return tokenizer.decode(ids, skip_special_tokens=True)


PROMPTS = [context for context, _ in REQUESTS] + TEXTS


@pytest.fixture
def ending(model):
    """The model with an end-of-sequence token that it really says, so that answers end at different lengths."""
    said = [token for word in range(40, 48) for token in slow_tokens(model, [1, word], 12, best)[2:]]
    usual = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = max(set(said), key=said.count)
    yield model
    model.generation_config.eos_token_id = usual


@pytest.mark.parametrize("tokens_per_batch", [1, 120, 8192])
def test_greedy_text_is_that_of_one_prompt_at_a_time(ending, tokenizer, tokens_per_batch):
    expected = [slow_text(ending, tokenizer, prompt, 20) for prompt in PROMPTS]
    assert generate(ending, tokenizer, PROMPTS, max_new_tokens=20, tokens_per_batch=tokens_per_batch) == expected
    lengths = {len(encode(tokenizer, [text])[0]) for text in expected}
    assert len(set(expected)) > 4  # the test saw texts that differ
    assert len(lengths) > 2        # and rows that left the batch early


def test_greedy_text_is_that_of_transformers(model, tokenizer):
    """More tokens than the growing cache has spare room for at first."""
    ids = torch.tensor([[1, *encode(tokenizer, [PROMPTS[0]])[0]]])
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)[0]
    expected = tokenizer.decode(theirs[ids.shape[1]:], skip_special_tokens=True)
    assert theirs.shape[0] == ids.shape[1] + 80
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=80)[0] == expected


def test_stop_strings_cut_the_text_and_end_it(model, tokenizer):
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=30)
    stop = [whole[0][12:14], "never said"]
    stopped = generate(model, tokenizer, PROMPTS, max_new_tokens=30, stop=stop)
    assert stopped == [text[:text.find(stop[0])] if stop[0] in text else text for text in whole]
    assert stopped[0] != whole[0]
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=30, stop=stop[0]) == stopped


def test_samples_are_drawn_by_prompt_and_not_by_batch(ending, tokenizer):
    """Against a loop without cache that draws with the same numbers; then alone, in another order, with another seed."""
    settings = {"max_new_tokens": 12, "temperature": 0.8, "seed": 3}
    answers = generate(ending, tokenizer, PROMPTS, samples=3, **settings)

    def slow(prompt, number):
        uniform = np.random.default_rng(list(f"3 {number} {prompt}".encode())).random(12)

        def draw(logits, step):
            cumulative = np.cumsum(torch.softmax(logits.double() / 0.8, -1).numpy())
            return int(np.searchsorted(cumulative, uniform[step], side="right"))
        return slow_text(ending, tokenizer, prompt, 12, draw)
    assert answers == [[slow(prompt, number) for number in range(3)] for prompt in PROMPTS]
    assert generate(ending, tokenizer, PROMPTS[::-1], samples=3, tokens_per_batch=1, **settings) == answers[::-1]
    assert generate(ending, tokenizer, PROMPTS[2:4], **settings) == [answers[2][0], answers[3][0]]
    assert generate(ending, tokenizer, PROMPTS, samples=3, **{**settings, "seed": 4}) != answers
    assert len(set(answers[0])) > 1


def test_tokens_are_drawn_as_often_as_their_probability():
    logits, count = torch.tensor([0.5, -1.0, -torch.inf, 2.0]), 1000
    drawn = _choose(logits.expand(count, 4), 0.7, (np.arange(count) + 0.5) / count)
    shares = np.bincount(drawn.numpy(), minlength=4) / count
    np.testing.assert_allclose(shares, torch.softmax(logits / 0.7, -1), atol=2 / count)


def test_generation_refuses_what_makes_no_sense(model, tokenizer):
    with pytest.raises(ValueError, match="3 samples at temperature 0"):
        generate(model, tokenizer, ["gout"], max_new_tokens=4, samples=3)
    with pytest.raises(ValueError, match=r"prompt 1 \('gout.*context of 160"):
        generate(model, tokenizer, ["gout", "gout " * 60], max_new_tokens=100)
    assert generate(model, tokenizer, [], max_new_tokens=4) == []


# --- all three -------------------------------------------------------------------------------------------------------

def test_what_was_learned_is_said_preferred_and_expected():
    """After learning the alphabet, "d" follows "c" in all three functions; a label shifted by one fails here."""
    letters = "a b c d e f g h i j k l"
    tokenizer = train_tokenizer([letters], 300)
    documents = encode(tokenizer, [letters[start:] for start in range(0, 20, 2)])
    packed = pack_documents(documents, 26, bos=1, eos=2)
    model = new(LlamaForCausalLM, LlamaConfig, initializer_range=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, labels, positions = (torch.tensor(x).long() for x in (packed.input_ids, packed.labels, packed.position_ids))
    for _ in range(60):
        model(ids, labels=labels, position_ids=positions, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert generate(model, tokenizer, ["a b c"], max_new_tokens=20) == [" d e f g h i j k l"]
    scores, = option_loglikelihoods(model, tokenizer, [("a b c", [" c", " d", " e", " d e", " d f"])])
    assert scores[:, 0].argmax() in (1, 3)
    assert scores[3, 0] > scores[4, 0] + 2
