"""LoRA adapters on a compressed model with PEFT and transformers' Trainer, merged and saved.

    pip install 'spectrim[peft]'
    spectrim compress reference -o smaller --budget 0.6
    python examples/adapters.py smaller --data text.txt --output tuned

The ranks of the factors, and so the bytes, are the same before and after. `spectrim finetune
smaller -o tuned --data text.txt --lora 8` does it in one command.
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import spectrim
from spectrim.data import BlockSettings, token_blocks


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args(arguments)
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    settings = BlockSettings(length=given.length, sequences=None, max_tokens=200_000)
    blocks = token_blocks(given.data, tokenizer, settings)
    rows = [{"input_ids": row, "labels": row} for row in blocks.ids]
    config = LoraConfig(
        r=given.rank, target_modules=spectrim.lora_targets(model), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    settings_of_run = TrainingArguments(
        output_dir=f"{given.output}-run",
        max_steps=given.steps,
        learning_rate=2e-3,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
    )
    done = Trainer(model=adapted, args=settings_of_run, train_dataset=rows).train()
    spectrim.save(adapted.merge_and_unload(), tokenizer, given.output)
    print(f"training loss {done.training_loss:.4f}, saved to {given.output}")
    return done.training_loss


if __name__ == "__main__":
    main()
