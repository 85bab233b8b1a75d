// The images and turns of a conversation, and the requests made of them.

export class Session {
  constructor() {
    this.images = []; // {url, width, height, name}
    this.turns = []; // {question, images, answer}
  }

  // Images that the next question takes along.
  get pending() {
    const sent = new Set(this.turns.flatMap((turn) => turn.images));
    return this.images.filter((image) => !sent.has(image));
  }

  // Forgets the turns; images stay and go with the next question.
  restart() {
    this.turns = [];
  }

  // The messages of the API for all turns and a new question.
  messages(question) {
    const past = this.turns.flatMap((turn) => [
      userMessage(turn.question, turn.images),
      { role: 'assistant', content: turn.answer },
    ]);
    return [...past, userMessage(question, this.pending)];
  }
}

function userMessage(text, images) {
  if (!images.length) return { role: 'user', content: text };
  const parts = images.map(({ url }) => ({ type: 'image_url', image_url: { url } }));
  return { role: 'user', content: [...parts, { type: 'text', text }] };
}
