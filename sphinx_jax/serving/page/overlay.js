// Draws marks over an image: boxes and limbs as SVG, labels as HTML, so that lines and letters keep
// their size at any zoom.

import { make } from './dom.js';
import { toPixels } from './square.js';

const SVG = 'http://www.w3.org/2000/svg';
const QUESTION = '#111111';

export class Overlay {
  // frame: the element around the image; colors: of /page/settings.json.
  constructor(frame, colors) {
    this.colors = colors;
    this.svg = frame.querySelector('svg');
    this.labels = frame.querySelector('.labels');
    this.size = { width: 1, height: 1 };
    this.marks = [];
    this.focus = null; // Index of the mark that is highlighted.
    new ResizeObserver(() => this.#placeLabels()).observe(frame);
  }

  // size: {width, height} of the image in pixels; marks: of the answer, asked: of its question,
  // pending: of the question that is being written.
  draw(size, { marks, asked, pending }) {
    this.size = size;
    this.marks = marks;
    this.svg.setAttribute('viewBox', `0 0 ${size.width} ${size.height}`);
    this.svg.replaceChildren();
    this.labels.replaceChildren();
    for (const mark of asked) this.#shape(mark, QUESTION, 'asked');
    marks
      .map((mark, index) => ({ mark, index, area: this.#area(mark) }))
      .sort((a, b) => b.area - a.area) // Small boxes are above large ones, so all can be pointed at.
      .forEach(({ mark, index }) => this.#mark(mark, index));
    for (const mark of pending) this.#shape(mark, QUESTION, 'pending');
    this.highlight(this.focus);
    this.#placeLabels();
  }

  // Shows one of the marks and fades the others; null: all alike.
  highlight(index) {
    this.focus = index;
    for (const root of [this.svg, this.labels]) {
      root.classList.toggle('has-focus', index !== null);
      for (const part of root.children) {
        part.classList.toggle('focus', index !== null && part.dataset.mark === String(index));
      }
    }
  }

  #mark(mark, index) {
    const group = mark.joints ? this.#pose(mark) : this.#shape(mark, mark.color, 'mark');
    group.dataset.mark = index;
    if (mark.joints || !mark.label) return;
    const label = make('span', { textContent: mark.label });
    label.style.background = mark.color;
    label.dataset.mark = index;
    this.labels.append(label);
  }

  #shape(mark, color, className) {
    const group = this.#group(className);
    const at = this.#pixels(mark.numbers);
    if (at.length === 2) {
      this.#dot(group, at, color);
    } else if (at[2] <= at[0] || at[3] <= at[1]) { // An inverted box is drawn as its two corners.
      this.#dot(group, at.slice(0, 2), color);
      this.#dot(group, at.slice(2), color);
    } else {
      const [x, y] = at;
      add(group, 'rect', { x, y, width: at[2] - x, height: at[3] - y, stroke: color });
    }
    return group;
  }

  #pose({ joints }) {
    const group = this.#group('mark');
    for (const [a, b, color] of this.colors.limbs) {
      if (!joints.has(a) || !joints.has(b)) continue;
      const [x1, y1] = this.#pixels(joints.get(a));
      const [x2, y2] = this.#pixels(joints.get(b));
      add(group, 'line', { x1, y1, x2, y2, stroke: color, class: 'limb' });
    }
    for (const [joint, at] of joints) {
      this.#dot(group, this.#pixels(at), this.colors.joints[joint]);
    }
    return group;
  }

  // A line without length and with round ends, as a circle would grow with the image.
  #dot(group, [x, y], color) {
    const place = { x1: x, y1: y, x2: x, y2: y };
    add(group, 'line', { ...place, stroke: 'white', class: 'dot-edge' });
    add(group, 'line', { ...place, stroke: color, class: 'dot' });
  }

  #group(className) {
    return add(this.svg, 'g', { class: className });
  }

  #pixels(numbers) {
    return toPixels(numbers, this.size);
  }

  #area(mark) {
    if (mark.joints || mark.numbers.length === 2) return 0;
    const [x1, y1, x2, y2] = mark.numbers;
    return (x2 - x1) * (y2 - y1);
  }

  // A label is above its box, or below it at the upper edge, and always inside the image.
  #placeLabels() {
    const { clientWidth: width, clientHeight: height } = this.labels;
    for (const label of this.labels.children) {
      const { numbers } = this.marks[label.dataset.mark];
      const [x1, y1, , y2 = y1] = this.#pixels(numbers).map(
        (number, i) => number * (i % 2 ? height / this.size.height : width / this.size.width),
      );
      const above = y1 - label.offsetHeight;
      const top = above >= 0 ? above : Math.min(y2, height - label.offsetHeight);
      const left = Math.min(Math.max(x1, 0), Math.max(width - label.offsetWidth, 0));
      label.style.left = `${left}px`;
      label.style.top = `${Math.max(top, 0)}px`;
    }
  }
}

function add(parent, tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}
