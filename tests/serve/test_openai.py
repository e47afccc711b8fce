"""The server by OpenAI's own client, beside onnxruntime-genai's Generator on the same folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime_genai as og
import openai
import pytest

PROMPTS = ["a", "b c", "xyz", "hello wor", "é", "the quick brown fox", "zz", "q.q"]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def alone(folders):
    """prompt, most tokens -> (text, tokens, finish) of a Generator."""
    model = og.Model(str(folders["tiny"]))
    tokenizer = og.Tokenizer(model)

    def generate(prompt, most):
        ids = tokenizer.encode(prompt)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + most, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        made = []
        while not generator.is_done():
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
        eos = set(map(int, tokenizer.eos_token_ids))
        finish = "stop" if made[-1] in eos else "length"
        made = made[:-1] if finish == "stop" else made
        stream = tokenizer.create_stream()
        return "".join(stream.decode(token) for token in made), len(made), finish

    return generate


def complete(client, prompt, **options):
    options = {"max_tokens": 20, "temperature": 0} | options
    return client.completions.create(model="tiny", prompt=prompt, **options)


def shown(completion):
    choice = completion.choices[0]
    return choice.text, completion.usage.completion_tokens, choice.finish_reason


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion(client, alone, prompt):
    made = complete(client, prompt)
    assert shown(made) == alone(prompt, 20)
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_both_ends_are_met(alone):
    """What the prompts above show: an end by the model's own token, and one by the limit."""
    assert {alone(prompt, 20)[2] for prompt in PROMPTS} == {"stop", "length"}


def test_many_at_once_are_the_same(client, alone):
    """Batches of prompts of several lengths, which join and leave."""
    with ThreadPoolExecutor(16) as pool:
        jobs = [(prompt, most) for most in (3, 20, 11) for prompt in PROMPTS]
        made = list(pool.map(lambda job: shown(complete(client, job[0], max_tokens=job[1])), jobs))
    assert made == [alone(*job) for job in jobs]


def test_a_stream_is_the_same(client, alone):
    pieces = list(complete(client, "b c", stream=True, stream_options={"include_usage": True}))
    text, tokens, finish = alone("b c", 20)
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == text
    assert len(pieces) > 10
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 2) + [finish]
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == tokens


def test_tokens_as_a_prompt(client, alone):
    assert shown(complete(client, [3, 28, 4])) == alone("b c", 20)


def test_a_conversation_is_the_template(client, alone):
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "x y"}]},
    ]
    made = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_completion_tokens=9
    )
    text, tokens, finish = alone("system be.user x y.", 9)
    assert made.choices[0].message.content == text
    assert (made.usage.completion_tokens, made.choices[0].finish_reason) == (tokens, finish)
    pieces = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=9, stream=True
    )
    deltas = [piece.choices[0].delta for piece in pieces]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_ends_the_text(client, alone, stream):
    text, tokens, _ = alone("xyz", 20)
    stop = text[6:9]
    made = complete(client, "xyz", stop=["never", stop], stream=stream)
    if stream:
        pieces = list(made)
        said, finish = "".join(piece.choices[0].text for piece in pieces), pieces[-1].choices[0].finish_reason
    else:
        said, count, finish = shown(made)
        assert count < tokens
    assert (said, finish) == (text[: text.index(stop)], "stop")


def test_a_seed_decides_and_seeds_differ(client):
    def drawn(seed):
        return shown(complete(client, "abc", temperature=1.5, seed=seed, max_tokens=16))[0]

    first = [drawn(seed) for seed in range(6)]
    assert first == [drawn(seed) for seed in range(6)]
    assert len(set(first)) > 1
    unseeded = {shown(complete(client, "abc", temperature=1.5, max_tokens=16))[0] for _ in range(6)}
    assert len(unseeded) > 1


def test_the_least_tokens(client, alone):
    """What vLLM added, for measurements: the model's own end does not count."""
    prompt = next(prompt for prompt in PROMPTS if alone(prompt, 20)[2] == "stop")
    for seed in (None, 1):  # an engine, a generator
        made = complete(client, prompt, seed=seed, temperature=1.0, extra_body={"ignore_eos": True})
        assert shown(made)[1:] == (20, "length")


def test_embeddings(client):
    """The client asks for base64 unless told otherwise. Token vectors of the model are (id, 1, 1)."""
    made = client.embeddings.create(model="encoder", input=["the cat", "cat sat the sat", "unknown"])
    ids = [[2, 4, 5, 3], [2, 5, 6, 4, 6, 3], [2, 1, 3]]
    for each, tokens in zip(made.data, ids, strict=True):
        expected = np.array([np.mean(tokens), 1, 1]) / np.hypot(np.mean(tokens), np.sqrt(2))
        np.testing.assert_allclose(each.embedding, expected, rtol=1e-6)
    assert made.usage.prompt_tokens == 13
    as_tokens = client.embeddings.create(model="encoder", input=ids, encoding_format="float")
    np.testing.assert_allclose(
        [each.embedding for each in as_tokens.data], [e.embedding for e in made.data], rtol=1e-6
    )


def test_the_models(client):
    assert {model.id for model in client.models.list()} == {"tiny", "encoder"}
    assert client.models.retrieve("tiny").owned_by == "mxort"


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"logprobs": 1}, openai.BadRequestError, "logprobs"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 64}, openai.BadRequestError, "max_tokens"),
        ({"prompt": "x" * 64}, openai.BadRequestError, "prompt"),
        ({"prompt": ["a", "b"]}, openai.BadRequestError, "prompt"),
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"model": "encoder"}, openai.BadRequestError, "model"),
    ],
)
def test_what_cannot_be_is_an_error_that_the_client_knows(client, options, kind, param):
    with pytest.raises(kind) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a", "max_tokens": 5} | options)
    assert caught.value.param == param
    assert "\n" not in caught.value.body["message"]
