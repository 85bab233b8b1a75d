// Lists the marks of an answer beside the image. Pointing at an entry or at a box shows both.

import { make } from './dom.js';
import { toPixels } from './square.js';

export class Found {
  constructor(section, frame, overlay) {
    this.section = section;
    this.list = section.querySelector('ul');
    this.overlay = overlay;
    this.pinned = null; // By a click, for fingers.
    for (const root of [this.list, frame]) {
      root.addEventListener('pointerover', (event) => this.#point(event));
      root.addEventListener('pointerleave', () => this.#highlight(this.pinned));
    }
    this.list.addEventListener('focusin', (event) => this.#point(event));
    this.list.addEventListener('focusout', () => this.#highlight(this.pinned));
    this.list.addEventListener('click', (event) => {
      const index = markOf(event.target);
      this.pinned = index === this.pinned ? null : index;
      this.#highlight(this.pinned);
    });
  }

  // Forgets which entry was clicked.
  release() {
    this.pinned = null;
    this.#highlight(null);
  }

  // Lists marks. Entries that stay the same keep the focus while an answer grows.
  show(marks, size) {
    this.section.hidden = !marks.length;
    const old = [...this.list.children];
    marks.forEach((mark, index) => {
      const item = entry(mark, index, size);
      if (!old[index]) this.list.append(item);
      else if (!old[index].isEqualNode(item)) old[index].replaceWith(item);
    });
    for (const item of old.slice(marks.length)) item.remove();
  }

  #point(event) {
    const index = markOf(event.target);
    this.#highlight(index ?? this.pinned);
  }

  #highlight(index) {
    this.overlay.highlight(index);
    for (const button of this.list.querySelectorAll('button')) {
      button.parentElement.classList.toggle('focus', markOf(button) === index);
    }
  }
}

function markOf(element) {
  const number = element.closest('[data-mark]')?.dataset.mark;
  return number === undefined ? null : Number(number);
}

function entry(mark, index, size) {
  const swatch = make('i', { className: 'swatch' });
  swatch.style.background = mark.color;
  const button = make(
    'button',
    { type: 'button' },
    swatch,
    make('span', { className: 'name', textContent: mark.label || 'unnamed' }),
    make('small', { textContent: place(mark, size) }),
  );
  button.dataset.mark = index;
  return make('li', {}, button);
}

function place(mark, size) {
  if (mark.joints) return `${mark.joints.size} points`;
  const at = toPixels(mark.numbers, size).map(Math.round);
  return at.length === 2 ? `${at[0]}, ${at[1]}` : `${at[0]}, ${at[1]} – ${at[2]}, ${at[3]}`;
}
