"""Requests of the OpenAI API as pydantic models. What would change an answer and is not computed is
refused; no field is ignored in silence, save those that do not concern the answer."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from sphinx_jax.generate import running_batch
from sphinx_jax.serving import api_errors

_MOST_MESSAGES = 1000


class _Strict(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class TextPart(_Strict):
  type: Literal['text']
  text: str


class ImageUrl(_Strict):
  url: str
  detail: Literal['auto', 'low', 'high'] = 'auto'  # Every image has the size of the model.


class ImagePart(_Strict):
  type: Literal['image_url']
  image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator='type')]


class Message(_Strict):
  role: Literal['system', 'developer', 'user', 'assistant']
  content: str | list[Part]
  refusal: None = None  # Clients send back the messages that they got.


class StreamOptions(_Strict):
  include_usage: bool = False


class ResponseFormat(_Strict):
  """'json_object' gives the boxes and points of the answer (places.py)."""

  type: Literal['text', 'json_object'] = 'text'


class ChatRequest(_Strict):
  """The body of `/v1/chat/completions`."""

  model: str
  messages: list[Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
  max_tokens: int | None = Field(None, ge=1)
  max_completion_tokens: int | None = Field(None, ge=1)
  temperature: float | None = Field(None, ge=0, le=2)
  top_p: float | None = Field(None, ge=1e-6, le=1)
  seed: int | None = Field(None, ge=-(2**63), lt=2**63)
  stop: str | list[str] | None = None
  n: int | None = Field(None, ge=1, le=128)
  logprobs: bool | None = None
  top_logprobs: int | None = Field(None, ge=0, le=running_batch.TOP)
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  response_format: ResponseFormat | None = None
  # They do not concern the answer.
  user: str | None = None
  metadata: dict[str, str] | None = None
  store: bool | None = None
  # They have one value that changes nothing.
  frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
  presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
  logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
  tools: Annotated[list[Any], Field(max_length=0)] | None = None
  tool_choice: Literal['none', 'auto'] | None = None

  @pydantic.field_validator('stop')
  @classmethod
  def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > 4 or not all(1 <= len(text) <= 256 for text in texts):
      raise ValueError('expected at most 4 texts of 1 to 256 characters')
    return stop

  @pydantic.model_validator(mode='after')
  def _check_together(self) -> 'ChatRequest':
    if self.top_logprobs is not None and not self.logprobs:
      raise ValueError('top_logprobs without logprobs')
    if self.max_tokens and self.max_completion_tokens:
      raise ValueError('max_tokens and max_completion_tokens')
    return self

  @property
  def stops(self) -> list[str]:
    """Texts that end the answer."""
    return [self.stop] if isinstance(self.stop, str) else self.stop or []

  @property
  def urls(self) -> list[str]:
    """URLs of the images, in order."""
    parts = [part for message in self.messages for part in _parts(message)]
    return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

  @property
  def characters(self) -> int:
    """Length of all texts."""
    parts = [part for message in self.messages for part in _parts(message)]
    return sum(len(part.text) for part in parts if isinstance(part, TextPart))


def _parts(message: Message) -> list[TextPart | ImagePart]:
  if isinstance(message.content, str):
    return [TextPart(type='text', text=message.content)]
  return message.content


def plain_messages(request: ChatRequest) -> list[dict[str, Any]]:
  """The messages as `generate.messages.read` takes them."""
  return [
    {
      'role': 'system' if message.role == 'developer' else message.role,
      'content': [
        {'type': 'text', 'text': part.text} if isinstance(part, TextPart) else {'type': 'image'}
        for part in _parts(message)
      ],
    }
    for message in request.messages
  ]


def parse(body: bytes) -> ChatRequest:
  """Reads a body.

  Raises:
    ApiError: it is not JSON, or not a request. The message names the field.
  """
  try:
    return ChatRequest.model_validate_json(body)
  except pydantic.ValidationError as error:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f'{".".join(map(str, e["loc"])) or "body"}: {e["msg"]}' for e in found[:3]]
    raise api_errors.make(
      'request', '; '.join(lines)[:500], 'a request of the chat API', 'see docs/serving.md'
    ) from None
