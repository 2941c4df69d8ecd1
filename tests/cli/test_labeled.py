"""Encoder-decoders, classifiers and adapters on the command line."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from tests.labeled_examples import examples_file
from tests.tiny_models import (
    tiny_bart,
    tiny_bert_classifier,
    tiny_llama,
    tiny_llava,
    tiny_t5,
    tiny_tokenizer,
)

BUILDERS = {"t5": tiny_t5, "bart": tiny_bart, "bert": tiny_bert_classifier}
SMALL = ("--sequences", "40", "--set", "calibration.tokens_per_batch=256")


@pytest.fixture(scope="module")
def rack(tmp_path_factory):
    """Models with their tokenizers and examples, by name."""
    root = tmp_path_factory.mktemp("rack")
    for name, build in BUILDERS.items():
        build().save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
        examples_file(root / f"{name}.jsonl", name)
    return root


@pytest.mark.slow
def test_a_seq2seq_model_is_compressed_and_evaluated(cli, rack, tmp_path):
    data = ("--data", rack / "t5.jsonl")
    done = cli("compress", rack / "t5", "-o", "out", "--budget", 0.6, *data, *SMALL)
    assert done.code == 0, done.err
    assert "encoder-decoder: its own loss, nats per target token" in done.err
    assert "fields text, summary" in done.err
    assert "perplexity x" in done.out.splitlines()[-1]
    assert "same next token" in done.out.splitlines()[-1]
    assert done.err.splitlines()[-1].endswith("--data YOUR_EXAMPLES")
    model, info = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    ids = torch.arange(3, 12)[None]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape == (1, 4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM.from_pretrained(name)" in card
    assert "pipeline_tag: text2text-generation" in card
    assert "nats per target token" in card
    assert (tmp_path / "out" / "spectrim_report.html").is_file()
    shown = cli("evaluate", rack / "t5", "out", "--original", rack / "t5", *data, "--json")
    figures = json.loads(shown.out)["out"]
    assert figures["loss"] == pytest.approx(
        figures["reference_loss"] + figures["loss_increase"]
    )
    assert figures["kl_divergence"] > 0
    assert figures["disk_bytes"] > 0


def test_a_classifier_is_compressed_and_evaluated(cli, rack, tmp_path):
    data = ("--data", rack / "bert.jsonl")
    done = cli("compress", rack / "bert", "-o", "out", "--budget", 0.6, *data, *SMALL)
    assert done.code == 0, done.err
    assert "sequence classifier: its own loss, nats per example" in done.err
    answer = done.out.splitlines()[-1]
    assert re.search(r"loss per example [+-][\d.e-]+ measured, [+-][\d.e-]+ predicted", answer)
    assert "same label" in answer
    assert "accuracy" in answer
    assert "perplexity" not in answer
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label[2] == "good"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "accuracy of the label" in card
    assert "perplexity" not in card
    shown = cli("evaluate", rack / "bert", "out", *data)
    assert shown.code == 0, shown.err
    assert "accuracy" in shown.out


@pytest.mark.slow
def test_plans_and_dry_runs(cli, rack, tmp_path):
    data = ("--data", rack / "bart.jsonl", *SMALL)
    done = cli("plan", rack / "bart", "-o", "plan.yaml", "--budget", 0.7, *data)
    assert done.code == 0, done.err
    assert "nats per target token" in " ".join(done.out.split())
    assert "nats per target token" in (tmp_path / "plan.svg").read_text()
    followed = cli("compress", rack / "bart", "-o", "out", "--plan", "plan.yaml", *data)
    assert followed.code == 0, followed.err
    dry = cli("compress", rack / "bart", "-o", "dry", "--dry-run", *data)
    assert dry.code == 0, dry.err
    assert "ahead: calibrating" in dry.err
    assert not (tmp_path / "dry").exists()


WRONG = {
    "fields": ({"title": "a", "body": "b"}, (), "--field SOURCE,TARGET"),
    "named fields": ({"text": "a", "summary": "b"}, ("--field", "a,b"), "no field 'a'"),
    "null": ({"text": None, "summary": "b"}, (), "holds no example: 1 records (1 with a null"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_records_are_told_before_the_model_is_read(
    cli, rack, tmp_path, monkeypatch, case
):
    record, options, message = WRONG[case]
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    monkeypatch.setattr("spectrim.pipeline.loaded_model.load", None)
    given = ("--data", "rows.jsonl", *options)
    done = cli("compress", rack / "t5", "-o", "out", *given)
    assert message in done.failed_with_one_line()
    assert not (tmp_path / "out").exists()


def test_labels_out_of_range_are_told_before_the_model_is_read(
    cli, rack, tmp_path, monkeypatch
):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 7}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("spectrim.pipeline.loaded_model.load", None)
    for command in (("compress", rack / "bert", "-o", "out"), ("evaluate", rack / "bert")):
        line = cli(*command, "--data", "rows.jsonl").failed_with_one_line()
        assert "line 2: the label is 7, the model has the classes 0 to 2" in line


def test_what_is_of_causal_models_is_refused_in_one_line(cli, rack):
    data = ("--data", rack / "t5.jsonl")
    refused = {
        ("compress", "-o", "out", "--elastic", "0.4..0.9"): "elastic",
        ("compress", "-o", "out", "--refine", "finetune"): "refinement",
        ("compress", "-o", "out", "--memory", "1GiB"): "not a causal language model",
        ("bench", "-o", "x", "--methods", "svd/uniform/lowrank"): "not a causal language",
        ("quantize", "-o", "out"): "not a causal language model",
        ("explore",): "not a causal language model",
        ("finetune", "-o", "out"): "not a causal language model",
    }
    for (command, *options), message in refused.items():
        line = cli(command, rack / "t5", *options, *data).failed_with_one_line()
        assert message in line, command
    line = cli("evaluate", rack / "t5", "--task", "x.jsonl").failed_with_one_line()
    assert "--task is for causal language models" in line
    line = cli("evaluate", rack / "t5").failed_with_one_line()
    assert "text without fields" in line


@pytest.mark.slow
def test_scores_are_regressed(cli, rack, tmp_path):
    """A model with one output has no probabilities: no divergence, and no measured curves."""
    config = tiny_bert_classifier().config.to_dict() | {"id2label": {0: "LABEL_0"}}
    config["label2id"] = {"LABEL_0": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig.from_dict(config))
    model.save_pretrained(rack / "scores")
    tiny_tokenizer().save_pretrained(rack / "scores")
    rows = (json.loads(line) for line in (rack / "bert.jsonl").read_text().splitlines())
    scored = [{"text": row["text"], "label": len(row["text"]) / 9} for row in rows]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, scored)))
    data = ("--data", "scores.jsonl")
    done = cli("compress", rack / "scores", "-o", "out", "--budget", 0.6, *data, *SMALL)
    assert done.code == 0, done.err
    answer = done.out.splitlines()[-1]
    assert "loss per example" in answer
    assert "KL" not in answer
    shown = cli("evaluate", "out", "--original", rack / "scores", *data, "--json")
    figures = json.loads(shown.out)["out"]
    assert figures["examples"] == len(scored)
    assert "loss_increase" in figures
    assert "accuracy" not in figures


@pytest.mark.slow
def test_a_vision_language_model_is_compressed_on_text(cli, rack, shelf, tmp_path):
    tiny_llava().save_pretrained(rack / "llava")
    tiny_tokenizer().save_pretrained(rack / "llava")
    text = ("--data", shelf / "text.txt", "--length", 24)
    size = ("--sequences", 8, "--budget", 0.6)
    done = cli("compress", rack / "llava", "-o", "out", *text, *size)
    assert done.code == 0, done.err
    assert "its language model is compressed on text alone" in done.err
    assert "text alone does not reach them" in done.err
    assert "perplexity x" in done.out.splitlines()[-1]
    shown = cli("evaluate", rack / "llava", "out", *text, "--tokens", 200)
    assert shown.code == 0, shown.err
    line = cli("compress", rack / "llava", "-o", "no", "--refine", "finetune", *text)
    assert "a vision-language model cannot" in line.failed_with_one_line()
    line = cli("quantize", rack / "llava", "-o", "no", *text).failed_with_one_line()
    assert "not a causal language model" in line


@pytest.fixture(scope="module")
def adapter(rack, shelf):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
        adapted = peft.get_peft_model(tiny_llama(), config)
    adapted.peft_config["default"].base_model_name_or_path = str(shelf / "model")
    adapted.save_pretrained(rack / "adapter")
    return rack / "adapter"


@pytest.mark.slow
def test_an_adapter_is_merged_where_that_is_asked_for(cli, shelf, adapter, tmp_path):
    data = ("--data", shelf / "text.txt", "--sequences", 8, "--length", 24)
    line = cli("compress", adapter, "-o", "out", *data).failed_with_one_line()
    assert "--merge-adapter" in line
    done = cli("compress", adapter, "-o", "out", "--merge-adapter", "--budget", 0.7, *data)
    assert done.code == 0, done.err
    assert f"merging the adapter {adapter} into {shelf / 'model'}" in done.err
    planned = cli("plan", adapter, "--merge-adapter", "--budget", 0.7, *data)
    assert planned.code == 0, planned.err
    text = ("--data", shelf / "text.txt", "--tokens", 200, "--length", 24, "--json")
    shown = cli("evaluate", adapter, shelf / "model", "out", "--merge-adapter", *text)
    assert shown.code == 0, shown.err
    figures = json.loads(shown.out)
    perplexities = [figures[str(m)]["perplexity"] for m in (adapter, shelf / "model", "out")]
    assert len(set(perplexities)) == 3
    line = cli("compress", shelf / "model", "-o", "no", "--merge-adapter", *data)
    assert "is no directory of a PEFT adapter" in line.failed_with_one_line()
    line = cli("compress", adapter, "-o", "no", "--merge-adapter", "--memory", "1GiB", *data)
    assert "--merge-adapter and --memory cannot" in line.failed_with_one_line()
