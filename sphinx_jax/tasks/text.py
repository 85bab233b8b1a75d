"""Text only: a document as it is, or a sentence to continue or to write. Its loss is what is watched, it has no metric."""

from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Continue: {}',
  'Complete the sentence: {}',
  'How does this go on? {}',
  'Write a sentence.',
)


def turns(annotation, rng, max_turns):
  """One turn. A document is all answer, with no question before it, as in pretraining.

  Of a sentence the instruction shows a quarter to half of the words, and the answer is the rest; or nothing, and all.
  """
  del max_turns
  if annotation.get('document'):
    answer = annotation['text'].strip()
    return [base.Turn(None, answer, {'answer': answer})]
  words = annotation['text'].split()
  instruction = base.choose(INSTRUCTIONS, rng)
  shown = 0
  if '{}' in instruction:
    # One word cannot be split: it stays whole in the answer, or an answer would be empty.
    shown = int(rng.integers(len(words) // 4, len(words) // 2 + 1))
  answer = ' '.join(words[shown:])
  return [base.Turn(instruction.format(' '.join(words[:shown])), answer, {'answer': answer})]


def score(answer, truth):
  """Open-ended: adds nothing to any mean."""
  del answer, truth
  return 0.0, 0.0


TASK = base.Task('text', 'none', INSTRUCTIONS, turns, score)
