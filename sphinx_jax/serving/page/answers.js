// Finds boxes, points and poses in the text of an answer.
//
// parseGroups is sphinx_jax/core/coordinates.py:parse_groups, and findMarks has the rules of
// sphinx_jax/report/drawing.py; a test compares them.

const BRACKET = /\[([^[\]]*)\]/g;
const NUMBER = /^-?(\d{1,4}(\.\d{0,16})?|\.\d{1,16})$/;
const SEPARATORS = /^[ \t\r\n,;:.]+|[ \t\r\n,;:.]+$/g;
const AND = /^and(?![\p{L}\p{N}_])/iu;

// Returns [{label, numbers: [[2 or 4 numbers], ...], begin, end}] of each `label [numbers]`, with
// the place of the bracket in the text. Brackets without an end are left out.
export function parseGroups(text) {
  const groups = [];
  let last = 0;
  for (const match of text.matchAll(BRACKET)) {
    const end = match.index + match[0].length;
    const numbers = match[1].split(';').map(parseNumbers).filter(Boolean);
    if (numbers.length) {
      const label = labelOf(text.slice(last, match.index));
      groups.push({ label, numbers, begin: match.index, end });
    }
    last = end;
  }
  return groups;
}

function parseNumbers(part) {
  const words = part.split(',').map((word) => word.trim());
  if ((words.length !== 2 && words.length !== 4) || !words.every((word) => NUMBER.test(word))) {
    return null;
  }
  return words.map(Number);
}

function labelOf(before) {
  const close = before.lastIndexOf('</p>');
  const open = close < 0 ? -1 : before.lastIndexOf('<p>', close - '<p>'.length);
  if (open >= 0 && !before.slice(close + '</p>'.length).trim()) {
    return before.slice(open + '<p>'.length, close).trim();
  }
  return before.replace(SEPARATORS, '').replace(AND, '').trim();
}

// Returns what is drawn for an answer: {label, color, numbers} for a box or a point, and
// {label, joints: Map(keypoint -> [x, y])} for a pose. Numbers are in [0, 1] on the padded square.
export function findMarks(text, colors) {
  const marks = [];
  const colorOf = new Map();
  let person = null;
  let people = 0;
  for (const { label, numbers } of parseGroups(text)) {
    const keypoint = keypointOf(label, colors.keypoints);
    if (keypoint >= 0 && numbers[0].length === 2) {
      if (!person || person.joints.has(keypoint)) { // A keypoint again begins the next person.
        people += 1;
        person = { label: `person ${people}`, color: colors.joints[0], joints: new Map() };
        marks.push(person);
      }
      person.joints.set(keypoint, numbers[0]);
      continue;
    }
    person = null;
    if (!colorOf.has(label)) {
      const next = colors.palette[colorOf.size % colors.palette.length];
      colorOf.set(label, Object.hasOwn(colors.labels, label) ? colors.labels[label] : next);
    }
    for (const each of numbers) marks.push({ label, color: colorOf.get(label), numbers: each });
  }
  return marks;
}

function keypointOf(label, keypoints) {
  const words = label.toLowerCase().split(/\s+/);
  for (const count of [2, 1]) {
    const index = keypoints.indexOf(words.slice(-count).join(' '));
    if (index >= 0) return index;
  }
  return -1;
}
