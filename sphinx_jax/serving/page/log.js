// Shows the turns of the conversation.

import { parseGroups } from './answers.js';
import { make } from './dom.js';

export class Log {
  constructor(element) {
    this.element = element;
  }

  clear() {
    this.element.replaceChildren();
  }

  removeFailed() {
    for (const turn of this.element.querySelectorAll('.failed')) turn.remove();
  }

  // Adds a question and the place of its answer; returns the Entry.
  add(question, images) {
    const entry = new Entry(question, images);
    this.element.append(entry.element);
    this.scroll();
    return entry;
  }

  // Shows the end, as it grows.
  scroll() {
    this.element.scrollTop = this.element.scrollHeight;
  }
}

// A question with its answer.
class Entry {
  constructor(question, images) {
    const thumbs = images.map((image) => make('img', { src: image.url, alt: image.name }));
    this.answer = make('p', { className: 'answer', ariaBusy: 'true' });
    this.note = make('span', { className: 'note' });
    this.actions = make('div', { className: 'actions' }, this.note);
    this.element = make(
      'article',
      { className: 'turn' },
      make('div', { className: 'question' }, ...thumbs, make('p', { textContent: question })),
      this.answer,
      this.actions,
    );
  }

  // Shows the answer so far, its coordinates muted.
  write(text) {
    const parts = [];
    let last = 0;
    for (const { begin, end } of parseGroups(text)) {
      const numbers = make('span', { className: 'numbers', textContent: text.slice(begin, end) });
      parts.push(text.slice(last, begin), numbers);
      last = end;
    }
    this.answer.replaceChildren(...parts, text.slice(last));
  }

  // Ends the answer; note: such as 'Stopped.'.
  finish(note) {
    this.answer.ariaBusy = 'false';
    this.note.textContent = note;
  }

  // Whether there was an error.
  get isFailed() {
    return this.element.classList.contains('failed');
  }

  // Shows why there is no answer, or no more of it.
  fail(message) {
    this.finish('');
    this.element.classList.add('failed');
    this.answer.hidden = !this.answer.textContent;
    this.answer.after(make('p', { className: 'error', role: 'alert', textContent: message }));
  }

  // Adds a button under the answer.
  addAction(title, onClick) {
    const button = make('button', { type: 'button', className: 'quiet', textContent: title });
    button.addEventListener('click', () => onClick(button));
    this.actions.append(button);
    return button;
  }
}
