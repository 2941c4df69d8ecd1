"""Run by an interpreter that has vLLM: greedy tokens of models, as JSON.

    python vllm_greedy.py job.json

A job names `out`, `prompts` (token ids), `count`, and a list `runs` of `model`, `engine`
(options of `vllm.LLM`); each run gives a list of tokens for each prompt, or the message of the
ValueError that the model was refused with.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    found = [tokens(run, job["prompts"], job["count"]) for run in job["runs"]]
    with open(job["out"], "w", encoding="utf-8") as file:
        json.dump(found, file)


def tokens(run: dict[str, Any], prompts: list[list[int]], count: int) -> list[list[int]] | str:
    from vllm import LLM, SamplingParams

    try:
        model = LLM(model=run["model"], skip_tokenizer_init=True, **run["engine"])
    except ValueError as error:
        return str(error)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main()
