from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from spectrim import version
from spectrim.checkpoint import CardFacts, model_card
from spectrim.checkpoint.card import escape_markdown, with_name, without_directories
from spectrim.version import install_command, install_words

ROOT = Path(__file__).parents[2]

FACTS = CardFacts(
    base_model="someone/model-1b",
    method="obd",
    layer_kind="pivoted",
    kept=0.8,
    data="64 sequences of wikitext-2",
    figures=[("perplexity | test", "7.1", "7.9")],
    predicted=[("loss increase", "+0.1")],
    sizes=("3.94 MB", "3.32 MB"),
    name="smaller",
    datasets=["Salesforce/wikitext"],
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
    assert text["datasets"] == ["Salesforce/wikitext"]


def test_the_import_comes_first():
    body = model_card(FACTS).split("---\n", 2)[2]
    code = body.split("```python\n")[1]
    assert code.startswith("import spectrim")
    assert "from_pretrained" in code
    assert body.index("import spectrim") < body.index("\n## ")


def test_tables():
    card = model_card(FACTS)
    assert r"| perplexity \| test | 7.1 | 7.9 |" in card
    assert "| `up_proj` | 2 | 8 | 12 | 12 |" in card
    assert "https://huggingface.co/someone/model-1b" in card
    assert "| base model | this model |\n|---|---|\n| 3.94 MB | 3.32 MB |" in card
    measured = card.split("## Measured")[1].split("## ")[0]
    assert "+0.1" not in measured
    assert "+0.1" in card.split("## Predicted")[1].split("## ")[0]


def test_names_are_no_markup():
    name = "my_model<img src=x>\n# [click](x) `rm` *b* | _c"
    card = model_card(CardFacts(name, "svd", "lowrank", 0.5, "a*b.txt"))
    title = next(line for line in card.splitlines() if line.startswith("# "))
    escaped = "my_model\\<img src=x\\> # \\[click\\](x) \\`rm\\` \\*b\\* \\| \\_c"
    assert title == f"# {escaped}, 50% of its linear weights removed"
    assert "a\\*b.txt" in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1]), "no name of the Hub"


def test_what_is_unknown_is_left_out():
    card = model_card(CardFacts("/models/base", "svd", "lowrank", 0.5, "none"))
    assert "license" not in card
    assert "## Measured" not in card
    assert "## Ranks" not in card
    assert "## Size" not in card
    assert "huggingface.co" not in card


def test_a_directory_is_told_by_its_last_part(tmp_path, monkeypatch):
    """Neither the places of this machine nor a directory that looks like a name of the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    for base in ("models/tiny", str(tmp_path / "models" / "tiny")):
        card = model_card(CardFacts(base, "svd", "lowrank", 0.5, "none"))
        assert "# tiny, 50% of its linear weights removed" in card
        assert "base_model:" not in card
        assert str(tmp_path) not in card
        assert "huggingface.co" not in card


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/texts/wiki.txt, 256 sequences", "wiki.txt, 256 sequences"),
        ("~/wiki.txt@0.7 + /data/chat.jsonl:text@0.3", "wiki.txt@0.7 + chat.jsonl:text@0.3"),
        ("the task gsm8k:/data/train.jsonl, its loss", "the task gsm8k:train.jsonl, its loss"),
        ("4,096 tokens of C:\\texts\\wiki.txt", "4,096 tokens of wiki.txt"),
        ("hf:Salesforce/wikitext/wikitext-2-raw-v1:train", None),
        ("texts/wiki.txt, python, ./wiki.txt", None),
    ],
)
def test_no_directory_of_this_machine_is_published(source, shown):
    facts = replace(FACTS, data=source, measured_on=source)
    assert without_directories(source) == (shown or source)
    assert model_card(facts).count(escape_markdown(shown or source)) == 2


def test_a_card_opens_with_its_title():
    body = model_card(FACTS).split("---\n")[2]
    assert body.lstrip().startswith("# ")


def test_the_load_line_names_the_model():
    card = model_card(FACTS)
    assert '\nname = "smaller"' in card
    assert install_command() in card
    assert '\nname = "somebody/model"' in with_name(card, "somebody/model")


def test_the_install_command_is_of_one_place(monkeypatch):
    """A release sets the address, and the project names the same one or none."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    assert set(urls.values()) <= {version.REPOSITORY}
    monkeypatch.setattr(version, "REPOSITORY", "")
    assert install_words() == "`pip install .` in a clone of its repository"
    monkeypatch.setattr(version, "REPOSITORY", "https://example.org/spectrim")
    assert install_words() == f"`{install_command()}`"
    assert install_command() == "pip install 'spectrim @ git+https://example.org/spectrim'"
