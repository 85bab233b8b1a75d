"""Log lines while a program is compiled for long: which one, and for how long so far."""

import threading
import time
from typing import Any

from sphinx_jax.core.progress import log

_FIRST_SECONDS, _NEXT_SECONDS = 4.0, 30.0
# JAX reports the start of a compilation as a scalar and its end as a duration, in the same thread.
_COMPILATION = '/jax/core/compile/backend_compile_duration'
_timers: dict[int, threading.Timer] = {}  # By the thread that compiles.


def enable() -> None:
  """Logs every compilation of this process that takes long, from now on."""
  import jax.monitoring  # Here, because the entry points that compile nothing do without it.

  jax.monitoring.register_scalar_listener(_on_start)
  jax.monitoring.register_event_duration_secs_listener(_on_end)


def _on_start(event: str, began: float, fun_name: str = '', **_: Any) -> None:
  if event == _COMPILATION:
    name = fun_name.removeprefix('jit(').removesuffix(')').strip('_')
    _start_timer(threading.get_ident(), name, began, _FIRST_SECONDS)


def _on_end(event: str, *_: Any, **__: Any) -> None:
  if event == _COMPILATION and (timer := _timers.pop(threading.get_ident(), None)):
    timer.cancel()


def _start_timer(thread: int, name: str, began: float, seconds: float) -> None:
  timer = threading.Timer(seconds, _report, (thread, name, began))
  timer.daemon = True
  _timers[thread] = timer
  timer.start()


def _report(thread: int, name: str, began: float) -> None:
  if _timers.get(thread) is threading.current_thread():
    log.info("compiling '%s': %.0f s ...", name, time.time() - began)
    _start_timer(thread, name, began, _NEXT_SECONDS)
