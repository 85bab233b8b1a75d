"""The browser of the tests: Debian's chromium, driven by playwright."""

import contextlib
import shutil

import pytest


@contextlib.contextmanager
def launch():
  """Yields a headless browser with a camera that shows a test image."""
  chromium = shutil.which('chromium')
  if chromium is None:
    pytest.skip('waits for chromium (apt-get install chromium) since 2026-11-30')
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=chromium,
      args=[
        '--no-sandbox',  # Root cannot have one.
        '--use-fake-device-for-media-stream',
        '--use-fake-ui-for-media-stream',
      ],
    )
    yield browser
    browser.close()


@contextlib.contextmanager
def open_page(browser, url, **options):
  """Yields the page at a URL, and checks that it does without other hosts and without errors.

  `page.asked` has the bodies of its requests to the API.

  Args:
    browser: from `launch`.
    url: of the server.
    options: of the browser's context, such as `color_scheme`.
  """
  context = browser.new_context(**{'viewport': {'width': 1280, 'height': 800}, **options})
  context.set_default_timeout(10_000)
  page = context.new_page()
  page.asked, page.failures = [], []

  def note_request(request):
    if not request.url.startswith((url, 'data:', 'blob:')):
      page.failures.append(f'request to {request.url}')
    if request.method == 'POST':
      page.asked.append(request.post_data_json)

  def note_message(message):
    if 'Content Security Policy' in message.text:
      page.failures.append(message.text)

  page.on('request', note_request)
  page.on('console', note_message)
  page.on('pageerror', lambda error: page.failures.append(str(error)))
  load(page, url)
  yield page
  assert not page.failures
  context.close()


def load(page, url):
  """Loads the page anew, without what was done on it."""
  page.asked.clear()
  page.goto(url)
  page.locator('#examples img').first.wait_for()
