"""Texts that drawings, figures and pages must survive, and a check of pages."""

import html.parser

HOSTILE = {
  'line breaks': 'one\r\ntwo\rthree\n\n\nfour\u2028five\x85six',
  'controls': ''.join(map(chr, range(32))) + '\x7f\x9b',
  'nul': '\0',
  'terminal': '\x1b[2J\x1b]0;title\x07',
  'surrogate': 'half \ud83d of an emoji \udcff',
  'emoji': '\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea',
  'right to left': 'שלום \u202eevil\u2066 مرحبا',
  'combining': 'a' + '\u0301' * 500,
  'scripts': '漢字 ไทย हिन्दी \u0b95\u0bcd',
  'noncharacters': '\ufffe\uffff\ue000\U0010ffff',
  'long word': 'x' * 100_000,
  'long text': 'a ' * 20_000,
  'many lines': 'a\n' * 20_000,
  'formula': r'$x_{$ costs 5$ and \\frac{ $\\nosuch$',
  'format': '{0} {name} %s %(x)d {{ 7 * 7 }} {% raw %}',
  'script': '<script>alert(1)</script>',
  'attribute': '" onerror="alert(1)" x="',
  'quote': "' onload='alert(1)",
  'url': 'javascript:alert(1)',
  'comment': '--><img src=x onerror=alert(1)></style></title></textarea>',
  'underscore': '_hidden',
  'spaces': ' \t \u3000 ',
  'empty': '',
}


class _Checker(html.parser.HTMLParser):
  """Fails for markup that no template has."""

  def handle_starttag(self, tag, attributes):
    assert tag not in ('script', 'iframe', 'object', 'embed', 'textarea', 'form')
    for name, value in attributes:
      assert not name.startswith('on'), name
      if name in ('href', 'src'):
        assert value.startswith(('#', 'data:image/')), value


def check_page(page):
  """Checks that a page is UTF-8, has no control characters and no script."""
  text = page.decode()
  assert all(character >= ' ' or character == '\n' for character in text)
  _Checker().feed(text)
  return text
