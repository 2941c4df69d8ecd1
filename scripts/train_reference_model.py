"""Train the bundled reference model: a 2M-parameter Llama on the standard library.

    python scripts/train_reference_model.py --out spectrim/assets/reference

Everything it needs is on the machine that runs it: the text is the source code of the
running interpreter's standard library (split by file, see spectrim.data.python_sources),
the tokenizer is a byte-level BPE trained on the same split. A state file beside the
output lets an interrupted run continue.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from training_loop import Job, small_llama, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spectrim.data import python_sources

BOS, EOS = "<s>", "</s>"
VOCABULARY = 2048
CONTEXT = 512
WINDOW, BATCH = 256, 64
PEAK_LR, WARM_UP = 3e-3, 200


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model() -> LlamaForCausalLM:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    sizes = {"intermediate_size": 512, "max_position_embeddings": CONTEXT}
    return small_llama(VOCABULARY, 192, **heads, **sizes)


def token_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    rows = tokenizer(texts, verbose=False)["input_ids"]
    return torch.cat([torch.tensor(row, dtype=torch.int32) for row in rows])


def learning_rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_at(stream: torch.Tensor, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(stream) - WINDOW, (BATCH,), generator=generator)
    return torch.stack([stream[s : s + WINDOW] for s in starts.tolist()]).long()


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY).float(), tokens[:, 1:].reshape(-1)
    )


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: torch.Tensor, chunks: int = 400) -> float:
    rows = stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW).long()
    stride = max(1, len(rows) // chunks)
    losses = [loss_of(model, part).item() for part in rows[::stride].split(BATCH)]
    return math.exp(sum(losses) / len(losses))


def trained(
    stream: torch.Tensor, held_out: torch.Tensor, steps: int, state_file: Path
) -> tuple[LlamaForCausalLM, float]:
    """The model and the seconds it took."""
    torch.manual_seed(0)
    model = build_model()
    job = Job(
        steps,
        loss=lambda compiled, step: loss_of(compiled, batch_at(stream, step)),
        rate=lambda step: learning_rate(step, steps),
        check=lambda model: f"held-out perplexity {perplexity(model, held_out):.3f}",
    )
    return model, train(model, job, state_file)


def card(facts: dict[str, Any]) -> str:
    return f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Reference model of spectrim

A Llama with grouped-query attention, {facts["parameters"]:,} parameters (192 wide, 4 blocks, 6
heads with 2 key/value heads, tied embeddings, context {CONTEXT}) and a byte-level BPE
tokenizer of {VOCABULARY} tokens. It is there to be compressed in tests and demos; it completes
Python code badly.

- **Trained on** the {facts["training_text"]}: {facts["training_files"]:,} files,
  {facts["training_stream_tokens"]:,} tokens, by `scripts/train_reference_model.py`.
- **For** {facts["tokens_seen"]:,} tokens ({facts["tokens_seen"] / facts["parameters"]:.1f} per
  parameter), {facts["training_seconds"] / 60:.0f} minutes on a two-core machine.
- **Perplexity** on {facts["held_out_files"]} held-out files:
  {facts["held_out_perplexity"]} per token (chunks of {WINDOW}). A file is held out by a hash
  of its path, see `spectrim/data/python_sources.py`.
- **Stored in** {facts["dense_dtype"]}.

The text it was trained on is under the Python Software Foundation License.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_file = arguments.out.with_name(arguments.out.name + ".state.pt")

    train_texts = python_sources.documents("train")
    held_out_texts = python_sources.documents("held_out")
    tokenizer = train_tokenizer(train_texts)
    stream = token_stream(train_texts, tokenizer)
    held_out = token_stream(held_out_texts, tokenizer)
    print(f"{len(stream):,} training tokens, {len(held_out):,} held out", flush=True)

    model, seconds = trained(stream, held_out, arguments.steps, state_file)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    facts = {
        "parameters": model.num_parameters(),
        "training_text": f"standard library of Python {platform.python_version()}",
        "training_files": len(train_texts),
        "training_stream_tokens": len(stream),
        "tokens_seen": arguments.steps * WINDOW * BATCH,
        "training_seconds": round(seconds),
        "held_out_files": len(held_out_texts),
        "held_out_perplexity": round(perplexity(model.float(), held_out), 3),
        "dense_dtype": "bfloat16",
    }
    (arguments.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    (arguments.out / "README.md").write_text(card(facts))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
