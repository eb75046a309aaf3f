// One evaluator: what it is, why it fails, and a form that calls it.

import { ago, bytes, clock, count, el, facts, number, seconds, setText } from './dom.js';
import { Problem, evaluatorPath, get, send } from './server.js';

// How often it is fetched again, in milliseconds, and while its lines are shown.
const [AGAIN, SOON] = [3000, 1000];
// Of an output, more than this is not shown.
const SHOWN = 64 * 1024;

// What a guest left behind.
export function lastWords(words) {
  if (!words) return null;
  const part = (label, text) => text && el('div', {}, el('h3', {}, label), el('pre', { tabindex: 0, 'aria-label': label }, text));
  return el('div', { class: 'words' }, part('Stack', (words.stack ?? []).join('\n')), part('Standard error', words.stderr), part('Standard output', words.stdout));
}

// A trace: a link to where it is looked at if it is sent and that is known, and otherwise its id, which the log has too.
function trace(it, url) {
  if (!it) return null;
  const id = el('code', { class: 'trace' }, it.id);
  const link = url && it.is_sampled && el('a', { href: url.replaceAll('{trace_id}', it.id), target: '_blank', rel: 'noopener noreferrer' }, id);
  return el('p', { class: 'help' }, 'Trace ', link || id);
}

export function problem(error) {
  return el('div', { class: 'problem' }, el('p', {}, el('code', { class: 'bad' }, error.kind ?? 'error'), ` ${error.message}`), lastWords(error.words));
}

// `server-timing` as pairs of a name and seconds.
const timings = (header) => (header ?? '').split(',').map((part) => /^\s*([\w-]+);dur=([\d.]+)/.exec(part)).filter(Boolean).map(([, name, millis]) => [name, Number(millis) / 1000]);

function usage(text) {
  try {
    const used = JSON.parse(text);
    return facts([
      ['Guest time', seconds(used.guest_seconds)], ['Peak memory', used.peak_memory_bytes === null ? 'not known' : bytes(used.peak_memory_bytes)],
      ['In', bytes(used.bytes_in)], ['Out', bytes(used.bytes_out)], ['Host calls', number(used.host_calls)],
      ['HTTP requests', used.http && number(used.http.requests)], ['Fuel', used.fuel === null ? null : number(used.fuel)],
    ]);
  } catch {
    return null;
  }
}

async function output(response) {
  const buffer = await response.arrayBuffer();
  const isCut = buffer.byteLength > SHOWN;
  const part = isCut ? buffer.slice(0, SHOWN) : buffer;
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: !isCut }).decode(part);
    if (!isCut && (response.headers.get('content-type') ?? '').startsWith('application/json')) text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    text ??= [...new Uint8Array(part.slice(0, 1024))].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
  }
  return { text: text + (isCut ? '\n…' : ''), size: buffer.byteLength };
}

function caller(name, done) {
  const entry = el('input', { id: 'entry', autocomplete: 'off', spellcheck: 'false', placeholder: 'its default' });
  const input = el('textarea', { id: 'input', rows: 4, spellcheck: 'false' });
  const button = el('button', { class: 'primary' }, 'Call');
  const answer = el('div', { class: 'answer', 'aria-live': 'polite' });
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) button.form.requestSubmit();
  });

  async function call(event) {
    event.preventDefault();
    button.disabled = true;
    answer.replaceChildren(el('p', {}, 'Running …'));
    try {
      const query = entry.value ? `?${new URLSearchParams({ entry_point: entry.value })}` : '';
      const response = await send(evaluatorPath(name) + query, { method: 'POST', body: input.value });
      if (!response.ok && (response.headers.get('content-type') ?? '').startsWith('application/problem+json')) throw await Problem.of(response);
      const { text, size } = await output(response);
      const kind = response.headers.get('content-type');
      answer.replaceChildren(
        el('p', {}, el('code', { class: response.ok ? 'good' : 'bad' }, String(response.status)), ` ${bytes(size)}${kind ? ` of ${kind}` : ''}`),
        el('pre', { class: 'output', tabindex: 0, 'aria-label': 'Output' }, text || ' '),
        facts(timings(response.headers.get('server-timing')).map(([label, time]) => [label, seconds(time)])),
        usage(response.headers.get('evalpool-usage')) ?? '');
    } catch (error) {
      answer.replaceChildren(problem(error));
    }
    button.disabled = false;
    done();
  }

  return el('section', { class: 'card', 'aria-labelledby': 'call-title' }, el('h2', { id: 'call-title' }, 'Call it'),
    el('form', { onsubmit: call }, el('p', {}, el('label', { for: 'entry' }, 'Entry point'), entry),
      el('p', {}, el('label', { for: 'input' }, 'Input'), input),
      el('p', {}, button, el('span', { class: 'help' }, ' or Ctrl + Enter'))), answer);
}

export function evaluator({ name }) {
  const error = el('div', { role: 'alert' });
  const [what, failures, slowest, spec] = [el('div'), el('div'), el('div'), el('pre', { tabindex: 0, 'aria-label': 'Spec' })];
  const lines = el('ol', { class: 'lines', tabindex: 0, 'aria-label': 'Lines' });
  const log = el('div');
  const done = el('p', { role: 'status' });
  const link = new URLSearchParams({ name });
  let known = null;
  let knownSlow = null;
  let knownLines = null;
  let again = AGAIN;
  let timer = null;
  let isLeft = false;

  // Asks for something that changes the evaluator, and shows it anew.
  async function change(options, path, said) {
    setText(done, '');
    try {
      const response = await send(path, options);
      if (!response.ok) throw await Problem.of(response);
      setText(done, said);
      error.replaceChildren();
    } catch (failed) {
      error.replaceChildren(problem(failed));
    }
    await load();
  }

  let isDebugged = false;
  const debug = el('button', { type: 'button', hidden: true, onclick: () => {
    const body = JSON.stringify({ debug: !isDebugged });
    const said = isDebugged ? 'No line is kept from now on.' : 'Failures from now on show what the plugin left behind, to its callers too.';
    return change({ method: 'PATCH', headers: { 'content-type': 'application/merge-patch+json' }, body }, evaluatorPath(name), said);
  } });
  const unload = () => change({ method: 'DELETE' }, `${evaluatorPath(name)}/runtime`, 'Its runtime is closed. The next call builds it again.');

  function failure(it, url) {
    const [first, last] = [clock(it.at), clock(it.last)];
    return el('li', {}, el('p', {}, el('time', {}, first === last ? last : `${first} to ${last}`), ' ', el('code', { class: 'bad' }, it.kind), it.times > 1 && ` × ${number(it.times)}`),
      el('p', { class: 'detail' }, it.detail), lastWords(it), it.hides && el('p', { class: 'help' }, 'It left more behind, which is not kept: its debug is off.'), trace(it.trace, url));
  }

  function slow(it, url) {
    const parts = it.exec_seconds === null ? 'Its client left.'
      : `Waited ${seconds(it.wait_seconds)}, ${it.build_seconds > 0 ? `built ${seconds(it.build_seconds)}, ` : ''}ran ${seconds(it.exec_seconds)}.`;
    return el('li', {}, el('p', {}, el('time', {}, clock(it.at)), ' ', el('b', {}, seconds(it.seconds)), ' ', el('code', { class: it.outcome === 'ok' ? 'good' : 'bad' }, it.outcome)),
      el('p', { class: 'detail' }, parts), trace(it.trace, url));
  }

  function line(it) {
    return el('li', {}, el('time', {}, clock(it.at)), ' ', el('code', { class: `level ${it.level}` }, it.level), ' ', el('span', {}, it.text));
  }

  function showLines(kept) {
    const text = JSON.stringify(kept);
    if (knownLines === text) return;
    knownLines = text;
    again = kept === null ? AGAIN : SOON;
    if (kept === null) log.replaceChildren(el('p', { class: 'empty' }, 'Lines are kept while its debug is on. Its callers then see stack and output of failures as well.'));
    else if (kept.length === 0) log.replaceChildren(el('p', { class: 'empty' }, 'Nothing yet. What its plugin logs, or writes to its standard streams, comes here; on the extism engine nothing does.'));
    else {
      // Who reads further up stays there.
      const isAtEnd = !lines.isConnected || lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 4;
      lines.replaceChildren(...kept.map(line));
      if (!lines.isConnected) log.replaceChildren(lines);
      if (isAtEnd) lines.scrollTop = lines.scrollHeight;
    }
  }

  function show(it) {
    const runtime = it.runtime;
    const outcomes = Object.entries(it.usage.outcomes).map(([word, count]) => `${word} ${number(count)}`).join(', ');
    what.replaceChildren(facts([
      ['State', el('span', { class: `state ${it.state}` }, it.state)], ['Tenant', el('a', { href: `#/evaluators?tenant=${encodeURIComponent(it.tenant)}` }, it.tenant)], ['Revision', String(it.revision)],
      ['Entry point', it.entry_point ?? 'each call names one'], ['Plugin', it.size_bytes === null ? 'not read yet' : bytes(it.size_bytes)],
      ['Instances', number(it.instances)], ['Runtime', runtime && runtime.age_seconds !== null ? `${seconds(runtime.age_seconds)} old, ${bytes(runtime.memory_bytes)}, ${count(runtime.uses, 'use')}` : 'none'],
      ['Calls', number(it.evaluations)], ['Outcomes', outcomes || 'none yet'], ['Guest time', seconds(it.usage.guest_seconds)],
      ['Mean time in the pool', it.usage.evaluations > 0 ? seconds(it.usage.seconds / it.usage.evaluations) : '–'],
      ['Callers waited of late', it.p99_seconds === null ? 'no calls' : `p50 ${seconds(it.p50_seconds)}, p99 ${seconds(it.p99_seconds)}`], ['Last call', ago(it.last_used)],
      ['Debug', it.debug ? 'on' : 'off'], ['Digest', el('code', { class: 'digest' }, it.digest ?? 'not known yet')],
    ]));
    const text = JSON.stringify(it.failures);
    if (known !== text) {
      known = text;
      failures.replaceChildren(it.failures.length === 0 ? el('p', { class: 'empty' }, 'None since the server started.') : el('ol', { class: 'failures' }, it.failures.map((one) => failure(one, it.trace_url))));
    }
    const slowText = JSON.stringify(it.slowest);
    if (knownSlow !== slowText) {
      knownSlow = slowText;
      slowest.replaceChildren(it.slowest.length === 0 ? el('p', { class: 'empty' }, 'No calls in that time.') : el('ol', { class: 'failures slowest' }, it.slowest.map((one) => slow(one, it.trace_url))));
    }
    isDebugged = it.debug;
    debug.hidden = false;
    setText(debug, it.debug ? 'Turn debug off' : 'Turn debug on');
    showLines(it.log);
    setText(spec, JSON.stringify(it.spec, null, 2));
  }

  async function load() {
    clearTimeout(timer);
    try {
      const found = await get(`/ui/evaluators/${encodeURIComponent(name)}`);
      if (isLeft) return;
      show(found);
    } catch (failed) {
      if (isLeft) return;
      error.replaceChildren(problem(failed));
    }
    clearTimeout(timer);
    timer = setTimeout(() => (document.hidden ? document.addEventListener('visibilitychange', load, { once: true }) : load()), again);
  }

  const element = el('div', {}, el('p', { class: 'crumbs' }, el('a', { href: '#/evaluators' }, 'Evaluators')), el('h1', {}, name), error, done,
    el('div', { class: 'columns' },
      el('div', { class: 'column' }, el('section', { class: 'card', 'aria-labelledby': 'what-title' }, el('h2', { id: 'what-title' }, 'What it is'), what,
        el('p', { class: 'actions' }, el('a', { class: 'button', href: `#/upload?${link}` }, 'Upload another version'), ' ', debug, ' ', el('button', { type: 'button', onclick: unload }, 'Close its runtime'))),
      caller(name, load)),
      el('div', { class: 'column' }, el('section', { class: 'card', 'aria-labelledby': 'log-title' }, el('h2', { id: 'log-title' }, 'Log'), log),
      el('section', { class: 'card', 'aria-labelledby': 'failures-title' }, el('h2', { id: 'failures-title' }, 'Last failures'), failures),
      el('section', { class: 'card', 'aria-labelledby': 'slowest-title' }, el('h2', { id: 'slowest-title' }, 'Slowest of the last ten minutes'), slowest),
      el('section', { class: 'card', 'aria-labelledby': 'spec-title' }, el('h2', { id: 'spec-title' }, 'Spec'), el('p', { class: 'help' }, 'Without the values of config.'), spec))));
  load();
  return { element, title: name, leave: () => { isLeft = true; clearTimeout(timer); } };
}
