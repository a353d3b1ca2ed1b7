"""Makes the language model and the text that ship with the package, from nothing but a Debian package.

Two steps, so that the second can run on another machine:

    python -m sae_service.demo.make_language_model text     # needs the Debian package bible-kjv
    python -m sae_service.demo.make_language_model model    # about 35 minutes on one CPU core

The first writes `text/train.jsonl.xz` and `text/test.jsonl.xz` (one chapter a document, every twentieth held
out, in a random order); the second trains a byte-level BPE and a GPT-2-shaped model on `train` and writes an ordinary Hugging Face
directory, `model/`, with a model card. Neither is used when the service runs.
"""

import argparse
import hashlib
import itertools
import json
import lzma
import math
import random
import re
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXT, MODEL = HERE / "text", HERE / "model"
SEPARATOR = "<|bos|>"
VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH = 2048, 128, 4, 4, 128
STEPS, ROWS, PEAK_LR, WARM_UP_STEPS, DROPOUT, SEED = 5000, 16, 5e-3, 200, 0.05, 0
HELD_OUT_EVERY, HELD_OUT_REMAINDER = 20, 7


def write_text() -> None:
    """Writes both splits: chapters of the King James Bible, verses separated by line feeds."""
    verses = subprocess.run(
        ["bible", "-f", "Gen1:1-Rev22:21"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    matches = [re.fullmatch(r"(\w+?)(\d+):(\d+) (.*)", verse) for verse in verses]
    parsed = [match.groups() for match in matches if match]
    if len(parsed) != 31102:
        raise SystemExit(f"expected 31102 verses, found {len(parsed)}")
    chapters = [
        {"id": f"{book} {chapter}", "text": "\n".join(verse for *_, verse in group)}
        for (book, chapter), group in itertools.groupby(parsed, key=lambda row: row[:2])
    ]
    TEXT.mkdir(exist_ok=True)
    held_out = [i % HELD_OUT_EVERY == HELD_OUT_REMAINDER for i in range(len(chapters))]
    for name, wanted in (("train", False), ("test", True)):
        rows = [c for c, is_held_out in zip(chapters, held_out, strict=True) if is_held_out == wanted]
        # A stream reads text in order: in the book's own, a short job would see Genesis and nothing else.
        random.Random(SEED).shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (TEXT / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines.encode(), preset=9))
        print(f"{name}: {len(rows)} chapters, {len(lines)} bytes")


def read_text(split: str) -> list[str]:
    with lzma.open(TEXT / f"{split}.jsonl.xz", "rt") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(documents: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, model_max_length=CONTEXT
    )


def pack(tokenizer: Any, documents: list[str]) -> Any:
    """Rows of CONTEXT tokens; each starts with the separator, which also stands between documents."""
    import torch

    separator = tokenizer.bos_token_id
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    flat = list(itertools.chain.from_iterable([separator, *ids] for ids in encoded))[1:]
    body = CONTEXT - 1
    rows = [[separator, *flat[i : i + body]] for i in range(0, len(flat) - body + 1, body)]
    return torch.tensor(rows)


def learning_rate(step: int) -> float:
    if step < WARM_UP_STEPS:
        return PEAK_LR * (step + 1) / WARM_UP_STEPS
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP_STEPS) / (STEPS - WARM_UP_STEPS)))


def mean_loss(model: Any, rows: Any, device: str) -> float:
    """Next-token loss in nats, averaged over every predicted position of `rows`."""
    import torch

    model.eval()
    with torch.inference_mode():
        losses = [model(part.to(device), labels=part.to(device)).loss.item() * len(part) for part in rows.split(64)]
    model.train()
    return sum(losses) / len(rows)


def unigram_loss(train: Any, test: Any) -> float:
    import torch

    counts = torch.bincount(train[:, 1:].flatten(), minlength=VOCABULARY).double() + 1
    log_probabilities = (counts / counts.sum()).log()
    return -log_probabilities[test[:, 1:]].mean().item()


def train_model(train: Any, test: Any, device: str) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=0, eos_token_id=0, attn_pdrop=DROPOUT, embd_pdrop=DROPOUT, resid_pdrop=DROPOUT,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    order = torch.Generator().manual_seed(SEED)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        batch = train[torch.randint(len(train), (ROWS,), generator=order)].to(device)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}: train {loss.item():.3f}  held out {mean_loss(model, test, device):.3f}", flush=True)
    return model.eval()


CARD = """---
license: cc0-1.0
language: en
---
# A small language model of the King James Bible

A GPT-2-shaped model ({layers} layers, d_model {width}, {heads} heads, vocabulary {vocabulary}, context {context}) with
{parameters:,} parameters, made to demonstrate and test sparse autoencoder training where no model hub can be reached.
It has no other use: it is far too small to answer questions or to write text worth reading.

| | |
|---|---|
| text | King James Version (1611), from the Debian package `bible-kjv-text`; its copyright has expired |
| split | one chapter a document; every twentieth chapter is held out ({test_rows} rows of {context} tokens) |
| training | {tokens:,} tokens: {steps} steps of {rows} rows, AdamW, peak learning rate {lr}, dropout {dropout}, seed {seed} |
| held-out loss | **{loss:.3f} nats per token** as stored (unigram: {unigram:.3f}) |
| made by | `python -m sae_service.demo.make_language_model` ({device}, torch {torch}) |
| licence | CC0 1.0: no rights are reserved in the weights, the tokenizer and the text |
| sha256 of `model.safetensors` | `{sha256}` |
"""


def write_model(device: str) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    documents = read_text("train")
    tokenizer = train_tokenizer(documents)
    train, test = pack(tokenizer, documents), pack(tokenizer, read_text("test"))
    print(f"train {tuple(train.shape)}  test {tuple(test.shape)}")
    train_model(train, test, device).half().save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    stored = GPT2LMHeadModel.from_pretrained(MODEL, dtype=torch.float32).to(device)
    card = CARD.format(
        layers=LAYERS, width=WIDTH, heads=HEADS, vocabulary=VOCABULARY, context=CONTEXT, steps=STEPS, rows=ROWS,
        parameters=stored.num_parameters(), test_rows=len(test), tokens=STEPS * ROWS * CONTEXT, lr=PEAK_LR,
        dropout=DROPOUT, seed=SEED, loss=mean_loss(stored, test, device), unigram=unigram_loss(train, test),
        device=torch.cuda.get_device_name() if device == "cuda" else "CPU", torch=torch.__version__,
        sha256=hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
    )  # fmt: skip
    (MODEL / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("text", "model"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    write_text() if arguments.step == "text" else write_model(arguments.device)
