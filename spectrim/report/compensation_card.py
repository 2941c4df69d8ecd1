"""README.md of a checkpoint of compressed layers with low-rank paths."""

from __future__ import annotations

from spectrim.checkpoint import SpectrimConfig
from spectrim.checkpoint.card import LOADING
from spectrim.pipeline.recipe import Recipe


def compensation_card(base_model: str, config: SpectrimConfig, recipe: Recipe) -> str:
    """Markdown with YAML front matter; bytes are of the compressed layers, without biases."""
    facts = config.provenance["compensation"]
    entry = next(iter(config.layers.values()))
    options = ", ".join(f"{k} {v}" for k, v in entry["options"].items() if v != "")
    lines = ["---", f'base_model: "{base_model}"', "library_name: transformers"]
    lines += ["pipeline_tag: text-generation", "tags:", "- spectrim", "---", "", LOADING]
    lines += [f"# {base_model}, compressed by {facts['base']}", ""]
    stored = f"`{facts['base']}`" + (f" ({options})" if options else "")
    lines += [f"{len(config.layers)} linear layers are stored by {stored}."]
    if facts["path_bytes"]:
        text = f"{recipe.calibration.data}, {recipe.calibration.sequences} sequences"
        lines += ["Low-rank paths beside them give back a part of what that lost: method"]
        lines += [f"`{facts['method']}`, {facts['allocation']} ranks, from {text}."]
    lines += ["", "| | |", "|---|---|"]
    for key in ("dense_bytes", "base_bytes", "path_bytes"):
        lines.append(f"| {key.replace('_', ' ')} | {facts[key]:,} |")
    for key in ("predicted_loss_without_path", "predicted_loss"):
        if key in facts:
            what = key.replace("_", " ")
            lines.append(f"| {what}, nats per token | +{facts[key]:.4f} |")
    return "\n".join([*lines, ""])
