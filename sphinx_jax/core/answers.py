"""Reads short answers in the text of a model: a choice, yes or no, a number.

Models put Markdown, LaTeX, brackets, sentences and reasons around what they mean. The readers here
accept what lmms-eval and VLMEvalKit accept without asking a language model. An answer that names
two choices, or both yes and no, names none.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# Templates of chats may give the first mark themselves, and a cut answer has no last one.
_THOUGHT = re.compile(
  r'[<◁]think(?:ing)?[>▷].*?(?:[<◁]/think(?:ing)?[>▷]|\Z)'
  r'|\A(?:(?![<◁]think).)*[<◁]/think(?:ing)?[>▷]',
  re.DOTALL | re.IGNORECASE,
)
_MARKUP = re.compile(
  r'\*+|`+|\$+|__+|\\(?:text|math)\w*|\\[()\[\]]|</?(?:b|i|em|strong|s|u)>|<\|\w+\|>'
)
# Markup around a whole answer, which must not be removed inside one: '2*3', 'snake_case'.
_WRAPPERS = re.compile(
  r'(?P<mark>\*{1,3}|_{1,2}|`+|\$+)(?P<marked>[^*_`$]+)(?P=mark)\.?'
  r'|\\(?:boxed|(?:text|math)\w*)\{(?P<argument>(?:[^{}]|\{[^{}]*\})*)\}\.?'
  r'|["“\'‘](?P<quoted>[^"“”‘’]+)["”\'’]\.?'
  r'|<answer>(?P<tagged>.*)</answer>|<\|begin_of_box\|>(?P<box>.*)<\|end_of_box\|>',
  re.DOTALL | re.IGNORECASE,
)
_STATED = re.compile(
  r'\b(?:answer|result|total|value)\s*(?:is\b\s*:?|[:=])(?:\s*\n)?([^\n]+)', re.IGNORECASE
)
_OUTER = ' \t\r\n.,;:!?"\'()[]“”‘’'
_ARTICLE = re.compile(r'^(?:an?|the)\s+')

# No part of a word or a number. Other scripts touch Latin letters without a space.
_START = r"(?<![A-Za-zÀ-ɏ0-9-])(?<![A-Za-zÀ-ɏ]['’])"
_END = r"(?![A-Za-zÀ-ɏ0-9]|['’-][A-Za-z])"
# 'a', 'i' and 'I' are words, unless something closes them.
_LETTER = rf'{_START}([A-HJ-Zb-hj-z]|[aiI](?=\s*(?:$|[.,):;\]}}!"\n]))){_END}'
_GAP = r'[\s:=>"“\'‘(\[{-]*'
_IS = r'(?:\s+(?:is|would be|should be|must be|will be))?'
_THE_OPTION = r'(?i:(?:the\s+)?(?:option|choice|letter)\b)?'
# How a letter is named, the most explicit first.
_NAMING = [
  re.compile(pattern)
  for pattern in (
    rf'(?:\\boxed|(?i:\bfinal answer(?:\s+is)?)){_GAP}{_THE_OPTION}{_GAP}{_LETTER}',
    rf'(?:(?i:\banswer{_IS})|答案是?){_GAP}{_THE_OPTION}{_GAP}{_LETTER}',
    rf'{_LETTER}\W{{0,3}}\s*is\s+(?:the\s+)?(?:most\s+)?(?:answer|appropriate|best|correct|right)\b',
    rf"(?i:\b(?:so|thus|hence|therefore|it['’]s|it is)\b,?){_GAP}{_THE_OPTION}{_GAP}{_LETTER}",
    rf'(?i:\b(?:option|choice|letter|choose|chose|select|pick|go with)\b{_IS}){_GAP}{_THE_OPTION}'
    rf'{_GAP}{_LETTER}',
    rf'\A[^\w\\]*{_LETTER}(?:\s*\Z|\s*[.,):;\]}}>]|\s+[–—-]\s|\s*\n)',
  )
]
_CAPITAL = re.compile(rf'{_START}([A-Z]){_END}')
_NOT = re.compile(
  r"(?:\bnot|n['’]t|\brather than|\binstead of)\s*(?:(?:an?|the|just|option)\s+)*[([\"'“‘]*$",
  re.IGNORECASE,
)
_IS_WRONG = re.compile(
  r"[)\]}\"'’”]*\s*(?:is|was|looks|seems)\s*(?:not\b|n['’]t\b|wrong\b|incorrect\b|false\b)"
)
_BETWEEN = {'and', 'or', 'nor', 'vs', 'versus', 'both', 'either', 'neither'}
_ARTICLE_AHEAD = re.compile(
  r'\s+(?!(?:and|or|nor|is|because|since|as|but|not|rather|instead)\b)[a-z]'
)
_ANOTHER = re.compile(
  r'[)\]}.\s"]*(?:[,/&+]|\b(?:and|or)\b)\s*(?:(?:and|or)\s+)?[(\["]*(?=' + _CAPITAL.pattern + ')'
)
_LISTED = re.compile(rf'{_START}\(?([A-Z])[):]\s|^\s*([A-Z])\.\s', re.MULTILINE)

_WORD = r"[^\W\d_]+(?:['’][^\W\d_]+)?"
_SYNONYMS = {**dict.fromkeys(('yeah', 'yep', 'yup'), 'yes'), **dict.fromkeys(('nope', 'nah'), 'no')}

_NUMBER = re.compile(
  r'(?:(?:about|approximately|approx\.?|around|roughly|~|≈|(?:[a-z]\w*\s*)?=)\s*)?'
  r'(?P<sign>[+-]?)\s*(?:USD?|EUR|GBP|Rs\.?)?\s*[$€£¥₹]?\s*(?P<minus>-?)'
  r'(?:(?P<continental>\d{1,3}(?:\.\d{3})+,\d+)|(?P<number>\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d*)?'
  r"|\d{1,3}(?:[ '’]\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+))"
  r'\s*(?P<unit>%|[^\W\d_]+\^?[23]?(?:[\s/.]+[^\W\d_]+)?|[$€£¥₹°][a-z]?|)\s*\.?',
  re.IGNORECASE,
)
_SCALES = {
  **dict.fromkeys(('%', 'percent', 'pct'), 0.01),
  **dict.fromkeys(('k', 'thousand'), 1e3),
  **dict.fromkeys(('m', 'mn', 'million'), 1e6),
  **dict.fromkeys(('b', 'bn', 'billion'), 1e9),
  **dict.fromkeys(('t', 'tn', 'trillion'), 1e12),
}


def without_thought(text: str) -> str:
  """Returns an answer without the reasoning before it, '<think>...</think>'."""
  return _THOUGHT.sub('', text)


def unwrapped(text: str) -> str:
  """Returns an answer without the markup around it: '**red**' -> 'red'."""
  text = without_thought(text).strip()
  while match := _WRAPPERS.fullmatch(text):
    parts = (part for key, part in match.groupdict().items() if key != 'mark')
    text = next(part for part in parts if part is not None).strip()
  return text


def forms(text: str) -> list[str]:
  """Returns the texts as which an answer may count: as it is, unwrapped, and what it states.

  'The answer is **red**.' also counts as 'red'.
  """
  result = [text, unwrapped(text)]
  stated = _STATED.findall(_plain(text))
  if stated:
    result.append(stated[-1].strip(' \t"“”.'))
  return list(dict.fromkeys(result))


def choice(text: str, choices: Mapping[str, str] | None = None) -> str | None:
  """Returns the letter of the one choice that an answer names, or None.

  It is named by its letter ('B', '(b)', '**B**', 'B: cat', 'The answer is B because ...'), or by
  its text. A choice inside another one ('1' inside '11') is not named by it.

  Args:
    text: the answer.
    choices: {letter: text}. If it is None or empty, any letter is one of a choice, and there are no
      texts.
  """
  choices = choices or {}
  plain = _plain(text)
  bare = plain.strip(_OUTER + '{}<>-•#').upper()
  if re.fullmatch('[A-Z]', bare) and (not choices or bare in choices):
    return bare
  for form in forms(text):
    same = [letter for letter, option in choices.items() if _outline(form) == _outline(option)]
    if same:
      return same[0] if len(same) == 1 else None
  words = set(re.findall(r'[^\W_]+', plain)) - _BETWEEN
  if words and all(re.fullmatch('[A-Z]', word) for word in words):  # 'A; C'
    return _only(_known(words, choices))
  for naming in _NAMING:
    named = _named(plain, naming, choices)
    if named:
      return _only(named)
  for pair in (('yes', 'no'), ('true', 'false')):
    letters = {_outline(option): letter for letter, option in choices.items()}
    if set(pair) <= set(letters) and (word := either(text, pair)):
      return letters[word]
  spans = _choice_spans(plain, choices)
  # A letter inside the text of a choice ('vitamin C') names no choice.
  texts = [span for found in spans.values() for span in found]
  found = [
    match
    for match in _CAPITAL.finditer(plain)
    if _is_letter(plain, match) and not any(_inside(match.span(), span) for span in texts)
  ]
  return _only(_known(_affirmed(plain, found), choices) or set(spans))


def either(text: str, words: Sequence[str] = ('yes', 'no')) -> str | None:
  """Returns which of two words an answer gives, or None if it gives neither or both.

  The first word decides ('Yes, there is no doubt'), then 'the answer is ...', then the only one of
  the two that occurs ('There is no dog').
  """
  plain = re.sub(r'\b(?:no (?:idea|clue|way to)|not (?:yes|no))\b', '', _plain(text).lower())
  found = [_SYNONYMS.get(word, word) for word in re.findall(_WORD, plain)]
  if len(found) == 1 and len(found[0]) == 1:  # 'Y'
    return next((word for word in words if word[0] == found[0]), None)
  one = '|'.join(words)
  if re.search(rf'\b(?:{one})\s*(?:/|,?\s*\b(?:and|or)\b)\s*(?:{one})\b', plain):
    return None
  if found and found[0] in words:
    return found[0]
  stated = re.findall(rf'\banswer(?:\s+is)?\W*({one})\b', plain)
  named = {stated[-1]} if stated else set(words) & set(found)
  return named.pop() if len(named) == 1 else None


def numbers(text: str) -> list[float]:
  """Returns the values that an answer may mean if it is one number with a unit, else [].

  The first one is that of the unit, if it scales ('45%' is 0.45, '3 million' is 3e6). The other one
  is the bare number. '$1,234' is 1234, and '12 km/h' is 12.
  """
  text = re.sub(r'\\(?=[%$])', '', unicodedata.normalize('NFKC', text))
  match = _NUMBER.fullmatch(re.sub('[−–—]', '-', text).strip(' \t\r\n"“”()[]'))
  if match is None:
    return []
  number = match['number'] or match['continental'].replace('.', '').replace(',', '.')
  bare = float(re.sub("[, '’]", '', number))
  if '-' in match['sign'] + match['minus']:
    bare = -bare
  scale, *_ = match['unit'].lower().split() or ['']
  return list(dict.fromkeys([bare * _SCALES.get(scale, 1.0), bare]))


def _plain(text: str) -> str:
  """Returns an answer without reasoning and markup, and with ASCII forms of wide characters."""
  text = unicodedata.normalize('NFKC', text).replace('−', '-')
  return _MARKUP.sub('', without_thought(text))


def _outline(text: str) -> str:
  """Returns the form in which the text of an answer and that of a choice are compared."""
  text = ' '.join(_plain(text).lower().split())
  return ''.join((_ARTICLE.sub('', text.strip(_OUTER)) or text).split())


def _named(text: str, naming: re.Pattern, choices: Mapping[str, str]) -> set[str]:
  """Returns the letters that are named in one way, with those that are named beside them."""
  found = []
  for match in naming.finditer(text):
    found.append(match)
    end = match.end(1)
    while another := _ANOTHER.match(text, end):
      beside = _CAPITAL.match(text, another.end())
      if not _is_letter(text, beside):
        break
      found.append(beside)
      end = beside.end()
  is_known = _known((match[match.lastindex].upper() for match in found), choices)
  if naming is _NAMING[-1] and is_known:  # A list of the choices names none.
    found += _LISTED.finditer(text)
  return _known(_affirmed(text, found), choices)


def _affirmed(text: str, found: Sequence[re.Match]) -> set[str]:
  """Returns the letters that are not called wrong, or all letters if each of them is."""
  affirmed = [
    match
    for match in found
    if not _IS_WRONG.match(text, match.end(match.lastindex))
    and not _is_negated(text, match.start(match.lastindex))
  ]
  return {match[match.lastindex].upper() for match in affirmed or found}


def _only(letters: set[str]) -> str | None:
  return next(iter(letters)) if len(letters) == 1 else None


def _known(letters: Iterable[str], choices: Mapping[str, str]) -> set[str]:
  return {letter for letter in letters if not choices or letter in choices}


def _is_letter(text: str, match: re.Match) -> bool:
  """Whether a capital is a letter of a choice: no pronoun, no article, and not negated."""
  if match[1] == 'I' or _is_negated(text, match.start()):
    return False
  return match[1] != 'A' or _ARTICLE_AHEAD.match(text, match.end()) is None


def _is_negated(text: str, begin: int) -> bool:
  return _NOT.search(text, max(begin - 40, 0), begin) is not None


def _choice_spans(text: str, choices: Mapping[str, str]) -> dict[str, list[tuple[int, int]]]:
  """Returns where the texts of choices stand, {letter: [(begin, end), ...]}.

  What lies inside a longer choice or after 'not' does not count. Whole words come first. Without
  any, a choice may also be a part of a word, as in 'cats'.
  """
  text = text.lower()
  options = {letter: _plain(option).lower().strip(_OUTER) for letter, option in choices.items()}
  for whole in (True, False):
    spans = {}
    for letter, option in options.items():
      if len(option) < 2 and not option.isdigit():
        continue
      pattern = r'\s*'.join(map(re.escape, option.split()))
      if whole or not (option[0].isalpha() and option[-1].isalpha()):
        pattern = rf'(?<!\w)(?<!\d[.,])(?<!-(?=\d))(?<!minus ){pattern}(?!\w|[.,]\d)'
      found = [match.span() for match in re.finditer(pattern, text)]
      spans[letter] = [span for span in found if not _is_negated(text, span[0])]
    outer = {}
    for letter, found in spans.items():
      longer = [
        span
        for other in spans
        if other != letter and options[letter] in options[other]
        for span in spans[other]
      ]
      found = [span for span in found if not any(_inside(span, other) for other in longer)]
      if found:
        outer[letter] = found
    if outer:
      return outer
  return {}


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
  return span != other and other[0] <= span[0] and span[1] <= other[1]
