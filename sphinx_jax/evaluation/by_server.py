"""Answers of a server with the API of OpenAI, such as sphinx_jax.serve (extra `serve`)."""

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib import parse

import openai

from sphinx_jax.core import errors, file_forms
from sphinx_jax.data import images as images_lib
from sphinx_jax.data.record import BadExample
from sphinx_jax.evaluation.benchmarks.benchmark import Question

_CALLS = 8  # A call of `answer` has this many questions for each connection.
_RETRIES = 8  # Of a request, if the server is busy or a connection fails. The client waits between.
_SECONDS = 600.0  # In which a response must come.
# Of a request that this server will refuse again: not valid, too large, or not to be processed.
_REFUSALS = (400, 413, 422)


class ByServer:
  """Greedy answers of a model that a server has. Several requests are sent at a time.

  The server's own template is used. Images stand in front of the first question.

  Attributes:
    name: of the model.
    style: the model's dialog template, if the server gives it, else ''.
    fingerprint: what changes if the server gets other weights, if it gives that, else the name.

  Args:
    url: where the API is, for instance http://127.0.0.1:8000/v1. The environment variable
      OPENAI_API_KEY has the key, if there is one.
    name: of the model; '' takes the only one.
    connections: requests at a time.

  Raises:
    SphinxError: no server there, a wrong key, or no such model.
  """

  def __init__(self, url: str, name: str = '', connections: int = 16) -> None:
    if parse.urlsplit(url).scheme not in ('http', 'https'):
      raise errors.make('--server', f"'{url}'", 'http://HOST:PORT/v1', 'correct the address')
    base = url if parse.urlsplit(url).path.strip('/') else f'{url.rstrip("/")}/v1'
    self._who, self._connections = f"server '{base}'", connections
    key = os.environ.get('OPENAI_API_KEY', 'none')
    self._client = openai.OpenAI(base_url=base, api_key=key, max_retries=_RETRIES, timeout=_SECONDS)
    self.per_call = _CALLS * connections
    model = self._model(name)
    self.name: str = model.id
    details: dict[str, Any] = model.model_extra or {}
    self.style: str = details.get('style', '')
    self.fingerprint: str = details.get('fingerprint', model.id)

  def _model(self, name: str) -> Any:
    """The entry of a model in the server's list."""
    try:
      models = {model.id: model for model in self._client.with_options(max_retries=1).models.list()}
    except openai.OpenAIError as error:
      raise self._failed(error) from error
    if name and name not in models:
      raise errors.unknown(f'model of {self._who}', name, models)
    if not name and len(models) != 1:
      raise errors.make(
        self._who, f'{len(models)} models', 'one', f'name it with --model: {", ".join(models)}'
      )
    return models[name or next(iter(models))]

  def read_image(self, data: bytes) -> str:
    """Returns an image file as a data URL.

    Raises:
      BadExample: an image that cannot be read, or of a format that such servers do not take.
    """
    images_lib.decode(data)
    form = file_forms.name(data)
    if form not in file_forms.API_IMAGES:
      expected = ', '.join(file_forms.API_IMAGES)
      raise BadExample('image of another format', f'{form}, expected one of {expected}')
    return f'data:image/{form.lower()};base64,{base64.b64encode(data).decode()}'

  def prompt(self, question: Question, images: int, prefix: str) -> list[dict[str, Any]]:
    """Returns the messages that ask a question, without its images."""
    messages = []
    for asked, answered in [*question.history, (question.prompt, prefix.strip())]:
      messages.append({'role': 'user', 'content': [{'type': 'text', 'text': asked}]})
      if answered:
        messages.append({'role': 'assistant', 'content': answered})
    return messages

  def answer(
    self,
    questions: Sequence[Question],
    prompts: Sequence[list[dict[str, Any]]],
    images: Sequence[Sequence[str]],
    max_new_tokens: int,
  ) -> list[str | BadExample]:
    """Answers questions, several at a time; BadExample for those that the server refuses.

    Raises:
      SphinxError: the server is gone, or refuses every request.
    """

    def ask(messages: list[dict[str, Any]], urls: Sequence[str]) -> str | BadExample:
      parts = [{'type': 'image_url', 'image_url': {'url': url}} for url in urls]
      first = {**messages[0], 'content': [*parts, *messages[0]['content']]}
      return self._ask([first, *messages[1:]], max_new_tokens)

    with ThreadPoolExecutor(self._connections) as pool:
      return list(pool.map(ask, prompts, images))

  def _ask(self, messages: list[dict[str, Any]], max_new_tokens: int) -> str | BadExample:
    try:
      response = self._client.chat.completions.create(
        model=self.name, messages=messages, temperature=0.0, max_tokens=max_new_tokens
      )
    except openai.APIStatusError as error:
      if error.status_code in _REFUSALS:
        return BadExample('refused by the server', _message(error))
      raise self._failed(error) from error
    except openai.OpenAIError as error:
      raise self._failed(error) from error
    return (response.choices[0].message.content or '').strip()

  def _failed(self, error: Exception) -> errors.SphinxError:
    return errors.make(
      self._who,
      _message(error),
      'the API of OpenAI',
      'start it (python -m sphinx_jax.serve), check the address and OPENAI_API_KEY, and run this '
      'again',
    )


def _message(error: Exception) -> str:
  """The reason of an error, as the server gives it."""
  body = getattr(error, 'body', None)
  return str(body['message'] if isinstance(body, dict) and 'message' in body else error)
