"""Batched answers and log-likelihoods of a causal language model on this machine."""
import copy
import itertools
import os
import re
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer
from lib.corpora import encode
from lib.models import decoder_arguments
LOGITS_CHUNK = 1024  # positions whose float32 logits exist at one time
CPU_TOKENS = 1024    # tokens read in one batch on a processor: more fall out of its cache (measured, 1.3x to 1.5x)
SHARED_TOKENS = 32   # a common beginning shorter than this is not worth a cache
STOP_EVERY = 8       # new tokens between two looks for a stop string: decoding costs more than a few tokens too many

@torch.inference_mode()
def option_loglikelihoods(model, tokenizer, requests, *, tokens_per_batch=None, prefix=""):
    """Log-probability of every option of every question, all options of a question in one row.
    requests: (context, [option, ...]) pairs of text; an option is tokenised on its own, as given (" metformin"). prefix: text before every
    context (few-shot cases); what all contexts begin with is read once. tokens_per_batch: 8192, on a processor 1024, if not given. Returns for
    each request an array (options, 2): summed log-probability in nats, number of tokens; as scoring each option alone (`loglikelihood` of
    lm-evaluation-harness). Raises ValueError for no option, an empty one, or a request beyond the model's context."""
    contexts, options = _encode_requests(model, tokenizer, requests, prefix)
    shared = len(os.path.commonprefix([context[:-1] for context in contexts]))  # the last token predicts: it stays
    shared = shared if shared >= SHARED_TOKENS else 0
    takes, config = decoder_arguments(model), model.config.get_text_config()
    dense = getattr(config, "sliding_window", None) is None and config._attn_implementation in ("sdpa", "eager")
    together = dense and "position_ids" in takes  # else (windows, flash attention, ALiBi) a row for each option
    rows = [(text[shared:], part) for text, own in zip(contexts, options, strict=True) for part in ([own] if together else [[one] for one in own])]
    lengths = [shared // 8 + len(context) + sum(map(len, part)) for context, part in rows]  # shared ones cost memory
    tokens_per_batch, sums = tokens_per_batch or (8192 if model.device.type == "cuda" else CPU_TOKENS), {}
    read = _read(model, torch.tensor([contexts[0][:shared]], device=model.device)) if shared else None
    for batch in _batches(lengths, tokens_per_batch):
        sums.update(zip(batch, _score_rows(model, [rows[i] for i in batch], read and read.past_key_values, shared), strict=True))
    flat = itertools.chain.from_iterable(sums[i] for i in range(len(rows)))
    return [np.array([(next(flat), len(option)) for option in own], dtype=float) for own in options]
def _encode_requests(model, tokenizer, requests, prefix):
    """Token ids of every context, prefix in front, and of every request's options; ValueError names a bad request."""
    contexts = _with_bos(tokenizer, [prefix + context for context, _ in requests])
    flat = iter(encode(tokenizer, [option for _, own in requests for option in own]))
    options = [[next(flat) for _ in own] for _, own in requests]
    for number, (context, own) in enumerate(zip(contexts, options, strict=True)):
        what = f"request {number} ({requests[number][0][:60]!r})"
        if not own or not all(own):
            raise ValueError(what + (f": option {own.index([])} is empty" if own else " has no options") + "; mend it")
        _check_length(model, what, len(context), max(map(len, own)) - 1)  # the last token is predicted, not read
    return contexts, options
def _layout(context, options):
    """Ids of a row (context, each option but its last token), their segments, and the places that predict the options.
    >>> _layout([1, 5, 6], [[7, 8], [9], [7, 4]])
    ([1, 5, 6, 7, 7], [0, 0, 0, 1, 3], [2, 3, 2, 2, 4])"""
    ids, segments, sources = list(context), [0] * len(context), []
    for number, option in enumerate(options, start=1):
        sources += [len(context) - 1, *range(len(ids), len(ids) + len(option) - 1)]
        segments += [number] * (len(option) - 1)
        ids += option[:-1]
    return ids, segments, sources
def _score_rows(model, rows, cache, shared):
    """Summed log-probabilities of each row's options, from one pass over right-padded (context, options) rows."""
    layouts, device = [_layout(context, options) for context, options in rows], model.device
    ids, segments = (_pad([layout[k] for layout in layouts], "right", device, fill=-k) for k in (0, 1))
    inputs = {}
    if any(len(set(layout[1])) > 2 for layout in layouts):  # two long options; else plain causal attention is right
        # (batch, sequence, sequence): a token sees the context and its own option, up to itself
        seen = ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])).tril()
        mask = torch.zeros_like(seen, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
        inputs = {"attention_mask": F.pad(mask, (shared, 0))[:, None], "position_ids": (seen.sum(-1) - 1 + shared) * (segments >= 0)}
    if cache is not None:
        cache = copy.deepcopy(cache)  # a forward pass appends to the cache it is given
        cache.batch_repeat_interleave(len(rows))
    hidden = model.get_decoder()(ids, past_key_values=cache, use_cache=cache is not None, **inputs).last_hidden_state
    places = [row * ids.shape[1] + source for row, layout in enumerate(layouts) for source in layout[2]]
    targets = [token for _, options in rows for option in options for token in option]
    places, targets = torch.tensor(places, device=device), torch.tensor(targets, device=device)
    head, needed = model.get_output_embeddings(), hidden.flatten(0, 1)[places].split(LOGITS_CHUNK)  # float32 logits exist in chunks only
    parts = [-F.cross_entropy(head(part).float(), target, reduction="none") for part, target in zip(needed, targets.split(LOGITS_CHUNK))]
    values = iter(torch.cat(parts).tolist())
    return [[sum(next(values) for _ in option) for option in options] for _, options in rows]
@torch.inference_mode()
def generate(model, tokenizer, prompts, *, max_new_tokens, tokens_per_batch=8192, temperature=0.0, samples=1, seed=0, stop=(), done=None):
    """The text that follows each prompt: greedy, or sampled at a temperature above 0.
    A text ends at an end-of-sequence token, before the first of the `stop` strings, or after max_new_tokens. With samples > 1 a prompt is read
    once and continued that often. What is drawn depends on seed, prompt and number of the sample alone, not on the batch. Returns a list of texts
    or, with samples > 1, of lists of texts; done(number of the prompt, its text or texts) is called as soon as they are there. Raises ValueError
    for a prompt that exceeds the model's context together with the new tokens."""
    if samples > 1 and temperature <= 0:
        raise ValueError(f"{samples} samples at temperature 0 would all be the same: set a temperature above 0")
    encoded = _with_bos(tokenizer, prompts)
    for number, ids in enumerate(encoded):
        _check_length(model, f"prompt {number} ({prompts[number][:60]!r})", len(ids), max_new_tokens)
    stops = re.compile("|".join(map(re.escape, [stop] if isinstance(stop, str) else stop))) if stop else None
    ends, texts = model.generation_config.eos_token_id, [None] * len(prompts)
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    def finished(tokens):
        due = stops and len(tokens) % STOP_EVERY == 0
        return (tokens[-1] in ends or len(tokens) >= max_new_tokens or bool(due and stops.search(tokenizer.decode(tokens, skip_special_tokens=True))))
    model.eval()
    for batch in _batches([samples * (len(ids) + max_new_tokens) for ids in encoded], tokens_per_batch):
        keys = [f"{seed} {number} {prompts[i]}".encode() for i in batch for number in range(samples)]
        uniform = np.stack([np.random.default_rng(list(key)).random(max_new_tokens) for key in keys])
        tokens = _continue(model, [encoded[i] for i in batch], uniform, temperature=temperature, finished=finished)
        decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        found = [stops.split(text, 1)[0] if stops else text for text in decoded]
        for place, i in enumerate(batch):
            texts[i] = found[place] if samples == 1 else found[place * samples:(place + 1) * samples]
            if done:
                done(i, texts[i])
    return texts
def _continue(model, prompts, uniform, *, temperature, finished):
    """New token ids of each row (samples of the first prompt, of the second, ...); a finished row leaves the batch."""
    samples = len(uniform) // len(prompts)
    mask = _pad([[1] * len(prompt) for prompt in prompts], "left", model.device)
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    logits = _read(model, _pad(prompts, "left", model.device), mask, cache).logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    mask = mask.repeat_interleave(samples, 0)
    rows, written = list(range(len(mask))), [[] for _ in range(len(mask))]
    while True:
        token = _choose(logits, temperature, uniform[rows, len(written[rows[0]])])
        for row, value in zip(rows, token.tolist(), strict=True):
            written[row].append(value)
        going = [place for place, row in enumerate(rows) if not finished(written[row])]
        if not going:
            return written
        if len(going) < len(rows):
            rows, keep = [rows[place] for place in going], torch.tensor(going, device=model.device)
            token, mask = token[keep], mask[keep]
            cache.batch_select_indices(keep)
        mask = F.pad(mask, (0, 1), value=1)
        logits = _read(model, token[:, None], mask, cache).logits[:, -1]

class GrowingLayer(DynamicLayer):
    """Keys and values with spare room: a new token is written, where DynamicLayer copies all the old ones with it."""
    room = None
    def update(self, key_states, value_states, *args, **kwargs):
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if not start:
            return super().update(key_states, value_states)
        if self.room is None or len(self.room[0]) != len(self.keys) or self.room[0].shape[-2] < end:
            self.room = [F.pad(old, (0, 0, 0, end - start + 64)) for old in (self.keys, self.values)]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values
def _choose(logits, temperature, uniform):
    """The next token of each row (rows, vocabulary): the best, or drawn with one uniform number a row."""
    if temperature <= 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)  # a float32 sum over 128k tokens is rough
    level = torch.from_numpy(uniform).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
def _read(model, ids, mask=None, cache=None):
    """A pass that fills the cache, with logits (batch, 1, vocabulary) after the last token; padding is on the left."""
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1]:]
    return model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
def _pad(rows, side, device, fill=0):
    return pad_sequence([torch.tensor(row) for row in rows], True, fill, side).to(device)
def _with_bos(tokenizer, texts):
    """Token ids of each text with one beginning-of-sequence token in front, where the tokenizer has one."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [ids if bos and ids[:1] == bos else bos + ids for ids in encode(tokenizer, texts)]
def _batches(lengths, tokens_per_batch):
    """Numbers of the rows of each batch, longest first; rows x longest is at most tokens_per_batch, or it is one row.
    >>> list(_batches([3, 9, 4, 5, 20], 10))
    [[4], [1], [3, 2], [0]]"""
    order, done = sorted(range(len(lengths)), key=lambda i: -lengths[i]), 0
    while done < len(order):
        batch = order[done:done + max(1, tokens_per_batch // lengths[order[done]])]
        yield batch
        done += len(batch)
def _check_length(model, what, length, more):
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not length:
        raise ValueError(f"{what} is empty and the tokenizer has no beginning-of-sequence token: nothing to start from")
    if limit and length + more > limit:
        raise ValueError(f"{what}: {length} tokens and {more} more exceed the model's context of {limit}; shorten it")
