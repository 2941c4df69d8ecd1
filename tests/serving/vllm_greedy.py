"""Run by an interpreter that has vLLM: greedy tokens of a model, as JSON.

    python vllm_greedy.py job.json

The job names `model`, `prompts` (token ids), `count`, `engine` (options of `vllm.LLM`) and `out`.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from vllm import LLM, SamplingParams

    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    model = LLM(model=job["model"], skip_tokenizer_init=True, **job["engine"])
    params = SamplingParams(
        temperature=0, max_tokens=job["count"], ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    outputs = model.generate(prompts, params)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    with open(job["out"], "w", encoding="utf-8") as file:
        json.dump(tokens, file)


if __name__ == "__main__":
    main()
