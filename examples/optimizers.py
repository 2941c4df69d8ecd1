"""Optimizers by name: in transformers' Trainer on a language model, and Sven on a regression.

    python examples/optimizers.py MODEL --data TEXT

MODEL is a directory or hub name; its weights are fine-tuned by each optimizer from where they
are. Printed are the loss at the end, the bytes of the optimizer's state, and the milliseconds
of a step. Sven needs the residual of every example, so it has a loop of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from spectrim.data import BlockSettings, token_blocks
from spectrim.optim import make_optimizer, measure_state, split_params

RATES = {"adamw": 1e-3, "dct_adamw": 1e-3, "muon": 2e-3, "trion": 2e-3}
Figures = tuple[float, int, float]


def train(model_name: str, rows: list[dict[str, Tensor]], name: str, steps: int) -> Figures:
    """Return the last loss, the bytes of state, and milliseconds per step."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    optimizer = make_optimizer(name, split_params(model, lr_rest=1e-3), RATES[name])
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=RATES[name],
            lr_scheduler_type="cosine",
            logging_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
        began = time.perf_counter()
        done = trainer.train()
        seconds = time.perf_counter() - began
    return done.training_loss, measure_state(optimizer), 1000 * seconds / steps


def residuals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the signed residual (B,) of every example."""
    x, y = batch
    return model(x).squeeze(-1) - y


def regression(steps: int) -> float:
    """Return the mean square error of a small network on a wavy line after Sven's steps."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 256)[:, None]
    y = (6 * x).sin().squeeze() + 0.3 * (20 * x).sin().squeeze()
    sizes = nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    model = nn.Sequential(*sizes)
    optimizer = make_optimizer("sven", model.parameters(), lr=0.1)
    for _ in range(steps):
        chosen = torch.randperm(256)[:64]
        optimizer.step(model, residuals, (x[chosen], y[chosen]))
    return float(residuals(model, (x, y)).detach().square().mean())


def main(arguments: list[str] | None = None) -> dict[str, Figures | float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--optimizers", default=",".join(RATES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    blocks = token_blocks(given.data, tokenizer, BlockSettings(None, given.length), None)
    rows = [{"input_ids": row, "labels": row} for row in blocks.ids]
    found: dict[str, Figures | float] = {}
    for name in given.optimizers.split(","):
        loss, state, pace = found[name] = train(given.model, rows, name, given.steps)
        print(f"{name:10} loss {loss:.3f}, state {state:,} bytes, {pace:.1f} ms per step")
    found["sven"] = regression(10 * given.steps)
    print(f"sven       mean square error of the regression {found['sven']:.2e}")
    return found


if __name__ == "__main__":
    main()
