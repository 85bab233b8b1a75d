"""Takes the screenshot of docs/serving.md, while `bash launch/demo.sh` runs.

python -m tests.serving.screenshot docs/page.png [URL]
"""

import sys

from tests.serving import browser as browsers


def take(browser, output, url='http://127.0.0.1:8000/'):
  with browsers.open_page(browser, url) as page:
    page.click('#examples button:has-text("Layout")')
    page.locator('#picture:visible').wait_for()
    page.click('#send')
    page.get_by_text('Copy as curl').wait_for()
    page.check('input[value=reg]', force=True)
    page.hover('header')
    page.screenshot(path=output)


if __name__ == '__main__':
  with browsers.launch() as chromium:
    take(chromium, *sys.argv[1:])
