// Asks the server. If it wants a token, this asks for one, and keeps it in this tab.

const KEY = 'evalpool-token';
let asking = null;

const authorization = () => {
  const token = sessionStorage.getItem(KEY);
  // No header can carry anything else, so it is none.
  return token && /^[\x21-\x7e]+$/.test(token) ? { authorization: `Bearer ${token}` } : {};
};

// Asks for a token once, however many requests lack one.
function askForToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById('token');
    const input = document.getElementById('token-value');
    document.getElementById('token-error').textContent = wasWrong ? 'The server does not take this token.' : '';
    input.value = '';
    // There is nothing to show without it.
    dialog.addEventListener('cancel', (event) => event.preventDefault());
    dialog.addEventListener('close', () => {
      sessionStorage.setItem(KEY, input.value.trim());
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// `fetch` with the token.
export async function send(path, options = {}) {
  for (;;) {
    const sent = authorization();
    const response = await fetch(path, { ...options, headers: { ...options.headers, ...sent }, cache: 'no-store' });
    if (response.status !== 401) return response;
    // Another request may have got one meanwhile.
    if (sent.authorization === authorization().authorization) await askForToken(Boolean(sent.authorization));
  }
}

// A problem as the server tells it.
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `the server answered ${status}`);
    Object.assign(this, { status, kind: body.kind ?? String(status), words: body.last_words ?? null });
  }

  static async of(response) {
    const body = await response.json().catch(() => ({}));
    return new Problem(response.status, body ?? {});
  }
}

export async function get(path, parameters = {}, signal) {
  const given = Object.entries(parameters).filter(([, value]) => value !== '' && value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  const response = await send(query ? `${path}?${query}` : path, { signal });
  if (!response.ok) throw await Problem.of(response);
  return response.json();
}

// A browser takes `.` for the folder itself, however it is written, and would ask for something else.
export function evaluatorPath(name) {
  if (name === '.') throw new Error('a browser cannot name the evaluator "."');
  return `/v1/evaluators/${encodeURIComponent(name)}`;
}

// Reads server-sent events by `fetch`, which can send a token. Calls `on(event, data)` for each, until the stream ends.
export async function events(path, on, signal) {
  const response = await send(path, { signal });
  if (!response.ok) throw await Problem.of(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split('\n').map((line) => {
        const at = line.indexOf(': ');
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      on(fields.event, JSON.parse(fields.data));
    }
  }
}
