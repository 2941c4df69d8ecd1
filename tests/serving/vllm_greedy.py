"""Run by an interpreter that has vLLM: greedy tokens of models, as JSON.

    python vllm_greedy.py job.json

A job names `out`, `prompts` (token ids), `count`, and a list `runs` of `model`, `engine`
(options of `vllm.LLM`); each run gives a list of tokens for each prompt, or the message of the
ValueError that the model was refused with. A run with `loras`, directories, gives such lists
for each of them.
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


def tokens(run: dict[str, Any], prompts: list[list[int]], count: int) -> Any:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    try:
        model = LLM(model=run["model"], skip_tokenizer_init=True, **run["engine"])
    except ValueError as error:
        return str(error)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    given = [{"prompt_token_ids": ids} for ids in prompts]

    def generated(lora: Any = None) -> list[list[int]]:
        outputs = model.generate(given, params, lora_request=lora)
        return [list(output.outputs[0].token_ids) for output in outputs]

    if (loras := run.get("loras")) is None:
        return generated()
    return [generated(LoRARequest(place, i, place)) for i, place in enumerate(loras, 1)]


if __name__ == "__main__":
    main()
