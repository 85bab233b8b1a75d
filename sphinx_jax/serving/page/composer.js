// Writes the question: free text, or a task's instruction with blanks to fill in.

import { parseGroups } from './answers.js';
import { make } from './dom.js';
import { formatBox } from './square.js';

const CHAT = 'chat';
const REGION = 'reg';

export class Composer {
  // tasks: of /page/settings.json; onChange: called when the question may have changed.
  constructor(form, tasks, onChange) {
    this.form = form;
    this.tasks = tasks;
    this.onChange = onChange;
    this.area = form.querySelector('textarea');
    this.instruction = form.querySelector('.instruction');
    const chat = { task: CHAT, title: 'Free chat' };
    form.querySelector('.tasks').append(...[chat, ...tasks].map(chip));
    form.addEventListener('change', (event) => {
      if (event.target.name === 'task') this.select(event.target.value);
    });
    form.addEventListener('input', onChange);
    this.area.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
  }

  get task() {
    return this.form.elements.task.value;
  }

  // All tasks are about an image; free chat need not be.
  get needsImage() {
    return this.task !== CHAT;
  }

  // Whether a box belongs into the question. Then fingers drag boxes and do not scroll.
  get takesRegion() {
    return this.#blanks().some((blank) => blank.dataset.region);
  }

  // The whole question.
  get text() {
    if (this.task === CHAT) return this.area.value.trim();
    const blanks = this.#blanks().map((blank) => blank.value.trim());
    return this.#row().instruction.replaceAll('{}', () => blanks.shift());
  }

  // Shows a task; texts: of its blanks, in place of the usual ones.
  select(task = CHAT, texts = []) {
    this.form.elements.task.value = task;
    const isChat = task === CHAT;
    this.area.hidden = !isChat;
    this.area.disabled = !isChat;
    this.instruction.hidden = isChat;
    this.instruction.replaceChildren();
    if (!isChat) {
      const { instruction, blanks } = this.#row();
      instruction.split('{}').forEach((text, i) => {
        if (i) this.instruction.append(input(blanks[i - 1], texts[i - 1]));
        this.instruction.append(text);
      });
    }
    this.onChange();
  }

  // Writes a box into the question: into its blank for a region, or behind a free text. Other tasks
  // become the one about regions.
  setRegion(box) {
    const text = formatBox(box);
    if (this.task === CHAT) {
      this.area.value = withBox(this.area.value, text);
    } else {
      if (!this.takesRegion) this.select(REGION);
      const blank = this.#blanks().find((each) => each.dataset.region);
      blank.value = blank.dataset.region.replace('{}', () => text);
      blank.size = width(blank.value);
    }
    this.onChange();
  }

  clear() {
    this.area.value = '';
    this.onChange();
  }

  // Puts a free text back that was not answered; blanks still have theirs.
  restore(text) {
    if (this.task === CHAT && !this.area.value) this.area.value = text;
    this.onChange();
  }

  #row() {
    return this.tasks.find(({ task }) => task === this.task);
  }

  #blanks() {
    return [...this.instruction.querySelectorAll('input')];
  }
}

function chip({ task, title }) {
  const radio = make('input', { type: 'radio', name: 'task', value: task });
  return make('label', { className: 'chip' }, radio, make('span', { textContent: title }));
}

function input({ label, text, region }, given) {
  const blank = make('input', {
    type: 'text',
    required: true,
    value: given ?? text,
    placeholder: region === '{}' ? 'drag a box on the image' : label,
    ariaLabel: label,
    autocomplete: 'off',
  });
  blank.dataset.region = region;
  const fit = () => {
    blank.size = width(blank.value || blank.placeholder);
  };
  blank.addEventListener('input', fit);
  fit();
  return blank;
}

function width(text) {
  return Math.min(Math.max(text.length, 6), 40);
}

// A text with a box in place of its last one, or behind it.
function withBox(text, box) {
  const last = parseGroups(text).at(-1);
  if (!last) return `${text.trimEnd()} ${box}`.trimStart();
  return text.slice(0, last.begin) + box + text.slice(last.end);
}
