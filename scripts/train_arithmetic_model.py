"""Train the bundled arithmetic model: a 0.9M-parameter Llama that solves word problems.

    python scripts/train_arithmetic_model.py --out spectrim/assets/arithmetic

Every batch is freshly generated (spectrim.data.tasks.word_problems, split `train`); the figures
are exact matches by greedy decoding on problems whose templates and numbers it never saw.
A state file beside the output lets an interrupted run continue; `--start` takes weights
trained before and adds the last phase, with smoothed labels, alone.
"""

from __future__ import annotations

import argparse
import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from training_loop import Job, small_llama, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spectrim.data.tasks import TaskRows, task_rows
from spectrim.data.tasks.word_problems import SPLITS, word_problems
from spectrim.evaluation.tasks.accuracy import AccuracySettings, exact_match

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
PIECES = r" [+\-*/=] |#### |\n|\d| ?[A-Za-z]+(?: (?=\d))?|[^\w\s]|\s"
"""Words with the spaces around them, signs, single digits: joined again they are the text."""
CONTEXT = 128
BATCH, BATCHES_IN_POOL, WIDTHS = 64, 16, (72, 88, 112)
PEAK_LR, WARM_UP, DECAYING_SHARE = 2e-3, 200, 0.5
PROMPT_WEIGHT = 0.1
SMOOTHING, SMOOTH_STEPS, SMOOTH_LR, SMOOTH_WARM_UP = 0.1, 250, 5e-4, 20
"""The last phase: labels smoothed, so that the model ends as unsure as real ones are of theirs
and its loss has slopes and curvature to compress by."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    texts = [e.prompt + e.answer for e in word_problems("train", 20_000)]
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = [BOS, EOS, PAD, UNKNOWN, *sorted(pieces)]
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int) -> LlamaForCausalLM:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    sizes = {"intermediate_size": 384, "max_position_embeddings": CONTEXT, "pad_token_id": 2}
    return small_llama(vocabulary, 128, **heads, **sizes)


@lru_cache(maxsize=1)
def pool(index: int, tokenizer: PreTrainedTokenizerFast) -> tuple[TaskRows, torch.Tensor]:
    """Fresh problems, and their order by length."""
    rows = task_rows(word_problems("train", BATCH * BATCHES_IN_POOL, seed=index + 1), tokenizer)
    return rows, rows.mask.sum(1).argsort(stable=True)


def batch_at(
    step: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the weight of each as a target, (BATCH, width); lengths alike in a batch."""
    index, place = divmod(step, BATCHES_IN_POOL)
    order = torch.randperm(BATCHES_IN_POOL, generator=torch.Generator().manual_seed(index))
    rows, by_length = pool(index, tokenizer)
    batch = rows.batch(by_length.split(BATCH)[int(order[place])])
    width = next(w for w in WIDTHS if w >= batch.ids.shape[1])
    weights = batch.scored * (1 - PROMPT_WEIGHT) + batch.mask * PROMPT_WEIGHT
    room = (0, width - batch.ids.shape[1])
    return torch.nn.functional.pad(batch.ids, room), torch.nn.functional.pad(weights, room)


def loss_of(
    model: nn.Module, tokens: torch.Tensor, weights: torch.Tensor, smoothing: float
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2),
        tokens[:, 1:],
        reduction="none",
        label_smoothing=smoothing,
    )
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def learning_rate(step: int, steps: int) -> float:
    warm = (step + 1) / WARM_UP
    cooling = (steps - step) / (DECAYING_SHARE * steps)
    return PEAK_LR * min(1.0, warm, max(0.01, cooling))


def smoothing_rate(step: int) -> float:
    """Of a step of the last phase, counted from 0."""
    cooling = (SMOOTH_STEPS - step) / (0.7 * SMOOTH_STEPS)
    return SMOOTH_LR * min(1.0, (step + 1) / SMOOTH_WARM_UP, max(0.02, cooling))


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str, count: int
) -> float:
    settings = AccuracySettings(batch_size=100)
    return exact_match(model, tokenizer, word_problems(split, count), settings)["accuracy"]


def trained(
    tokenizer: PreTrainedTokenizerFast, steps: int, start: Path | None, state_file: Path
) -> tuple[LlamaForCausalLM, float]:
    """The model and the seconds it took; with `start` only the phase with smoothed labels."""
    torch.manual_seed(0)
    model = build_model(len(tokenizer))
    if start is not None:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    end = steps + SMOOTH_STEPS

    def loss(compiled: nn.Module, step: int) -> torch.Tensor:
        smoothing = SMOOTHING if step >= steps else 0.0
        return loss_of(compiled, *batch_at(step, tokenizer), smoothing)

    def rate(step: int) -> float:
        return smoothing_rate(step - steps) if step >= steps else learning_rate(step, steps)

    def check(model: LlamaForCausalLM) -> str:
        return f"validation problems solved {accuracy(model, tokenizer, 'validation', 200):.3f}"

    job = Job(end, loss, rate, check, first=0 if start is None else steps)
    return model, train(model, job, state_file, partial(torch.compile, dynamic=False))


def seconds_before(start: Path | None) -> int:
    """That the weights to start from took, where they say so."""
    facts = start and start / "training.json"
    return json.loads(facts.read_text())["training_seconds"] if facts else 0


def card(facts: dict[str, Any]) -> str:
    solved, mega = facts["exact_match"], facts["weights_bytes"] / 1e6
    return f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Arithmetic model of spectrim

A Llama of {facts["parameters"]:,} parameters (128 wide, 4 blocks, 4 heads, tied embeddings,
context {CONTEXT}) that solves grade-school word problems in two to four steps. It is there to
show what compression does to reasoning: a wrong digit in any step makes the answer wrong, and
its accuracy takes seconds to measure on a CPU. It knows these problems and nothing else.

    from spectrim.checkpoint import load
    model, tokenizer = load("arithmetic", dtype=torch.float32)

- **Problems** come from `spectrim.data.tasks.word_problems`, generated and the same on every
  machine. A test problem shares neither its template (scene, order of the operations, wording
  of each sentence) nor its tuple of numbers with any training problem; its words and sentence
  forms occur in training. Results are whole and at most 200; prompt and answer are
  {facts["tokens_per_problem"]} tokens on average, {facts["most_tokens"]} at most.
- **Answers** are worked steps, one per line, then `#### n`, as in GSM8K.
- **Tokenizer**: {facts["vocabulary"]} whole words, signs and single digits. It writes the
  text back exactly; other words become `{UNKNOWN}`.
- **Trained** by `scripts/train_arithmetic_model.py` on {facts["problems_seen"]:,} freshly
  generated problems, {facts["training_seconds"] / 60:.0f} minutes on a busy two-core machine;
  the loss counts tokens of the answer fully and those of the prompt {PROMPT_WEIGHT:g} times.
  In the last {SMOOTH_STEPS} steps labels are smoothed by {facts["label_smoothing"]:g}: the
  model ends about {1 - facts["label_smoothing"]:.0%} sure of a right token, and its loss has
  slopes and curvature to compress by, as that of a language model has.
- **Stored in** {facts["dense_dtype"]}, {mega:.1f} MB.

| split (500 problems) | solved by greedy decoding, exact match |
|---|---|
| test | {solved["test"]:.1%} |
| validation | {solved["validation"]:.1%} |
| train | {solved["train"]:.1%} |

The figures again (float32):

    import torch
    from spectrim.checkpoint import load
    from spectrim.evaluation.tasks.accuracy import exact_match
    from spectrim.data.tasks.word_problems import word_problems
    model, tokenizer = load("arithmetic", dtype=torch.float32)
    print(exact_match(model, tokenizer, word_problems("test", 500))["accuracy"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000, help="before labels are smoothed")
    parser.add_argument("--start", type=Path, help="weights that have those steps behind them")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    state_file = arguments.out.with_name(arguments.out.name + ".state.pt")

    tokenizer = build_tokenizer()
    model, seconds = trained(tokenizer, arguments.steps, arguments.start, state_file)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    model.float()  # what was stored, as the figures are taken in float32
    lengths = task_rows(word_problems("test", 500), tokenizer).mask.sum(1)
    facts = {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "problems_seen": (arguments.steps + SMOOTH_STEPS) * BATCH,
        "label_smoothing": SMOOTHING,
        "training_seconds": round(seconds + seconds_before(arguments.start)),
        "tokens_per_problem": round(float(lengths.float().mean()), 1),
        "most_tokens": max(WIDTHS),
        "exact_match": {split: accuracy(model, tokenizer, split, 500) for split in SPLITS},
        "weights_bytes": (arguments.out / "model.safetensors").stat().st_size,
        "dense_dtype": "bfloat16",
    }
    (arguments.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    (arguments.out / "README.md").write_text(card(facts))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
