from __future__ import annotations

import yaml

from spectrim.checkpoint import CardFacts, model_card

FACTS = CardFacts(
    base_model="someone/model-1b",
    method="obd",
    layer_kind="pivoted",
    kept=0.8,
    data="64 sequences of wikitext-2",
    figures=[("perplexity | test", "7.1", "7.9")],
    ranks={"model.layers.0.mlp.up_proj": 8, "model.layers.1.mlp.up_proj": 12, "lm_head": 5},
    license="apache-2.0",
    command="spectrim compress someone/model-1b",
)


def test_front_matter():
    text = yaml.safe_load(model_card(FACTS).split("---")[1])
    assert text["base_model"] == "someone/model-1b"
    assert text["license"] == "apache-2.0"
    assert text["library_name"] == "transformers"
    assert "spectrim" in text["tags"]


def test_the_import_comes_first():
    body = model_card(FACTS).split("---\n", 2)[2]
    code = body.split("```python\n")[1]
    assert code.startswith("import spectrim")
    assert "from_pretrained" in code
    assert body.index("import spectrim") < body.index("# someone/model-1b")


def test_tables():
    card = model_card(FACTS)
    assert r"| perplexity \| test | 7.1 | 7.9 |" in card
    assert "| `up_proj` | 2 | 8 | 12 | 12 |" in card
    assert "https://huggingface.co/someone/model-1b" in card


def test_names_are_no_markup():
    name = "my_model/<img src=x>\n# [click](http://x) `rm` *b* | _c"
    card = model_card(CardFacts(name, "svd", "lowrank", 0.5, "a*b.txt"))
    title = next(line for line in card.splitlines() if line.startswith("# "))
    escaped = "my_model/\\<img src=x\\> # \\[click\\](http://x) \\`rm\\` \\*b\\* \\| \\_c"
    assert title == f"# {escaped}, 50% of its linear weights kept"
    assert "a\\*b.txt" in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1]), "no name of the Hub"


def test_what_is_unknown_is_left_out():
    card = model_card(CardFacts("/models/base", "svd", "lowrank", 0.5, "none"))
    assert "license" not in card
    assert "## Measured" not in card
    assert "## Ranks" not in card
    assert "huggingface.co" not in card
