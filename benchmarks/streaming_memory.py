"""Compress a random-weight Llama that is larger than the memory it is given.

    python benchmarks/streaming_memory.py DIRECTORY --hidden 2048 --layers 16 --memory 6GiB

Writes the checkpoint block by block, compresses it by the command line in a process of its
own, and prints what the kernel says that process had in memory at most (VmHWM). `--beyond` sets
the limit from what that process has in memory when its code is loaded, before the work.
`--stages` adds time, processor time and memory of each stage, and the disk that was taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from stage_meter import StageMeter

MIB = 2**20
WORDS = 4000
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz ."


def main() -> None:
    given = _arguments()
    if given.child:
        _compress(given)
        return
    model = given.directory / "model"
    if not model.exists():
        _write_checkpoint(given, model)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    figures = json.loads(done.stdout.splitlines()[-1])
    figures |= {"checkpoint_mib": size / MIB, "seconds": time.monotonic() - start}
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--beyond", type=int, help="MiB beyond the loaded code")
    parser.add_argument("--options", default="", help="more options of spectrim compress")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--child", action="store_true")
    return parser.parse_args()


def _compress(given: argparse.Namespace) -> None:
    import spectrim.cli.compress
    import spectrim.pipeline.memory_plan
    import spectrim.report.write  # noqa: F401  what the limit is counted beyond
    from spectrim.cli import main as command_line
    from spectrim.runtime.memory import peak_bytes, resident_bytes

    base = resident_bytes()
    memory = f"{base // MIB + given.beyond}MiB" if given.beyond else given.memory
    sys.argv = ["spectrim", "compress", str(given.directory / "model"), "--memory", memory]
    sys.argv += ["-o", str(given.directory / "small"), "--overwrite", "--no-cache"]
    sys.argv += ["--data", str(given.directory / "text.txt"), *given.options.split()]
    meter = _metered() if given.stages else None
    try:
        command_line()
    except SystemExit as finished:
        if finished.code:
            raise
    figures = {"base_mib": base / MIB, "limit": memory, "peak_mib": peak_bytes() / MIB}
    if meter is not None:
        meter.begin("done")
        figures["peak_mib"] = max(row["peak_mib"] for row in meter.rows.values())
        figures |= {"stages": meter.rows, "disk_mib": meter.disk_mib}
    print(json.dumps(figures))


def _metered() -> StageMeter:
    from spectrim.cli.progress import StageProgress

    meter = StageMeter()
    StageProgress.__call__ = lambda self, *stage: meter.track(*stage)  # type: ignore[method-assign]
    return meter


def _write_checkpoint(given: argparse.Namespace, directory: Path) -> None:
    """Random weights of the usual sizes, one shard per module, never all in memory."""
    import torch
    from llama_shape import llama_config
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    changes = {"vocab_size": given.vocabulary, "tie_word_embeddings": False}
    if given.inner:
        changes["intermediate_size"] = given.inner
    config = llama_config(given.hidden, given.layers, dtype=given.dtype, **changes)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        value = torch.ones(tensor.shape)
        if tensor.dim() > 1:
            value = 0.02 * torch.randn(tensor.shape, generator=generator)
        file = f"model-{number:05d}-of-{len(tensors):05d}.safetensors"
        stored = value.to(getattr(torch, given.dtype))
        save_file({name: stored}, directory / file, {"format": "pt"})
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(directory)
    _write_text(directory)


def _write_text(directory: Path) -> None:
    """A tokenizer of single characters, and a text of random words."""
    import random

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<s>": 0, "<unk>": 1} | {c: n for n, c in enumerate(_CHARACTERS, 2)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(directory)
    source = random.Random(0)
    words = ["".join(source.choices(_CHARACTERS[:26], k=5)) for _ in range(WORDS)]
    (directory.parent / "text.txt").write_text(" ".join(words))


if __name__ == "__main__":
    main()
