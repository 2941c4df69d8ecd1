"""`transformers serve`, unmodified, after `spectrim activate`, asked over HTTP."""

from __future__ import annotations

import pytest

from spectrim.checkpoint import load
from tests.serving.compressing import greedy
from tests.serving.servers import HOST

pytestmark = pytest.mark.slow

PROMPT, COUNT = "Once upon a time", 20


@pytest.fixture(scope="module")
def wanted(environment) -> str:
    model, tokenizer = load(environment.directory / "small")
    prompt = tokenizer(PROMPT).input_ids
    [tokens] = greedy(model, [prompt], COUNT)
    return tokenizer.decode(tokens, skip_special_tokens=True)


def test_an_elastic_model_is_served_at_the_size_of_its_config(environment, elastic_port):
    import openai

    model, tokenizer = load(environment.directory / "every", budget=0.5)
    other, _ = load(environment.directory / "every", budget=0.9)
    prompt = tokenizer(PROMPT).input_ids
    wanted, not_wanted = (greedy(m, [prompt], COUNT)[0] for m in (model, other))
    assert wanted != not_wanted
    client = openai.OpenAI(
        base_url=f"http://{HOST}:{elastic_port}/v1", api_key="none", timeout=60, max_retries=0
    )
    found = client.completions.create(
        model="every", prompt=PROMPT, max_tokens=COUNT, temperature=0
    )
    assert found.choices[0].text == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_the_models(port, wanted, stream):
    import openai

    client = openai.OpenAI(
        base_url=f"http://{HOST}:{port}/v1", api_key="none", timeout=60, max_retries=0
    )
    found = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=COUNT, temperature=0, stream=stream
    )
    parts = list(found) if stream else [found]
    assert "".join(part.choices[0].text for part in parts) == wanted
