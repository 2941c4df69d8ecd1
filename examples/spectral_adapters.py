"""A spectral adapter with PEFT and transformers' Trainer, and as a LoRA that loads anywhere.

    pip install 'spectrim[peft]'
    python examples/spectral_adapters.py MODEL --data text.txt --output tuned --adapter svfit

MODEL is dense or compressed; `tuned/adapter` is the adapter, `tuned/lora` the same as a plain
LoRA for PEFT, vLLM and llama.cpp. `spectrim finetune MODEL -o OUT --adapter NAME --data TEXT`
and `spectrim export OUT -o LORA --lora` do it in two commands.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

import spectrim
from spectrim.adapters import ADAPTERS, config_class, save_lora, to_lora, with_statistics
from spectrim.data import BlockSettings, token_blocks


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--adapter", default="pissa", choices=ADAPTERS.names())
    parser.add_argument("--rank", type=int, help="of the LoRA (default: no error)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args(arguments)
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=given.length, sequences=None, max_tokens=200_000)
    blocks = token_blocks(given.data, tokenizer, settings)

    config = config_class(given.adapter)(task_type="CAUSAL_LM")
    config = with_statistics(config, model, blocks)  # only `obd` takes any
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    run = TrainingArguments(
        output_dir=str(given.output / "run"),
        max_steps=given.steps,
        learning_rate=ADAPTERS.get(given.adapter).LEARNING_RATE,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
    )
    rows = [{"input_ids": row, "labels": row} for row in blocks.ids]
    done = Trainer(model=adapted, args=run, train_dataset=rows).train()
    adapted.save_pretrained(given.output / "adapter")
    export = to_lora(adapted.eval(), given.rank)
    save_lora(export, given.output / "lora")

    base, _ = spectrim.load(given.model, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, given.output / "lora")
    with torch.no_grad():
        expected, found = (
            m(blocks.ids[:4].to(m.device)).logits.cpu() for m in (adapted, plain)
        )
    figures = {
        "training loss": done.training_loss,
        "LoRA's rank": export.config.r,
        "LoRA's error": export.error,
        "largest difference of logits": float((expected - found).abs().max()),
    }
    for what, figure in figures.items():
        print(f"{what}: {figure:.4g}")
    return figures


if __name__ == "__main__":
    main()
