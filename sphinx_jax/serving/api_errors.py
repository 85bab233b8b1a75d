"""Errors of the API, in the form of OpenAI's."""

from typing import Any

from sphinx_jax.core import errors


class ApiError(errors.SphinxError):
  """A request that is refused.

  Args:
    message: for the user, as of `errors.make`.
    status: of HTTP.
    kind: `type` of the error in the body.
    headers: of the response.
  """

  def __init__(
    self,
    message: str,
    status: int = 400,
    kind: str = 'invalid_request_error',
    headers: dict[str, str] | None = None,
  ) -> None:
    super().__init__(message)
    self.status, self.kind, self.headers = status, kind, headers or {}


def make(who: str, got: str, expected: str, do: str, **options: Any) -> ApiError:
  """Returns the error with the message of `errors.make`; `options` are those of `ApiError`."""
  return ApiError(str(errors.make(who, got, expected, do)), **options)


def body(error: Exception) -> dict[str, Any]:
  """Returns the JSON value of an error's response. Only errors for the user show their message."""
  message, kind = 'the server failed; its log has the reason', 'server_error'
  if isinstance(error, errors.SphinxError):
    message, kind = str(error), getattr(error, 'kind', 'invalid_request_error')
  return {'error': {'message': message, 'type': kind, 'param': None, 'code': status(error)}}


def status(error: Exception) -> int:
  """Returns the status of an error's response."""
  if isinstance(error, errors.SphinxError):
    return getattr(error, 'status', 400)
  return 500
