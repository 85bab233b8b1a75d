"""General VQA: the questions of a dataset (VQAv2, GQA, ScienceQA), or short ones about the objects it gives.

Those (of colour, kind, presence, number and position) are made from the scene alone, so the task needs no list of colours or
kinds, and asked so that their wording does not give the answer away: a question of presence is asked of a pair that is there
as often as of one whose colour and kind are both there, on different things.
"""

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import questions, task as base

INSTRUCTIONS = (
  base.SHORT_ANSWER,
  '{} Answer in a word.',
  '{} Short answer.',
  '{}',
)

_COLOR = ('What color is the {}?', 'Which color does the {} have?', 'What is the color of the {}?')
_KIND = ('What is the {} thing?', 'Which object is {}?', 'What is {} here?')
_PRESENCE = ('Is there {}?', 'Can you see {}?', 'Does the image show {}?')
_NUMBER = (
  'How many objects are there?',
  'How many things can you see?',
  'What is the number of objects?',
)
_POSITION = (
  'Where is the {}?',
  'In which corner is the {}?',
  'In which part of the image is the {}?',
)


def _color(objects, rng):
  names = [item['name'] for item in objects]
  return [
    (base.choose(_COLOR, rng).format(item['name']), item['color'])
    for item in objects
    if item.get('color') and names.count(item['name']) == 1
  ]


def _kind(objects, rng):
  colors = [item.get('color') for item in objects]
  return [
    (base.choose(_KIND, rng).format(item['color']), item['name'])
    for item in objects
    if item.get('color') and colors.count(item['color']) == 1
  ]


def _presence(objects, rng):
  present = sorted({(item['color'], item['name']) for item in objects if item.get('color')})
  crossed = sorted({(color, name) for color, _ in present for _, name in present} - set(present))
  balance = min(len(present), len(crossed))
  if not balance:
    return []
  pairs = [(pair, 'yes') for pair in base.sample(present, rng, balance, 'objects')]
  pairs += [(pair, 'no') for pair in base.sample(crossed, rng, balance, 'objects')]
  return [
    (base.choose(_PRESENCE, rng).format(base.with_article(f'{color} {name}')), answer)
    for (color, name), answer in pairs
  ]


def _number(objects, rng):
  return [(base.choose(_NUMBER, rng), str(len(objects)))]


def _position(objects, rng):
  names = [base.expression(item) for item in objects]
  result = []
  for item, name in zip(objects, names):
    x, y = base.center(item)
    # Things near the middle lines belong to no corner.
    if names.count(name) == 1 and min(abs(x - 0.5), abs(y - 0.5)) >= 0.14:
      corner = f'{"upper" if y < 0.5 else "lower"} {"left" if x < 0.5 else "right"}'
      result.append((base.choose(_POSITION, rng).format(name), corner))
  return result


FAMILIES = {
  'color': _color,
  'kind': _kind,
  'presence': _presence,
  'number': _number,
  'position': _position,
}


def turns(annotation, rng, max_turns):
  """The first max_turns given questions; or as many about objects, of as many families as there are, in random order."""
  if 'questions' in annotation:
    return questions.turns(annotation['questions'], rng, max_turns, INSTRUCTIONS)
  if not annotation['objects']:
    raise BadExample('nothing to ask', 'the annotation has no objects')
  return base.short_answer_turns(
    scene_questions(annotation['objects'], rng)[:max_turns], rng, INSTRUCTIONS
  )


def scene_questions(objects, rng):
  """All (question, answer) about at least one object, round by round, one question of every family that still has one."""
  pools = [ask(objects, rng) for ask in FAMILIES.values()]
  pools = [base.sample(pool, rng, len(pool), 'questions') for pool in pools if pool]
  order = base.sample(pools, rng, len(pools), 'questions')
  return [pool[i] for i in range(max(map(len, order))) for pool in order if i < len(pool)]


TASK = base.Task('vqa', 'accuracy', INSTRUCTIONS, turns, questions.score)
