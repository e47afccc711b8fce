"""Requests as OpenAI's interface defines them: what is taken, what is refused, what does not matter.

What would change the answer and cannot be done is refused. Fields that are not listed are ignored, as other servers do:
clients send many that concern none but OpenAI. ``top_k``, ``min_tokens``, ``ignore_eos`` and ``repetition_penalty`` are
what other servers added, by the names that they gave them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from mxort.serve.errors import unsupported
from mxort.serve.limits import Limits
from mxort.serve.sampling import Sampling


def _unicode(text: str) -> str:
    """JSON can name halves of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair at {error.start}, expected Unicode text") from None
    return text


_MAX_STOPS, _MAX_STOP_LENGTH = 4, 256
_Text = Annotated[StrictStr, AfterValidator(_unicode)]
_Stop = Annotated[_Text, Field(min_length=1, max_length=_MAX_STOP_LENGTH)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Token = Annotated[StrictInt, Field(ge=0, lt=2**31)]
_Count = Annotated[StrictInt, Field(ge=1, lt=2**31)]

_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "dimensions": (),
    "modalities": (["text"],),
    "audio": (),
}
"""Field -> values, besides null, that mean nothing and are accepted; any other is refused."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: _Text

    def refuse_unsupported(self) -> None:
        """Raises ApiError for what would change the answer and is not done here."""
        for name, value in (self.model_extra or {}).items():
            accepted = _REFUSED.get(name)
            if accepted is None or value is None:
                continue
            if not any(type(value) is type(each) and value == each for each in accepted):
                raise unsupported(name, repr(value)[:80])


class StreamOptions(BaseModel):
    include_usage: StrictBool = False


class _Generate(_Request):
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: StrictBool | None = None
    temperature: Annotated[_Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    repetition_penalty: Annotated[_Number, Field(gt=0, le=10)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    def sampling(self, limits: Limits, room: int, vocabulary: int) -> Sampling:
        """``room``: tokens that fit behind the prompt. Raises ApiError for what is beyond the limits."""
        asked = self.most_tokens
        if asked is not None and asked > limits.max_tokens:
            raise unsupported("max_tokens", f"{asked}, above {limits.max_tokens},")
        if asked is not None and asked > room:
            raise unsupported("max_tokens", f"{asked}, where {room} fit behind the prompt,")
        most = asked if asked is not None else min(limits.max_tokens, room)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=most,
            min_tokens=most if self.ignore_eos else min(self.min_tokens or 0, most),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else min(self.top_k, vocabulary),
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=stop,
        )


class _Part(BaseModel):
    type: Literal["text"]
    text: _Text


class Message(BaseModel):
    """A turn of a conversation. Of parts, those of text are taken; pictures and sound are refused."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Text | list[_Part] | None = None

    def plain(self) -> dict[str, str]:
        """As templates know it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Generate):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: _Count | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(_Generate):
    """One prompt a request, as text or as tokens."""

    prompt: _Text | list[_Token] | Annotated[list[_Text], Field(min_length=1, max_length=1)]


class EmbeddingRequest(_Request):
    input: _Text | list[_Text] | list[_Token] | list[list[_Token]]
    encoding_format: Literal["float", "base64"] | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """Texts, or tokens, one each."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return self.input  # type: ignore[return-value]
