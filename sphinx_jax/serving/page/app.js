// The page: wires images, composer, conversation and drawings.

import { findMarks, parseGroups } from './answers.js';
import { openCamera } from './camera.js';
import { curl, streamAnswer } from './completions.js';
import { Composer } from './composer.js';
import { find, make } from './dom.js';
import { Found } from './found.js';
import { Log } from './log.js';
import { Overlay } from './overlay.js';
import { readPicture, watchFiles } from './pictures.js';
import { watchRegion } from './region.js';
import { Session } from './session.js';

class Page {
  constructor(settings) {
    this.settings = settings;
    this.session = new Session();
    this.image = null; // The one that is shown.
    this.shown = null; // The turn whose boxes are drawn.
    this.running = null; // AbortController of the answer that comes.
    this.frame = find('#frame');
    this.overlay = new Overlay(this.frame, settings.colors);
    this.found = new Found(find('#found'), this.frame, this.overlay);
    this.log = new Log(find('#log'));
    this.composer = new Composer(find('#composer'), settings.tasks, () => this.draw());
    this.#fillIn();
    this.#listen();
    this.composer.select();
    this.showImages();
  }

  #fillIn() {
    const { settings } = this;
    find('#model').textContent = settings.model;
    find('#key').hidden = !settings.needs_key;
    find('#max-tokens').max = settings.max_tokens;
    find('#max-tokens').value = Math.min(512, settings.max_tokens);
    find('#files').multiple = settings.images > 1;
    find('#examples ul').append(...settings.examples.map((example) => this.#example(example)));
  }

  #example({ task, blanks, url }) {
    const { title } = this.settings.tasks.find((row) => row.task === task);
    const button = make(
      'button', { type: 'button' }, make('img', { src: url, alt: '' }), make('span', {}, title),
    );
    button.addEventListener('click', async () => {
      const blob = await (await fetch(url)).blob();
      this.session.images = [];
      this.restart();
      await this.addFiles([new File([blob], `${task}.png`, { type: 'image/png' })]);
      this.composer.select(task, blanks);
      find('#send').focus();
    });
    return make('li', {}, button);
  }

  #listen() {
    watchFiles(find('#files'), (files) => this.addFiles(files));
    watchRegion(this.frame, {
      size: () => this.image,
      takesTouch: () => this.composer.takesRegion,
      onBox: (box) => this.composer.setRegion(box),
    });
    find('#camera').addEventListener('click', () =>
      openCamera(find('#camera-dialog'), {
        onFile: (file) => this.addFiles([file]),
        onError: (message) => this.showStatus(message),
      }),
    );
    find('#camera-dialog .cancel').addEventListener('click', () => find('#camera-dialog').close());
    find('#copied .cancel').addEventListener('click', () => find('#copied').close());
    find('#restart').addEventListener('click', () => this.restart());
    find('#composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.send();
    });
    // Browsers do not show what is wrong with a field that is folded away.
    find('#composer').addEventListener(
      'invalid', (event) => event.target.closest('details')?.setAttribute('open', ''), true,
    );
    find('#stop').addEventListener('click', () => this.running?.abort());
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.running?.abort();
    });
  }

  // Shows a short message beside the send button; '' takes it away.
  showStatus(message) {
    find('#status').textContent = message;
  }

  async addFiles(files) {
    for (const file of files) {
      if (this.session.images.length >= this.settings.images) {
        const most = this.settings.images;
        const full = `At most ${most} images; remove one first.`;
        return this.showStatus(most ? full : 'The model takes no images.');
      }
      try {
        this.session.images.push(await readPicture(file, this.settings));
      } catch (error) {
        this.showStatus(error.message);
        continue;
      }
      this.showStatus('');
      this.showImages(this.session.images.at(-1));
    }
  }

  // Removes an image; a conversation about it ends.
  removeImage(image) {
    const wasSent = this.running || !this.session.pending.includes(image);
    this.session.images = this.session.images.filter((other) => other !== image);
    if (wasSent) this.restart();
    this.showImages(this.image === image ? this.session.images.at(-1) : this.image);
  }

  // Forgets the conversation; its images stay.
  restart() {
    this.running?.abort();
    this.session.restart();
    this.log.clear();
    this.shown = null;
    this.showImages(this.image);
  }

  showImages(image = null) {
    const { images } = this.session;
    this.image = images.includes(image) ? image : images.at(-1) ?? null;
    find('#empty').hidden = this.image !== null;
    this.frame.hidden = this.image === null;
    if (this.image) {
      const { url, width, height, name } = this.image;
      Object.assign(find('#picture'), { src: url, alt: name });
      this.frame.style.setProperty('--ratio', width / height);
    }
    find('#strip').replaceChildren(...images.map((each, i) => this.#thumb(each, i)));
    this.draw();
  }

  #thumb(image, index) {
    const what = `image ${index + 1}, ${image.name}`;
    const show = make(
      'button',
      { type: 'button', ariaLabel: `Show ${what}`, ariaPressed: String(image === this.image) },
      make('img', { src: image.url, alt: '' }),
    );
    show.addEventListener('click', () => this.showImages(image));
    const remove = make('button', {
      type: 'button', className: 'remove', ariaLabel: `Remove ${what}`, textContent: '×',
    });
    remove.addEventListener('click', () => this.removeImage(image));
    return make('li', {}, show, remove);
  }

  // Draws the boxes of the shown answer, of its question, and of the question being written.
  draw() {
    const size = this.image;
    this.frame.classList.toggle('takes-region', this.composer.takesRegion);
    if (!size) {
      this.found.show([], { width: 1, height: 1 });
      return;
    }
    const marks = findMarks(this.shown?.answer ?? '', this.settings.colors);
    const asked = unnamed(this.shown?.question ?? '');
    this.overlay.draw(size, { marks, asked, pending: unnamed(this.composer.text) });
    this.found.show(marks, size);
  }

  async send() {
    if (this.running) return;
    const { text, needsImage } = this.composer;
    if (!text) return this.showStatus('Write a question first.');
    if (needsImage && !this.image) return this.showStatus('Choose an image first.');
    this.showStatus('');
    this.log.removeFailed();
    const turn = { question: text, images: this.session.pending, answer: '' };
    const { turns } = this.session;
    const request = this.#request(text);
    const entry = this.log.add(turn.question, turn.images);
    this.composer.clear();
    this.#show(turn);
    if (this.image) find('#stage').scrollIntoView({ block: 'nearest' }); // On a phone.
    await this.#stream(request, turn, entry);
    entry.addAction('Copy as curl', (button) => this.#copy(request, button));
    this.log.scroll();
    if (turns !== this.session.turns) return; // A new conversation has begun.
    // A question without an answer is no turn of the conversation, and can be asked again.
    if (entry.isFailed || !turn.answer) this.composer.restore(text);
    else turns.push(turn);
  }

  // Reads the answer of a turn as it comes.
  async #stream(request, turn, entry) {
    const running = (this.running = new AbortController());
    this.#setBusy(true);
    let end = '';
    try {
      const key = find('#key input').value;
      for await (const piece of streamAnswer(request, { key, signal: running.signal })) {
        turn.answer += piece.text;
        end = piece.end ?? end;
        entry.write(turn.answer);
        this.log.scroll();
        if (this.shown === turn) this.draw();
      }
    } catch (error) {
      if (error.name !== 'AbortError') return entry.fail(error.message);
      end = 'stopped';
    } finally {
      this.running = null;
      this.#setBusy(false);
    }
    const notes = { stopped: 'Stopped.', length: `Cut at ${request.max_tokens} tokens.` };
    entry.finish(notes[end] ?? (turn.answer ? '' : 'The answer is empty.'));
    if (findMarks(turn.answer, this.settings.colors).length) {
      entry.addAction('Show on image', () => this.#show(turn));
    }
  }

  #request(text) {
    const request = {
      model: this.settings.model,
      messages: this.session.messages(text),
      max_tokens: find('#max-tokens').valueAsNumber,
      temperature: find('#temperature').valueAsNumber,
      top_p: find('#top-p').valueAsNumber,
    };
    const seed = find('#seed').valueAsNumber;
    return Number.isNaN(seed) ? request : { ...request, seed };
  }

  #show(turn) {
    this.shown = turn;
    this.found.release();
    this.draw();
  }

  #setBusy(isBusy) {
    find('#send').hidden = isBusy;
    find('#stop').hidden = !isBusy;
  }

  async #copy(request, button) {
    const command = curl(request, this.settings.needs_key);
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = 'Copied';
      setTimeout(() => {
        button.textContent = 'Copy as curl';
      }, 1500);
    } catch { // Browsers offer the clipboard to https and localhost only.
      find('#copied textarea').value = command;
      find('#copied').showModal();
      find('#copied textarea').select();
    }
  }
}

// The boxes and points of a question, which have no names.
function unnamed(text) {
  return parseGroups(text).flatMap((group) => group.numbers.map((numbers) => ({ numbers })));
}

try {
  const response = await fetch('page/settings.json');
  new Page(await response.json());
} catch (error) {
  find('#status').textContent = `The page cannot start: ${error.message}`;
  throw error;
}
