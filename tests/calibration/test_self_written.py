"""Text that a model writes itself: what numpy writes from the same numbers; kept, told of, and refused."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest

import mxort
from decoders import HIDDEN, POSITIONS, VOCABULARY, logits_of, prefix_sums
from mxort.calibration import self_written
from mxort.calibration.self_written import SelfWritten, sample, write
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.evaluation.evaluate import evaluate
from sliding_window import sliding_window
from tiny_models import decoder, mlp


def written(path, settings, **options):
    return np.stack(list(write(model_io.load(path), settings, **options)))


def foretold(settings, positions=False, ends=()):
    """The same text by numpy alone, a loop over every number drawn."""
    result = np.zeros((settings.windows, settings.tokens), np.int64)
    for row in range(settings.windows):
        drawn = np.random.default_rng([settings.seed, row]).random(settings.tokens)
        for i, number in enumerate(drawn):
            if i == 0 or result[row, i - 1] in ends:
                result[row, i] = math.floor(number * VOCABULARY)
                continue
            x = logits_of(result[row, :i], positions)[-1].astype(np.float64) / settings.temperature
            p = np.exp(x - x.max())
            result[row, i] = np.searchsorted(np.cumsum(p / p.sum()), number, side="right")
    return result


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "no positions"])
def test_what_numpy_writes(tmp_path, cached, positions):
    path = prefix_sums(tmp_path / "m.onnx", cached=cached, positions=positions)
    settings = SelfWritten(5, 40, seed=3, temperature=0.7)
    np.testing.assert_array_equal(written(path, settings), foretold(settings, positions))


def test_a_seed_is_a_text(tmp_path):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    first, again, other = (written(path, SelfWritten(3, 30, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_batch_does_not_matter(tmp_path, monkeypatch):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    settings = SelfWritten(7, 20)
    whole = written(path, settings)
    monkeypatch.setattr(self_written, "_BATCH", 3)  # 3 + 3 + 1
    np.testing.assert_array_equal(written(path, settings), whole)
    monkeypatch.setattr(
        self_written, "_CACHE_BYTES", 2 * 20 * HIDDEN * 4
    )  # two windows' worth: 2 + 2 + 2 + 1
    np.testing.assert_array_equal(written(path, settings), whole)
    fixed = prefix_sums(tmp_path / "fixed.onnx", fixed_batch=2)
    np.testing.assert_array_equal(written(fixed, settings), whole)
    monkeypatch.setattr(self_written, "_LOGITS_AT_ONCE", 2 * 20 * VOCABULARY)
    bare = prefix_sums(tmp_path / "bare.onnx")
    np.testing.assert_array_equal(written(bare, settings), whole)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_their_probabilities(tmp_path, temperature):
    """A model whose logits depend on the last token only: the counts of what follows each token, against its softmax.

    For n draws from k classes P(sum |count / n - p| > e) <= 2^k exp(-n e^2 / 2) (Bretagnolle, Huber, Carol); e is
    where that is 1e-6 divided by the number of tokens.
    """
    classes = 16
    path = decoder(tmp_path / "m.onnx")
    table = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype(np.float64)
    text = written(path, SelfWritten(32, 400, temperature=temperature))
    tested = 0
    for token in range(classes):
        following = text[:, 1:][text[:, :-1] == token]
        p = np.exp(table[token] / temperature)
        difference = np.abs(
            np.bincount(following, minlength=classes) / max(1, len(following)) - p / p.sum()
        ).sum()
        bound = math.sqrt(2 * (classes * math.log(2) + math.log(classes / 1e-6)) / max(1, len(following)))
        assert difference <= bound, token
        tested += bound < 0.4  # a bound of 2 holds for everything
    assert tested >= 8, "most tokens come often enough to say something"


def test_sample_at_its_edges():
    logits = np.log(np.float32([[1, 1, 2]]))
    for number, token in ((0.0, 0), (0.2499, 0), (0.2501, 1), (0.4999, 1), (0.5001, 2), (1 - 1e-16, 2)):
        assert sample(logits, 1.0, np.array([number]))[0] == token, number
    excluded = np.float32([[-np.inf, 0, -np.inf]])
    assert sample(excluded, 1.0, np.array([0.0]))[0] == 1
    assert sample(excluded, 1.0, np.array([1 - 1e-16]))[0] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("genai_config.json", {"model": {"eos_token_id": [3, 7]}}),
        ("generation_config.json", {"eos_token_id": [3, 7]}),
    ],
)
def test_a_new_text_begins_where_one_ends(tmp_path, name, content):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    settings = SelfWritten(6, 60)
    (tmp_path / name).write_text(json.dumps(content))
    text = written(path, settings)
    np.testing.assert_array_equal(text, foretold(settings, ends=(3, 7)))
    assert np.isin(text[:, :-1], (3, 7)).sum() > 5
    assert not np.array_equal(text, foretold(settings))


def test_lengths(tmp_path):
    cached = prefix_sums(tmp_path / "cached.onnx", cached=True)
    assert written(cached, SelfWritten(1)).shape == (1, 512)
    assert written(prefix_sums(tmp_path / "bare.onnx"), SelfWritten(1)).shape == (1, 128)
    places = prefix_sums(tmp_path / "places.onnx", cached=True, positions=True)
    assert written(places, SelfWritten(1)).shape == (1, POSITIONS)
    with pytest.raises(
        MxortError, match=f"tokens: got 97, expected at most the {POSITIONS} of the model's context"
    ):
        written(places, SelfWritten(1, 97))
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 33, "eos_token_id": null}')
    assert written(cached, SelfWritten(1)).shape == (1, 33)


def test_nonsense_beside_the_model(tmp_path):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    expected = written(path, SelfWritten(2, 9))
    for name, content in (
        ("genai_config.json", "[1"),
        ("config.json", "[]"),
        ("generation_config.json", "{}"),
    ):
        (tmp_path / name).write_text(content)
    np.testing.assert_array_equal(written(path, SelfWritten(2, 9)), expected)


def test_kept_text_is_not_written_again(tmp_path, monkeypatch):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    cache = tmp_path / "cache"
    first = written(path, SelfWritten(3, 30), cache=cache)
    (file,) = cache.iterdir()

    def forbidden(*arguments):
        raise AssertionError("written again")

    with monkeypatch.context() as patch:
        patch.setattr(self_written, "DecoderLoop", forbidden)
        np.testing.assert_array_equal(written(path, SelfWritten(3, 30), cache=cache), first)
        for other in (
            SelfWritten(4, 30),
            SelfWritten(3, 31),
            SelfWritten(3, 30, 1),
            SelfWritten(3, 30, 0, 0.9),
        ):
            with pytest.raises(AssertionError):
                written(path, other, cache=cache)
        (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
        with pytest.raises(AssertionError):
            written(path, SelfWritten(3, 30), cache=cache)
        (tmp_path / "config.json").unlink()
        prefix_sums(tmp_path / "m.onnx", cached=True, positions=True)  # another model of that name
        with pytest.raises(AssertionError):
            written(path, SelfWritten(3, 30), cache=cache)
    prefix_sums(tmp_path / "m.onnx", cached=True)
    file.write_bytes(file.read_bytes()[:100])  # damaged: written again
    np.testing.assert_array_equal(written(path, SelfWritten(3, 30), cache=cache), first)
    assert np.load(file).shape == (3, 30)
    np.testing.assert_array_equal(written(path, SelfWritten(3, 30), cache=path), first)  # no folder


def test_what_is_told(tmp_path):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    said, steps = [], []
    write(
        model_io.load(path),
        SelfWritten(40, 10),
        progress=lambda what, done: steps.append((what, done)),
        say=said.append,
    )
    (line,) = said
    assert line.startswith("the model writes 40 windows of 10 tokens to calibrate on: about ")
    fractions = [done for _, done in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert steps[-1][0].endswith(" 0 s left")


@pytest.mark.parametrize(
    "settings",
    [{"windows": 0}, {"tokens": -1}, {"seed": -1}, {"temperature": 0.0}, {"temperature": math.inf}],
)
def test_settings_that_mean_nothing(settings):
    with pytest.raises(MxortError, match=next(iter(settings))):
        SelfWritten(**settings)


def test_logits_that_are_no_numbers(tmp_path):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    model = onnx.load(path)
    head = next(t for t in model.graph.initializer if t.name == "head")
    head.CopyFrom(onnx.numpy_helper.from_array(np.full((HIDDEN, VOCABULARY), np.nan, np.float32), "head"))
    onnx.save(model, path)
    with pytest.raises(MxortError, match=r"m\.onnx: writes no text: its logits are not finite"):
        written(path, SelfWritten(2, 5))


def test_a_model_in_memory(tmp_path):
    path = prefix_sums(tmp_path / "m.onnx", cached=True)
    source = model_io.from_memory(onnx.load(path))
    text = np.stack(list(write(source, SelfWritten(2, 20))))
    np.testing.assert_array_equal(text, written(path, SelfWritten(2, 20)))
    report = mxort.convert(onnx.load(path), calibration=SelfWritten(4, 20), convert_lm_head=True)
    assert {site.node: site.algorithm for site in report.converted}["mix"] == "mr-gptq"


def test_a_conversion_on_it(tmp_path):
    """Converted on its own text a decoder is nearer to itself than rounded, on other text than that."""
    source = sliding_window(tmp_path / "m.onnx", layers=1)
    held_out = list(write(model_io.load(source), SelfWritten(8, 64, seed=1)))
    kl = {}
    for name, calibration in (("rounded", None), ("self", "self")):
        report = mxort.convert(
            source, tmp_path / name, calibration=calibration, min_elements=1, table_format="float"
        )
        kl[name] = evaluate(source, tmp_path / name, held_out).metrics["kl"]
        assert ("wrote itself" in report.calibration) == (calibration is not None)
    assert "32 windows of 512 tokens" in report.calibration
    assert 0 < kl["self"] < 0.7 * kl["rounded"], kl


def test_no_decoder_writes_nothing(tmp_path):
    mlp(tmp_path / "m.onnx")
    with pytest.raises(MxortError, match="is no decoder that can write text"):
        mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx", calibration="self")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
