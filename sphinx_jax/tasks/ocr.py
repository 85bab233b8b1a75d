"""Questions about text in the picture: a dataset's own (OCR-VQA, TextVQA, DocVQA, ChartQA), or to read a word.

A word of a scene is pointed out by its colour or its place where there are several.
"""

from sphinx_jax.tasks import questions, task as base

INSTRUCTIONS = (
  base.SHORT_ANSWER,
  '{} Answer in a word.',
  '{} Short answer.',
  '{}',
)

_ALONE = (
  'What word is written here?',
  'What does the text say?',
  'Which word is this?',
  'Read the word.',
)
_COLOR = ('What is the {} word?', 'What does the {} text say?', 'Read the {} word.')
_PLACE = ('What is the word {}?', 'What does the text {} say?', 'Read the word {}.')
_PLACES = {
  'left of': 'on the left',
  'right of': 'on the right',
  'above': 'at the top',
  'below': 'at the bottom',
}


def turns(annotation, rng, max_turns):
  """The first max_turns given questions; or one turn for each of as many words that can be told from the others."""
  if 'questions' in annotation:
    return questions.turns(annotation['questions'], rng, max_turns, INSTRUCTIONS)
  asked = base.sample(scene_questions(annotation['words'], rng), rng, max_turns, 'words to ask for')
  return base.short_answer_turns(asked, rng, INSTRUCTIONS)


def scene_questions(words, rng):
  """(question, answer) of every word that can be told from the others."""
  if len(words) == 1:
    return [(base.choose(_ALONE, rng), words[0]['text'])]
  return [
    (base.choose(ways, rng), word['text'])
    for word in words
    if (ways := _pointers(word, words, rng))
  ]


def _pointers(word, words, rng):
  """Questions that only this word answers: by its colour if no other has it, by its place if it lies beyond all others."""
  others = [other for other in words if other is not word]
  ways = []
  if word.get('color') and all(other.get('color') != word['color'] for other in others):
    ways.append(base.choose(_COLOR, rng).format(word['color']))
  sides = {base.direction(word, other) for other in others}
  if len(sides) == 1 and None not in sides:
    ways.append(base.choose(_PLACE, rng).format(_PLACES[sides.pop()]))
  return ways


TASK = base.Task('ocr', 'accuracy', INSTRUCTIONS, turns, questions.score, mirrors=False)
