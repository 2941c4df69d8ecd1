"""Write docs/model_families.md: what becomes of each family of causal language models.

    python scripts/model_families.py [OUT.md]

Builds each family of tests/families/configs.py from its tiny configuration, compresses it,
saves it, loads it with plain `from_pretrained`, compares the logits, and generates with and
without a cache. Takes about two minutes on one core.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.families.configs import FAMILIES, Family  # noqa: E402
from tests.families.running import Outcome, quiet, run_family  # noqa: E402

HEAD = """# Model families

Each row is a causal language model of transformers {version}, built from a tiny configuration
with random weights: compressed (`obd`, 70% of the weights kept), saved, loaded with plain
`from_pretrained` after `import spectrim`, compared with the model in memory, and generated
from greedily with and without a cache. `scripts/model_families.py` makes this page, and the
slow tests hold every row of it. Encoder-decoders, classifiers, vision-language models and
adapters have [a page of their own](other_models.md).

**full**: every linear layer of the decoder blocks can be factored. **partly dense**: the
named layers stay as they were, and a warning says so. **refused**: one line, before the work.

{counts}

| family | class | outcome | layers in two factors | what stays dense, and why |
|---|---|---|---|---|
"""


def main(output: Path) -> None:
    logging.disable(logging.WARNING)
    quiet()
    torch.set_num_threads(1)
    outcomes = {str(family): (family, _outcome(family)) for family in FAMILIES}
    counts = Counter(outcome.status for _, outcome in outcomes.values())
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    head = HEAD.format(
        version=transformers.__version__, counts=f"{len(outcomes)} families: {summary}."
    )
    rows = [_row(name, *outcomes[name]) for name in sorted(outcomes)]
    output.write_text(head + "\n".join(rows) + "\n")
    print(summary)


def _outcome(family: Family) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        return run_family(family, Path(directory))


def _row(name: str, family: Family, outcome: Outcome) -> str:
    cells = [name, family.class_name, outcome.status, str(outcome.factored), _why(outcome)]
    return "| " + " | ".join(cells) + " |"


def _why(outcome: Outcome) -> str:
    if outcome.detail:
        return outcome.detail
    reasons: dict[str, list[str]] = {}
    for name, reason in outcome.dense.items():
        reasons.setdefault(reason, []).append(name)
    parts = [f"{patterns(names)}: {why}" for why, names in reasons.items()]
    if not outcome.cached:
        parts.append("not generated from: transformers itself does not, in this configuration")
    return "; ".join(parts)


def patterns(names: Iterable[str]) -> str:
    """Names with `*` for numbers, each once."""
    return ", ".join(dict.fromkeys(f"`{re.sub(r'[0-9]+', '*', name)}`" for name in names))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/model_families.md")
