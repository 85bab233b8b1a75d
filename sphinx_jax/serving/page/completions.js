// Asks the server, and reads the answer as it comes.

const PATH = 'v1/chat/completions';

// Yields {text, end} for each piece of the answer; `end` is 'stop' or 'length' in the last one.
// Throws an Error whose message is for the user, or an AbortError.
export async function* streamAnswer(request, { key, signal }) {
  const headers = { 'Content-Type': 'application/json' };
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = JSON.stringify({ ...request, stream: true });
  const response = await reach(() => fetch(PATH, { method: 'POST', headers, body, signal }));
  if (!response.ok) throw new Error(await reason(response));
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const value = JSON.parse(data);
    if (value.error) throw new Error(value.error.message);
    for (const choice of value.choices) {
      yield { text: choice.delta.content ?? '', end: choice.finish_reason };
    }
  }
  throw new Error('The answer broke off before its end.');
}

// The command that sends the same request and prints the whole answer.
export function curl(request, hasKey) {
  const url = new URL(PATH, document.baseURI).href.replaceAll("'", '%27');
  const key = hasKey ? `  -H "Authorization: Bearer $API_KEY" \\\n` : '';
  // In a heredoc nothing is special but the last line, which no JSON has.
  return (
    `curl '${url}' \\\n  -H 'Content-Type: application/json' \\\n${key}` +
    `  --data-binary @- <<'JSON'\n${JSON.stringify(request, null, 2)}\nJSON\n`
  );
}

async function reach(attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server cannot be reached. Is it still running?');
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// Yields the data of server-sent events.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reach(() => reader.read());
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith('data: ')) yield part.slice('data: '.length);
    }
  }
}
