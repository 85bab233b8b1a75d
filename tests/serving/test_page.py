"""The page in a headless browser, on a server whose engine answers with given texts."""

import io
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import boxes, coordinates, errors
from sphinx_jax.miniworld import scene
from sphinx_jax.report import drawing
from sphinx_jax.serving import engine as engines, page_settings
from sphinx_jax.tasks import TASKS
from tests.generate import small as tiny
from tests.serving import browser as browsers, screenshot, scripted, small

WIDTH, HEIGHT, GRAY = 96, 64, 128
BOX = (0.25, 0.30, 0.50, 0.75)
PHONE = {'viewport': {'width': 360, 'height': 740}, 'has_touch': True, 'is_mobile': True}
DETECT = TASKS['detection'].instructions[0]


def png(width=WIDTH, height=HEIGHT, color=(GRAY, GRAY, GRAY), form='PNG', **options):
  file = io.BytesIO()
  Image.new('RGB', (width, height), color).save(file, form, **options)
  return file.getvalue()


def file(name='gray.png', data=None, kind='image/png'):
  return {'name': name, 'mimeType': kind, 'buffer': data or png()}


@pytest.fixture(scope='module')
def fake():
  return scripted.ScriptedEngine()


@pytest.fixture(scope='module')
def url(fake):
  with small.serving(fake) as port:
    yield f'http://127.0.0.1:{port}/'


@pytest.fixture(scope='module')
def browser():
  with browsers.launch() as browser:
    yield browser


@pytest.fixture(scope='module')
def window(browser, url):
  with browsers.open_page(browser, url) as page:
    yield page


@pytest.fixture
def page(window, url, fake):
  fake.script = ['a gray wall']
  browsers.load(window, url)
  yield window
  assert not window.failures


def upload(page, *files):
  count = page.locator('#strip li').count()
  page.set_input_files('#files', list(files or [file()]))
  page.locator('#strip li').nth(count + max(len(files), 1) - 1).wait_for()


def ask(page, text=None, task=None):
  """Sends a question, and waits for the end of the answer."""
  if task:
    page.check(f'input[value={task}]', force=True)
  if text:
    page.fill('textarea >> nth=0', text)
  page.click('#send')
  page.locator('.turn').last.get_by_text('Copy as curl').wait_for()


def answers(page):
  return page.locator('.answer').all_text_contents()


def shown_pixels(page):
  """The image with its drawings, int[Y,X,3]."""
  shot = page.locator('#frame').screenshot()
  return np.asarray(Image.open(io.BytesIO(shot)).convert('RGB')).astype(int)


def bounds(pixels, color):
  """Bounds [x1, y1, x2, y2] of the pixels of a color '#rrggbb', relative to the image."""
  rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
  ys, xs = np.nonzero(np.abs(pixels - rgb).max(-1) < 12)
  assert len(xs), f'nothing is {color}'
  height, width = pixels.shape[:2]
  return np.array([xs.min() / width, ys.min() / height, xs.max() / width, ys.max() / height])


def in_image(box, width=WIDTH, height=HEIGHT):
  """A box on the padded square, relative to the image."""
  return np.array(boxes.unpad_box(box, width, height)) / [width, height, width, height]


def test_boxes_are_drawn_at_their_place_while_the_answer_comes(page, fake):
  other, go_on = (0.6, 0.4, 0.9, 0.6), threading.Event()
  fake.script = [coordinates.format_box(BOX) + ', hat [0.', go_on, '60, 0.40, 0.90, 0.60]']
  upload(page)
  page.check('input[value=detection]', force=True)
  page.click('#send')
  page.locator('#found li').wait_for()
  assert page.locator('#found li').count() == 1 and page.locator('#stop').is_visible()
  assert np.abs(bounds(shown_pixels(page), drawing.PALETTE[0]) - in_image(BOX)).max() < 0.012
  go_on.set()
  page.get_by_text('Copy as curl').wait_for()
  assert page.locator('#found .name').all_text_contents() == ['unnamed', 'hat']
  x1, _, x2, y2 = bounds(shown_pixels(page), drawing.PALETTE[1])  # Its label is above it.
  assert np.abs(np.array([x1, x2, y2]) - in_image(other)[[0, 2, 3]]).max() < 0.012
  assert answers(page) == [f'{coordinates.format_box(BOX)}, hat {coordinates.format_box(other)}']
  assert page.asked[-1]['messages'][0]['content'][1]['text'] == DETECT


def test_pointing_at_an_entry_shows_its_box_and_the_other_way_round(page, fake):
  fake.script = ['cup [0.10, 0.30, 0.30, 0.60], hat [0.60, 0.30, 0.90, 0.60]']
  upload(page)
  ask(page, task='detection')
  cup, hat = (page.locator(f'#frame svg [data-mark="{i}"]') for i in (0, 1))
  opacity = lambda mark: float(mark.evaluate('mark => getComputedStyle(mark).opacity'))
  page.hover('#found li >> nth=1')
  assert (opacity(cup), opacity(hat)) == (0.2, 1)
  cup.hover()
  assert (opacity(cup), opacity(hat)) == (1, 0.2)
  assert 'focus' in page.locator('#found li').nth(0).get_attribute('class')
  page.hover('header')
  assert (opacity(cup), opacity(hat)) == (1, 1)


def test_a_pose_is_drawn_as_a_skeleton(page, fake):
  points = [('left shoulder', (0.2, 0.5)), ('right shoulder', (0.8, 0.5))]
  fake.script = [coordinates.format_keypoints(points)]
  upload(page)
  ask(page, task='pose')
  assert page.locator('#found li').all_text_contents() == ['person 12 points']
  middle = bounds(shown_pixels(page), drawing.side_color(5, 6))
  expected = in_image((0.2, 0.5, 0.8, 0.5))
  assert np.abs(middle - expected).max() < 0.03


TEXTS = [
  'cup [0.10, 0.20, 0.30, 0.40; 0.5, .6, 0.7, 0.8], and hat [0.1, 0.2, 0.3, 0.4]',
  'a <p>red cup</p>[0.1, 0.2, 0.3, 0.4] and <p>no box</p> a <p> hat </p> [0.1, 0.2, 0.3, 0.4]',
  'person [0.1, 0.1, 0.5, 0.9]: nose [0.5, 0.2], left eye [0.48, 0.18]\nperson: nose [0.9, 0.2]',
  '[] [1] [0.1, 0.2, 0.3] [0.1, 0.2, x, 0.4] [0.1, 0.2',
  '[[0.1, 0.2, 0.3, 0.4]] [12345.0, 0, 0, 0] [-0.5, 1e3, 0, 0] [1., 0.12345678901234567, 0, 0]',
  'AND [0.1, 0.2] andy [0.1, 0.2] and. b; [ 0.1 ,0.2 ]</p>[0.3, 0.4]<p>[0.1, 0.2]',
]


def test_the_page_reads_answers_as_the_metrics_do(page):
  found = page.evaluate(
    """async (texts) => {
      const { parseGroups } = await import('./page/answers.js');
      return texts.map((text) => parseGroups(text).map(({ label, numbers }) => [label, numbers]));
    }""",
    TEXTS,
  )
  expected = [
    [[label, [list(each) for each in numbers]] for label, numbers in groups]
    for groups in map(coordinates.parse_groups, TEXTS)
  ]
  assert found == expected


def test_a_region_is_dragged_and_asked_about(page, fake):
  upload(page)
  page.check('input[value=reg]', force=True)
  edges = page.locator('#frame').bounding_box()
  x1, y1, x2, y2 = in_image(BOX)
  at = lambda x, y: (edges['x'] + x * edges['width'], edges['y'] + y * edges['height'])
  page.mouse.move(*at(x2, y1))  # From any corner.
  page.mouse.down()
  page.mouse.move(*at(0.5, 0.5))
  page.mouse.move(*at(x1, y2))
  page.mouse.up()
  assert page.locator('#frame .pending rect').count() == 1
  ask(page)
  text = page.asked[-1]['messages'][0]['content'][1]['text']
  begin, end = TASKS['reg'].instructions[0].split('{}')
  assert text.startswith(begin) and text.endswith(end)
  ((_, ((*box,),)),) = coordinates.parse_groups(text)
  assert np.abs(np.array(box) - BOX).max() < 0.011
  assert page.locator('#frame .asked rect').count() == 1


def test_a_second_turn_continues_the_conversation(page, fake):
  upload(page)
  ask(page, 'What is this?')
  fake.script = ['gray']
  ask(page, 'Which color?')
  image = {'type': 'image_url', 'image_url': {'url': page.locator('#picture').get_attribute('src')}}
  assert page.asked[-1]['messages'] == [
    {'role': 'user', 'content': [image, {'type': 'text', 'text': 'What is this?'}]},
    {'role': 'assistant', 'content': 'a gray wall'},
    {'role': 'user', 'content': 'Which color?'},
  ]
  assert answers(page) == ['a gray wall', 'gray']
  page.click('#restart')
  assert not answers(page)
  ask(page, 'And now?')
  assert page.asked[-1]['messages'] == [
    {'role': 'user', 'content': [image, {'type': 'text', 'text': 'And now?'}]}
  ]


def test_settings_are_sent(page):
  page.click('summary')
  page.fill('#temperature', '-1')
  page.click('summary')
  page.click('#send')  # Opens the settings to show what is wrong.
  for name, value in {'temperature': '0.5', 'top-p': '0.9', 'max-tokens': '7', 'seed': '3'}.items():
    page.fill(f'#{name}', value)
  ask(page, 'Hello')
  sent = {key: page.asked[-1][key] for key in ('temperature', 'top_p', 'max_tokens', 'seed')}
  assert sent == {'temperature': 0.5, 'top_p': 0.9, 'max_tokens': 7, 'seed': 3}


def test_an_answer_that_is_cut_is_marked(page, fake):
  fake.script = ['a gray', 'length']
  ask(page, 'What is this?')
  assert page.locator('.note').text_content() == 'Cut at 512 tokens.'


def test_errors_are_shown_and_the_question_can_be_asked_again(page, fake):
  go_on = threading.Event()
  fake.script = ['a gray ', go_on, ValueError('secret')]  # In the middle of a stream.
  upload(page)
  error = lambda: page.locator('.error').text_content()
  page.fill('textarea >> nth=0', 'What is this?')
  page.click('#send')
  page.get_by_text('a gray').wait_for()
  go_on.set()
  page.locator('.error').wait_for()
  assert error() == 'the server failed; its log has the reason'
  assert page.locator('textarea >> nth=0').input_value() == 'What is this?'
  fake.script = [ValueError('secret')]  # In place of an answer.
  ask(page)
  assert error() == 'the server failed; its log has the reason'
  page.context.set_offline(True)
  ask(page)
  assert error() == 'The server cannot be reached. Is it still running?'
  page.context.set_offline(False)
  fake.script = ['a gray wall']
  ask(page)
  assert answers(page) == ['a gray wall'] and not page.locator('.error').count()
  assert len(page.asked[-1]['messages']) == 1


def test_the_servers_own_words_are_shown_for_a_wrong_request(page):
  page.click('summary')
  page.fill('#seed', '1e300')
  ask(page, 'Hello')
  assert 'seed' in page.locator('.error').text_content()


def test_an_answer_is_stopped_and_what_came_is_kept(page, fake):
  go_on = threading.Event()
  fake.script = ['a gray', go_on, ' wall']
  for stop in (lambda: page.click('#stop'), lambda: page.keyboard.press('Escape')):
    page.fill('textarea >> nth=0', 'What is this?')
    page.click('#send')
    page.locator('.answer').last.get_by_text('a gray').wait_for()
    stop()
    page.locator('.turn').last.get_by_text('Stopped.').wait_for()
  until = time.monotonic() + 10
  while not fake.requests[-1].is_cancelled:
    assert time.monotonic() < until
    time.sleep(0.01)
  go_on.set()
  fake.script = ['yes']
  ask(page, 'Go on?')
  assert [message['content'] for message in page.asked[-1]['messages']] == [
    *('What is this?', 'a gray') * 2,
    'Go on?',
  ]


def test_an_image_is_pasted(page):
  page.evaluate(
    """(bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], 'it.png', { type: 'image/png' }));
      document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer }));
    }""",
    list(png()),
  )
  page.locator('#strip li').wait_for()
  ask(page, task='caption')
  assert len(page.asked[-1]['messages'][0]['content']) == 2


def test_a_photo_is_taken(page):
  page.click('#camera')
  page.click('.take')
  page.locator('#strip li').wait_for()
  ask(page, task='caption')
  assert page.asked[-1]['messages'][0]['content'][0]['image_url']['url'][:15] == 'data:image/jpeg'


def test_several_images_are_asked_about(page, fake):
  fake.script = ['[0.00, 0.00, 0.99, 0.99]']
  upload(page, file('a.png'), file('b.png', png(64, 64, (200, 0, 0))))
  ask(page, 'Compare the two.')
  sent = [part['type'] for part in page.asked[-1]['messages'][0]['content']]
  assert sent == ['image_url', 'image_url', 'text'] and len(fake.requests[-1].images) == 2
  # Boxes are drawn on the image that is chosen; the square one has no padding.
  assert page.locator('#found small').text_content() == '0, 0 – 63, 63'
  page.click('[aria-label="Show image 1, a.png"]')
  assert page.locator('#found small').text_content() == '0, -16 – 95, 79'
  page.click('[aria-label="Remove image 1, a.png"]')
  assert page.locator('#strip li').count() == 1 and not answers(page)


def test_photos_are_sent_upright_and_not_too_large(page, fake):
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by 90 degrees.
  turned = png(40, 20, form='JPEG', exif=exif)
  upload(page, file('turned.jpg', turned, 'image/jpeg'), file('large.png', png(3000, 1500)))
  ask(page, 'What is this?')
  urls = page.locator('#strip img').evaluate_all('all => all.map((image) => image.src)')
  sizes = page.evaluate(
    """(urls) => Promise.all(urls.map(async (url) => {
      const image = new Image();
      image.src = url;
      image.style.imageOrientation = 'none';
      await image.decode();
      return [image.naturalWidth, image.naturalHeight];
    }))""",
    urls,
  )
  assert sizes == [[20, 40], [2048, 1024]]


def test_what_is_no_image_is_refused(page):
  page.set_input_files('#files', [file('notes.png', b'no image')])
  page.get_by_text('notes.png: the browser cannot read this image').wait_for()
  page.check('input[value=caption]', force=True)
  page.click('#send')
  assert page.locator('#status').text_content() == 'Choose an image first.' and not page.asked


def test_the_curl_command_works(browser, url, fake):
  fake.script = ["it's a gray wall"]
  options = {'permissions': ['clipboard-read', 'clipboard-write']}
  with browsers.open_page(browser, url, **options) as page:
    upload(page)
    ask(page, 'What\'s "this"? $HOME `pwd` \\ é')
    page.get_by_text('Copy as curl').click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('curl')")
    command = page.evaluate('navigator.clipboard.readText()')
    question = page.asked[-1]['messages'][-1]['content'][1]['text']
  done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, timeout=20)
  answer = json.loads(done.stdout)
  assert answer['choices'][0]['message']['content'] == "it's a gray wall"
  sent = fake.model.tokenizer.decode(list(fake.requests[-1].prompt.ids))
  assert question in sent and len(fake.requests[-1].images) == 1


def test_the_curl_command_is_shown_where_there_is_no_clipboard(page):
  page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
  ask(page, 'Hello')
  page.get_by_text('Copy as curl').click()
  assert page.locator('#copied textarea').input_value().startswith("curl 'http://127.0.0.1")


def test_everything_works_from_the_keyboard(page, fake):
  fake.script = ['cup [0.10, 0.30, 0.30, 0.60], hat [0.60, 0.30, 0.90, 0.60]']

  def tab_to(selector):
    for _ in range(60):
      page.keyboard.press('Tab')
      if page.evaluate('selector => document.activeElement.matches(selector)', selector):
        return
    raise AssertionError(f'no Tab reaches {selector}')

  tab_to('#files')
  tab_to('#examples li:first-child button')
  page.keyboard.press('Enter')
  page.locator('#picture:visible').wait_for()
  page.wait_for_function("() => document.activeElement.id === 'send'")
  page.keyboard.press('Enter')
  page.get_by_text('Copy as curl').wait_for()
  tab_to('#found li:nth-child(2) button')
  assert page.locator('#frame svg .focus').get_attribute('data-mark') == '1'
  tab_to('[name=task]:checked')
  page.keyboard.press('ArrowRight')
  assert page.locator('[name=task]:checked').get_attribute('value') == 'rec'
  tab_to('.instruction input')
  page.keyboard.press('Control+A')
  page.keyboard.type('blue [cup]')
  page.keyboard.press('Enter')
  page.get_by_text('Copy as curl').nth(1).wait_for()
  instruction = TASKS['rec'].instructions[0]
  assert page.asked[-1]['messages'][-1]['content'] == instruction.format('blue [cup]')


def test_a_phone_scrolls_in_one_direction_only(browser, url, fake):
  fake.script = ['cup [0.10, 0.30, 0.30, 0.60], ' + 'x' * 300]
  with browsers.open_page(browser, url, **PHONE) as page:
    overflow = lambda: page.evaluate('document.documentElement.scrollWidth - innerWidth')
    assert overflow() <= 0
    page.tap('#examples li:nth-child(3) button')
    page.locator('#picture:visible').wait_for()
    page.tap('#send')
    page.get_by_text('Copy as curl').wait_for()
    page.tap('summary')
    assert overflow() <= 0
    small_targets = page.locator('button:visible, .chip').evaluate_all(
      'all => all.map((each) => each.getBoundingClientRect().height).filter((side) => side < 18)'
    )
    assert not small_targets


def test_a_region_is_dragged_with_a_finger(browser, url):
  with browsers.open_page(browser, url, **PHONE) as page:
    upload(page)
    page.tap('.chip:has-text("Region")')
    page.locator('#frame').scroll_into_view_if_needed()
    edges = page.locator('#frame').bounding_box()
    x1, y1, x2, y2 = in_image(BOX)
    session = page.context.new_cdp_session(page)
    for kind, x, y in (('Start', x1, y1), ('Move', 0.5, 0.5), ('Move', x2, y2)):
      point = {'x': edges['x'] + x * edges['width'], 'y': edges['y'] + y * edges['height']}
      session.send('Input.dispatchTouchEvent', {'type': f'touch{kind}', 'touchPoints': [point]})
    session.send('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
    text = page.locator('.instruction input').input_value()
  ((_, (box,)),) = coordinates.parse_groups(text)
  assert np.abs(np.array(box) - BOX).max() < 0.011


def luminance(color):
  rgb = [int(n) / 255 for n in re.findall(r'\d+', color)[:3]]
  linear = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in rgb]
  return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_in_light_and_dark(browser, url, fake, scheme):
  fake.script = ['cup [0.10, 0.30, 0.30, 0.60]']
  with browsers.open_page(browser, url, color_scheme=scheme) as page:
    upload(page)
    ask(page, 'What is this?')
    fake.script = [errors.make('engine', 'fire', 'none', 'run')]
    ask(page, 'What is this?')
    page.get_by_text('Show on image').click()
    # The text and the first ground below it that is not transparent, as [color, color].
    pairs = page.evaluate(
      """() => ['h1', '#model', '.answer', '.numbers', '.question p', '.error', '.quiet', '#send',
        '.chip:has(:checked)', '.chip:not(:has(:checked))', '#found .name', '#found small',
        '#examples span', 'summary', 'textarea'].map((selector) => {
        let element = document.querySelector(selector);
        const { color } = getComputedStyle(element);
        let ground = 'rgba(0, 0, 0, 0)';
        for (; ground === 'rgba(0, 0, 0, 0)'; element = element.parentElement) {
          ground = getComputedStyle(element).backgroundColor;
        }
        return [selector, color, ground];
      })"""
    )
  for selector, *colors in pairs:
    low, high = sorted(map(luminance, colors))
    assert (high + 0.05) / (low + 0.05) >= 4.5, f'{selector}: {colors}'
  ground = luminance(pairs[2][2])
  assert ground < 0.05 if scheme == 'dark' else ground > 0.9


def test_text_is_never_markup(page, fake):
  evil = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'
  fake.script = [f'{evil} [0.10, 0.30, 0.30, 0.60]']
  upload(page, file(f'{evil[:40]}.png'))
  ask(page, evil)
  assert answers(page) == [f'{evil} [0.10, 0.30, 0.30, 0.60]']
  assert page.locator('.question p').text_content() == evil
  assert page.locator('#found .name').text_content() == evil
  assert page.locator('.labels span').text_content() == evil
  page.wait_for_timeout(100)
  assert page.evaluate('window.evil') is None
  assert page.locator('main img[src=x], main script').count() == 0


def test_a_key_is_asked_for_if_the_server_needs_one(browser, fake):
  fake.script = ['yes']
  with small.serving(fake, keys=['open sesame']) as port:
    with browsers.open_page(browser, f'http://127.0.0.1:{port}/') as page:
      ask(page, 'Hello')
      assert 'API key' in page.locator('.error').text_content()
      page.click('summary')
      page.fill('#key input', 'open sesame')
      ask(page)
      assert answers(page) == ['yes']


@pytest.fixture
def engine():
  """The engine of the tiny model, which compiles what it needs."""
  engine = engines.Engine(small.model(), small.ROWS, small.LENGTH)
  engine.start()
  yield engine
  engine.stop()


def test_a_model_answers(browser, engine):
  pixels, question = tiny.images(1)[0], 'What is the color?'
  expected = engine.model.answers([[(question, None)]], [pixels], max_new_tokens=12)[0]
  with small.serving(engine) as port:
    with browsers.open_page(browser, f'http://127.0.0.1:{port}/') as page:
      upload(page, file(data=scene.png(pixels)))
      page.click('summary')
      page.fill('#max-tokens', '12')
      ask(page, question)
      assert [text.strip() for text in answers(page)] == [expected]


def test_the_screenshot_of_the_docs_is_taken(browser, url, fake, tmp_path):
  fake.script = ['cup [0.10, 0.30, 0.30, 0.60]']
  screenshot.take(browser, tmp_path / 'page.png', url)
  assert Image.open(tmp_path / 'page.png').size == (1280, 800)


def test_the_files_of_the_page_and_no_others_are_served(url):
  for path, kind in (('', 'text/html'), ('page/app.js', 'text/javascript')):
    with urllib.request.urlopen(url + path) as response:
      assert response.headers.get_content_type() == kind
      policy = response.headers['Content-Security-Policy']
      assert "default-src 'none'" in policy and 'unsafe' not in policy
  for path in ('page/nothing.js', 'page/..%2Fapi.py', 'page/__init__.py'):
    with pytest.raises(urllib.error.HTTPError, match='404'):
      urllib.request.urlopen(url + path)


def test_examples_and_tasks_have_the_instructions_of_the_tasks():
  tasks = {task['task']: task for task in page_settings.tasks()}
  for name, task in tasks.items():
    assert task['instruction'] == TASKS[name].instructions[0]
    assert task['instruction'].count('{}') == len(task['blanks'])
  for example in page_settings.examples():
    assert len(example.blanks) == len(tasks[example.task]['blanks']) and all(example.blanks)
